"""Who is connected to, and who is not: host keys, user keys, configuration. Against a real OpenSSH server."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from boards.sshd_server import ALIAS, Sshd, Wire, make_key, port_of, reserve_port, wait_for

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.ssh import connection as connection_module
from opadapt.measure.ssh.connection import Connection


def fingerprint(key: Path) -> str:
    """As ssh-keygen shows it."""
    listed = subprocess.run(["ssh-keygen", "-lf", str(key)], check=True, capture_output=True, text=True)
    return listed.stdout.split()[1]


def refused(host: str = ALIAS) -> DeviceError:
    connection = Connection(host)
    with pytest.raises(DeviceError) as error:
        connection.run(["true"], timeout_s=20)
    return error.value


def accepted(sshd: Sshd) -> int:
    return (sshd.folder / "sshd.log").read_text().count("Accepted")


def test_a_known_host_runs_commands(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    command = ["sh", "-c", 'cat; printf "%s" "$1" >&2; exit 7', "-", "it's $HOME; `x`"]
    done = connection.run(command, input=b"\0in", timeout_s=20)
    assert (done.code, done.stdout, done.stderr) == (7, b"\0in", b"it's $HOME; `x`")
    assert connection.fingerprint == fingerprint(sshd.folder / "host_key.pub")
    connection.close()


def test_writing_to_a_process_that_has_ended_leaves_it_to_the_reading_to_say_so(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    process = connection.process(["sh", "-c", "exit 3"])
    assert process.read_line(20) == b"" and process.code == 3
    process.write_line(b"too late")
    assert process.read_line(20) == b"" and process.code == 3 and process.connected
    connection.close()


def test_one_connection_serves_several_threads(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    results: dict[int, bytes] = {}

    def work(number: int) -> None:
        results[number] = connection.run(["echo", str(number)], timeout_s=20).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: f"{number}\n".encode() for number in range(6)}
    assert accepted(sshd) == 1
    connection.close()


def test_an_unknown_host_key_is_shown_and_not_accepted(sshd: Sshd) -> None:
    known = sshd.client / ".ssh/known_hosts"
    known.unlink()
    error = refused()
    assert not isinstance(error, LostDevice)
    assert "unknown host key" in str(error) and fingerprint(sshd.folder / "host_key.pub") in str(error)
    assert "ssh-keygen -lf" in str(error) and f"`ssh {ALIAS}`" in str(error)
    assert not known.exists() and accepted(sshd) == 0


def test_a_changed_host_key_is_refused_loudly(sshd: Sshd, tmp_path: Path) -> None:
    old = fingerprint(sshd.folder / "host_key.pub")
    sshd.replace_host_key()
    before = (sshd.client / ".ssh/known_hosts").read_bytes()
    error = refused()
    assert not isinstance(error, LostDevice)
    assert "HOST KEY HAS CHANGED" in str(error)
    assert old in str(error) and fingerprint(sshd.folder / "host_key.pub") in str(error)
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in str(error)
    assert (sshd.client / ".ssh/known_hosts").read_bytes() == before and accepted(sshd) == 0


def test_a_host_key_of_another_kind_counts_as_changed(sshd: Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "other")], check=True)
    (sshd.client / ".ssh/known_hosts").unlink()
    sshd.trust(sshd.port, (tmp_path / "other.pub").read_text().strip())
    assert "HOST KEY HAS CHANGED" in str(refused())
    assert accepted(sshd) == 0


def test_a_revoked_host_key_is_refused(sshd: Sshd) -> None:
    known = sshd.client / ".ssh/known_hosts"
    known.write_text(f"@revoked {known.read_text()}")
    assert "revoked" in str(refused()) and accepted(sshd) == 0


@pytest.mark.parametrize("line", ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null", ""])
def test_no_configuration_switches_verification_off(sshd: Sshd, line: str) -> None:
    (sshd.client / ".ssh/known_hosts").unlink()
    with (sshd.client / ".ssh/config").open("a") as file:
        file.write(f"  StrictHostKeyChecking no\n  {line}\n")
    assert "unknown host key" in str(refused()) and accepted(sshd) == 0


def test_a_key_that_is_known_for_the_address_alone_does_not_speak_for_a_name(sshd: Sshd) -> None:
    config = sshd.client / ".ssh/config"
    config.write_text(config.read_text().replace("HostName 127.0.0.1", "HostName localhost"))
    assert f"'[localhost]:{sshd.port}'" in str(refused())


def test_known_hosts_may_be_hashed_and_lie_elsewhere(sshd: Sshd) -> None:
    known = sshd.client / ".ssh/known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    known.rename(sshd.client / "elsewhere")
    with (sshd.client / ".ssh/config").open("a") as file:
        file.write("  UserKnownHostsFile ~/elsewhere\n")
    assert Connection(ALIAS).run(["true"], timeout_s=20).code == 0


def test_a_malformed_file_of_known_hosts_is_named(sshd: Sshd) -> None:
    (sshd.client / ".ssh/known_hosts").write_text("@nonsense x y\n")
    assert "known_hosts: not a file of known hosts" in str(refused())


def test_a_wrong_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    (sshd.folder / "authorized_keys").write_text(make_key(tmp_path / "somebody") + "\n")
    error = refused()
    assert not isinstance(error, LostDevice)
    assert "accepts no key of yours" in str(error) and "ssh-copy-id" in str(error)


def test_an_identity_file_that_is_missing_is_passed_over(sshd: Sshd) -> None:
    config = sshd.client / ".ssh/config"
    config.write_text(config.read_text() + "  IdentityFile ~/.ssh/none_of_that_name\n")
    assert Connection(ALIAS).run(["true"], timeout_s=20).code == 0


def test_an_identity_file_may_lie_anywhere(sshd: Sshd) -> None:
    (sshd.client / "elsewhere").mkdir()
    (sshd.client / ".ssh/id_ed25519").rename(sshd.client / "elsewhere/key")
    (sshd.client / ".ssh/id_ed25519.pub").unlink()
    assert "accepts no key of yours" in str(refused())
    config = sshd.client / ".ssh/config"
    config.write_text(config.read_text().replace("~/.ssh/id_ed25519", "~/elsewhere/key"))
    connection = Connection(ALIAS)
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()


@pytest.fixture
def ssh_agent(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real ssh-agent of the user's, without keys."""
    if shutil.which("ssh-agent") is None or shutil.which("ssh-add") is None:
        pytest.skip("no ssh-agent (apt-get install openssh-client)")
    with tempfile.TemporaryDirectory(prefix="opadapt-") as folder:  # a socket's path must be short
        socket = str(Path(folder, "socket"))
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as process:
            listed = ["ssh-add", "-l"]  # 1: the agent has no keys; 2: it cannot be reached
            try:
                wait_for(lambda: subprocess.run(listed, capture_output=True).returncode == 1, "ssh-agent")
                yield
            finally:
                process.terminate()


def test_a_key_that_the_ssh_agent_alone_has(sshd: Sshd, ssh_agent: None) -> None:
    key = sshd.client / ".ssh/id_ed25519"
    subprocess.run(["ssh-add", "-q", str(key)], check=True)
    key.unlink(), key.with_suffix(".pub").unlink()
    connection = Connection(ALIAS)
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()
    subprocess.run(["ssh-add", "-q", "-D"], check=True)
    assert "ssh-add" in str(refused())


def test_user_host_and_port_need_no_configuration(sshd: Sshd) -> None:
    config = sshd.client / ".ssh/config"
    user = config.read_text().split("User ")[1].split()[0]
    config.unlink()
    connection = Connection(f"{user}@127.0.0.1:{sshd.port}")
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()


def test_a_malformed_configuration_is_named(sshd: Sshd) -> None:
    (sshd.client / ".ssh/config").write_text("Port none\n")
    assert ".ssh/config cannot be used" in str(refused()) and "line 1" in str(refused())


def test_a_jump_host_is_verified_and_used(sshd: Sshd) -> None:
    wire = Wire(sshd.port)
    sshd.trust(wire.port)
    config = sshd.client / ".ssh/config"
    plain = config.read_text()
    jump = plain.replace(f"Host {ALIAS}", "Host jump").replace(f"Port {sshd.port}", f"Port {wire.port}")
    config.write_text(plain + "  ProxyJump jump\n" + jump)
    connection = Connection(ALIAS)
    assert connection.run(["echo", "far"], timeout_s=20).stdout == b"far\n"
    assert wire.sent > 0 and accepted(sshd) == 2
    connection.close()
    known = sshd.client / ".ssh/known_hosts"
    known.write_text("".join(line for line in known.open() if str(wire.port) not in line))
    error = str(refused())
    assert "by way of jump" in error and "unknown host key" in error and f"[127.0.0.1]:{wire.port}" in error
    assert accepted(sshd) == 2
    wire.close()


def test_a_jump_in_circles_is_refused(sshd: Sshd) -> None:
    with (sshd.client / ".ssh/config").open("a") as file:
        file.write("  ProxyJump other\nHost other\n  HostName 127.0.0.1\n  ProxyJump board\n")
    assert "circles" in str(refused())


def test_nobody_there_is_told_at_once(sshd: Sshd) -> None:
    with reserve_port() as reserved:
        refusals = {
            f"root@127.0.0.1:{port_of(reserved)}": "nothing listens on that port",
            "no-such-host.invalid": "no host of that name",
        }
        for host, told in refusals.items():
            error = refused(host)
            assert isinstance(error, LostDevice) and error.given_up and told in str(error)


def test_silence_is_not_waited_for_for_ever(sshd: Sshd, wire: Wire) -> None:
    wire.silence_new()
    connection = Connection(ALIAS, timeout_s=0.5)
    with pytest.raises(LostDevice, match="does not answer"):
        connection.run(["true"], timeout_s=20)


def test_a_command_that_takes_too_long_is_ended(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    with pytest.raises(DeviceError, match=r"did not end within 0.2 s") as error:
        connection.run(["sleep", "5"], timeout_s=0.2)
    assert not isinstance(error.value, LostDevice)
    assert connection.run(["true"], timeout_s=20).code == 0
    assert accepted(sshd) == 1
    connection.close()


def test_a_connection_comes_back(sshd: Sshd, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(ALIAS)
    assert connection.run(["true"], timeout_s=20).code == 0
    wire.cut()
    with contextlib.suppress(LostDevice):  # it may have noticed already
        connection.run(["true"], timeout_s=20)
    assert connection.run(["true"], timeout_s=20).code == 0
    wire.cut(for_good=True)
    monkeypatch.setattr(connection_module, "PATIENCE_S", 1.0)
    with contextlib.suppress(LostDevice):
        connection.run(["true"], timeout_s=20)
    with pytest.raises(LostDevice) as lost:
        connection.run(["true"], timeout_s=20)
    assert lost.value.given_up
    wire.mend()
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()


def test_the_pauses_before_another_try_grow_up_to_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    connection = Connection(ALIAS)
    connection._was_there = True

    def gone(self: Connection) -> None:
        raise LostDevice("nothing listens on that port")

    monkeypatch.setattr(Connection, "_logged_in", gone)
    monkeypatch.setattr(connection_module, "time", SimpleNamespace(monotonic=lambda: sum(pauses)))
    monkeypatch.setattr(connection._closed, "wait", pauses.append)
    with pytest.raises(LostDevice) as lost:
        connection.run(["true"], timeout_s=20)
    assert lost.value.given_up
    assert pauses[0] == connection_module.FIRST_PAUSE_S and max(pauses) == 10
    assert all(later == min(2 * pause, 10) for pause, later in pairwise(pauses))
    assert connection_module.PATIENCE_S - 10 < sum(pauses) <= connection_module.PATIENCE_S


def test_files_arrive_and_are_counted(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    folder = str(sshd.home / "a folder" / "of 'mine'")
    connection.make_folder(folder)
    data = bytes(range(256)) * 5000
    connection.put(data, f"{folder}/x.part")
    assert connection.bytes_sent == len(data)
    connection.rename(f"{folder}/x.part", f"{folder}/x")
    assert connection.get(f"{folder}/x") == data and connection.bytes_received == len(data)
    assert connection.exists(f"{folder}/x") and not connection.exists(f"{folder}/x.part")
    (sshd.home / "begun").write_bytes(data[:1_000_000])
    connection.put(data, str(sshd.home / "begun"), resume=True)
    assert (sshd.home / "begun").read_bytes() == data
    assert connection.bytes_sent == 2 * len(data) - 1_000_000
    (sshd.home / "longer").write_bytes(data * 2)
    connection.put(data, str(sshd.home / "longer"), resume=True)
    assert (sshd.home / "longer").read_bytes() == data
    connection.close()


def test_what_cannot_be_read_or_written_is_named(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    with pytest.raises(DeviceError, match="none' cannot be read"):
        connection.get(str(sshd.home / "none"))
    with pytest.raises(DeviceError, match="x' cannot be written"):
        connection.put(b"x", str(sshd.home / "none/x"))
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()


def test_a_process_is_talked_to_by_lines(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    process = connection.process(
        ["sh", "-c", 'while read line; do echo "<$line>"; done; echo bye >&2; exit 3']
    )
    for line in (b"one", b"x" * 300_000):
        process.write_line(line)
        assert process.read_line(20) == b"<" + line + b">"
    with pytest.raises(TimeoutError):
        process.read_line(0.05)
    process.write_line(b"still there")
    assert process.read_line(20) == b"<still there>"
    process.close(20)
    assert process.read_line(20) == b"" and process.connected
    assert process.code == 3 and process.stderr == "bye"
    connection.close()


def test_a_server_without_sftp_is_told_apart(sshd: Sshd) -> None:
    sshd.stop()
    config = sshd.folder / "sshd_config"
    config.write_text(config.read_text().replace("Subsystem sftp internal-sftp\n", ""))
    sshd.start()
    connection = Connection(ALIAS)
    with pytest.raises(DeviceError, match="it has no SFTP"):
        connection.put(b"x", "x")
    connection.close()

"""Which names of known_hosts speak for a host, and what is said about revoked keys. Against a real OpenSSH server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from boards.sshd_server import ALIAS, Sshd

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.ssh.connection import Connection


@pytest.fixture
def capitals(sshd: Sshd) -> Callable[[str, str], None]:
    """Writes the one line of known_hosts, and more lines of configuration for a host named with capitals."""

    def write(known: str, more: str = "") -> None:
        config = sshd.client / ".ssh/config"
        config.write_text(config.read_text().replace("HostName 127.0.0.1", "HostName LocalHost") + more)
        (sshd.client / ".ssh/known_hosts").write_text(f"{known} {sshd.host_key}\n")

    return write


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "Local*"])
@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
def test_capitals_make_no_difference(
    sshd: Sshd, capitals: Callable[[str, str], None], name: str, hashed: bool
) -> None:
    if hashed and name != "localhost":
        pytest.skip("ssh hashes names in lower case, and no patterns")
    capitals(f"[{name}]:{sshd.port}", "")
    if hashed:
        known = sshd.client / ".ssh/known_hosts"
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
        assert "localhost" not in known.read_text()
    connection = Connection(ALIAS)
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()


def test_an_alias_of_a_host_key_may_have_capitals(sshd: Sshd, capitals: Callable[[str, str], None]) -> None:
    capitals("MyBoard", "  HostKeyAlias MyBoard\n")
    connection = Connection(ALIAS)
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()


def test_another_name_does_not_speak_for_a_host(sshd: Sshd, capitals: Callable[[str, str], None]) -> None:
    capitals(f"[otherhost]:{sshd.port}", "")
    with pytest.raises(DeviceError, match="unknown host key"):
        Connection(ALIAS).run(["true"], timeout_s=20)


@pytest.mark.parametrize("known_before", [False, True])
def test_nobody_is_told_to_accept_a_revoked_key(sshd: Sshd, known_before: bool) -> None:
    known = sshd.client / ".ssh/known_hosts"
    line = known.read_text()
    known.write_text(f"@revoked {line}" + (line if known_before else ""))
    with pytest.raises(DeviceError, match="its host key is revoked, nothing was sent") as error:
        Connection(ALIAS).run(["true"], timeout_s=20)
    assert not isinstance(error.value, LostDevice)
    assert "accept" not in str(error.value.do) and "do not connect" in str(error.value.do)
    assert str(known) in str(error.value.expected)

"""What may happen to a board in the middle of work, against a real OpenSSH server. After each fault the work goes on,
or stops with an error that says why; and nothing is left on the board (the fixture ``board`` looks)."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from boards.conftest import MakeDevice, MakeModel
from boards.sshd_server import ALIAS, Sshd, Wire, descendants, filled, wait_for

from opadapt.errors import DeviceError, FullDisk, LostDevice
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.ssh import connection as connection_module
from opadapt.measure.ssh import login as login_module
from opadapt.measure.ssh import transport as transport_module
from opadapt.measure.ssh.transport import SshTransport
from opadapt.measure.timing import BlockTimes, Timing

LONG = Timing(blocks=6, min_block_s=0.1, min_runs=3, warmup_s=3.0, timeout_s=120)
ENDLESS = LONG.model_copy(update={"warmup_s": 3600.0, "timeout_s": 3600.0})


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that nobody comes back to goes after two seconds instead of a minute, and a connection is tried again
    for one second instead of sixty."""
    monkeypatch.setattr(transport_module, "LINGER_S", 2.0)
    monkeypatch.setattr(connection_module, "PATIENCE_S", 1.0)


class Work:
    """A measurement in a thread of its own, on a device that is started already."""

    def __init__(self, device: AgentDevice, model: bytes, timing: Timing) -> None:
        device.hello()
        self.result: BlockTimes | None = None
        self.error: BaseException | None = None
        self._work = lambda: device.time([model], timing)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error

    def check(self) -> None:
        """Raises what it failed with, if it has."""
        if self.error is not None:
            raise self.error

    def done(self) -> BlockTimes:
        self._thread.join(300)
        assert not self._thread.is_alive(), "it does not end"
        self.check()
        assert self.result is not None
        return self.result


def transport_of(device: AgentDevice) -> SshTransport:
    transport = device._transport
    assert isinstance(transport, SshTransport)
    return transport


def folder_of(device: AgentDevice) -> Path:
    return Path(str(device.hello()["folder"]))


def pid_of(device: AgentDevice) -> int:
    return int(device.hello()["pid"])


def at_work(device: AgentDevice, work: Work) -> int:
    """The process id of the child, as soon as there is one."""
    agent = pid_of(device)

    def has_child() -> bool:
        assert work.result is None, "it is done already"
        work.check()
        return bool(descendants(agent))

    wait_for(has_child, "the child")
    return descendants(agent)[0]


def warming_up(folder: Path) -> bool:
    """Whether a child runs a model for nothing yet; ``folder`` is the agent's."""
    return any("warming up" in read(stage) for stage in folder.glob("*/stage"))


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def hashes(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if len(path.name) == 64]


# --- the connection


def test_a_cut_in_an_upload_costs_only_what_was_under_way(
    board: MakeDevice, wire: Wire, make_model: MakeModel, quick: Timing
) -> None:
    device, model = board(), make_model(6_000_000)
    device.hello()
    before = wire.sent
    wire.cut_after(3_000_000)
    times = device.time([model], quick)
    assert times.latency_s.shape == (1, quick.blocks)
    cost = wire.sent - before - len(model)  # a block of 255 KiB is sent again, and logging in costs some kB
    assert 0 < cost < 600_000
    assert transport_of(device).connection.bytes_sent < len(model) + 600_000


@pytest.mark.parametrize("fault", ["cut", "silence"])
def test_a_measurement_goes_on_after_a_break(
    board: MakeDevice,
    wire: Wire,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """After a silence the board still believes in the old connection: the new agent has to send the old one off."""
    monkeypatch.setattr(login_module, "KEEPALIVE_S", 0.5)
    device, model = board(), make_model()
    folder, agent = folder_of(device), pid_of(device)
    work = Work(device, model, LONG)
    child = at_work(device, work)
    getattr(wire, fault)()
    assert work.done().latency_s.shape == (1, LONG.blocks)
    assert folder_of(device) == folder and pid_of(device) != agent
    wait_for(lambda: not alive(child) and not alive(agent), "the old agent's end")


@pytest.mark.usefixtures("hasty")
def test_a_break_for_good_stops_with_an_error_and_the_board_tidies_up(
    board: MakeDevice, sshd: Sshd, wire: Wire, make_model: MakeModel, quick: Timing
) -> None:
    device, model = board(), make_model()
    work = Work(device, model, ENDLESS)
    at_work(device, work)
    wire.cut(for_good=True)
    with pytest.raises(LostDevice) as lost:
        work.done()
    assert "nothing listens" in str(lost.value) and ALIAS in str(lost.value)
    assert "opadapt resume" in str(lost.value)
    sshd.wait_until_clean()
    wire.mend()  # and later it goes on, as `opadapt resume` does
    assert device.time([model], quick).latency_s.shape == (1, quick.blocks)


def test_the_files_wait_for_a_connection_that_comes_back_late(
    board: MakeDevice, sshd: Sshd, wire: Wire, make_model: MakeModel, quick: Timing
) -> None:
    device, base = board(), make_model(1_000_000)
    device.time([base], quick)
    sent = transport_of(device).connection.bytes_sent
    wire.cut(for_good=True)
    lingering = pid_of(device)
    wait_for(lambda: not descendants(lingering) and sshd.agents() == [lingering], "one lingering agent")
    assert [path.stat().st_size for path in hashes(folder_of(device))] == [len(base)]
    wire.mend()
    device.time([base], quick)
    assert transport_of(device).connection.bytes_sent - sent < 20_000
    wait_for(lambda: not alive(lingering), "the lingering agent's end")


def test_a_restarted_server_is_found_again(
    board: MakeDevice, sshd: Sshd, make_model: MakeModel, quick: Timing
) -> None:
    device, model = board(), make_model()
    work = Work(device, model, LONG)
    at_work(device, work)
    sshd.stop()
    sshd.start()
    assert work.done().latency_s.shape == (1, LONG.blocks)


@pytest.mark.usefixtures("hasty")
def test_a_board_that_was_replaced_meanwhile_is_refused(
    board: MakeDevice, sshd: Sshd, make_model: MakeModel
) -> None:
    device, model = board(), make_model()
    work = Work(device, model, ENDLESS)
    at_work(device, work)
    sshd.replace_host_key()
    with pytest.raises(DeviceError, match="HOST KEY HAS CHANGED") as error:
        work.done()
    assert not isinstance(error.value, LostDevice)


def test_a_host_that_dies_leaves_nothing_on_the_board(
    sshd: Sshd, make_model: MakeModel, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(make_model())
    (tmp_path / "facts.json").write_text(sshd.facts().model_dump_json())
    program = (
        "import sys, pathlib; from opadapt.measure import agent_device, facts, timing\n"
        "from opadapt.measure.ssh import transport; transport.LINGER_S = 2.0\n"
        "told = facts.Facts.model_validate_json(pathlib.Path('facts.json').read_text())\n"
        "device = agent_device.AgentDevice(told, transport.SshTransport('board', told), 1)\n"
        "device.time([pathlib.Path('model.onnx').read_bytes()], timing.Timing(warmup_s=3600))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, start_new_session=True)
    sessions = sshd.cache / "sessions"
    wait_for(lambda: any(map(warming_up, sessions.glob("*"))), "the child at work")
    assert len(sshd.agents()) == 2
    host.kill()
    host.wait(30)
    sshd.wait_until_clean()


def test_ctrl_c_in_a_measurement_ends_it_at_once(sshd: Sshd, make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(make_model())
    (tmp_path / "facts.json").write_text(sshd.facts().model_dump_json())
    program = (
        "from pathlib import Path; from opadapt.measure import agent_device, facts, timing\n"
        "from opadapt.measure.ssh import transport\n"
        "told = facts.Facts.model_validate_json(Path('facts.json').read_text())\n"
        "model = Path('model.onnx').read_bytes()\n"
        "with agent_device.AgentDevice(told, transport.SshTransport('board', told), 1) as device:\n"
        "    try:\n"
        "        device.time([model], timing.Timing(warmup_s=3600, timeout_s=3600))\n"
        "    except KeyboardInterrupt:\n"
        "        times = device.time([model], timing.Timing(blocks=6, min_block_s=0.001, warmup_s=0))\n"
        "        print('interrupted', len(times.order))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as host:
        try:
            sessions = sshd.cache / "sessions"
            wait_for(lambda: any(map(warming_up, sessions.glob("*"))), "the child at work")
            host.send_signal(signal.SIGINT)
            # far less than an agent that is asked for something else while it measures would be waited for
            assert host.communicate(timeout=25)[0].split() == ["interrupted", "6"]
        finally:
            host.kill()
    sshd.wait_until_clean()


# --- the agent and its children


def alive(pid: int) -> bool:
    state = read(Path(f"/proc/{pid}/stat"))
    return bool(state) and state.rsplit(")", 1)[1].split()[0] != "Z"


def test_a_killed_agent_is_started_again_and_keeps_its_files(
    board: MakeDevice, make_model: MakeModel, quick: Timing
) -> None:
    device, base = board(), make_model(1_000_000)
    device.time([base], quick)
    folder, agent, sent = folder_of(device), pid_of(device), transport_of(device).connection.bytes_sent
    work = Work(device, base, LONG)
    child = at_work(device, work)
    os.kill(agent, signal.SIGKILL)
    assert work.done().latency_s.shape == (1, LONG.blocks)
    assert pid_of(device) != agent and folder_of(device) == folder and not alive(child)
    assert transport_of(device).connection.bytes_sent - sent < 20_000
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


def test_an_agent_that_is_killed_every_time_is_given_up(
    board: MakeDevice, sshd: Sshd, make_model: MakeModel, quick: Timing
) -> None:
    device, model = board(), make_model()
    device.hello()
    asked = SshTransport.request

    def request(self: SshTransport, message: dict[str, object], timeout_s: float) -> dict[str, object]:
        if message["do"] == "time":
            (held,) = (sshd.cache / "sessions").glob("*/held")
            os.kill(int(read(held)), signal.SIGKILL)
        return asked(self, message, timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SshTransport, "request", request)
        with pytest.raises(LostDevice, match="the agent ended") as lost:
            device.time([model], quick)
    assert "opadapt resume" in str(lost.value)
    assert device.time([model], quick).latency_s.shape == (1, quick.blocks)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGKILL"])
def test_a_candidate_that_crashes_the_runtime_is_refused(
    board: MakeDevice, make_model: MakeModel, quick: Timing, name: str
) -> None:
    device, model = board(), make_model()
    agent = pid_of(device)
    work = Work(device, model, ENDLESS)
    child = at_work(device, work)
    wait_for(lambda: warming_up(folder_of(device)), "the child at work")
    os.kill(child, getattr(signal, name))
    with pytest.raises(DeviceError, match=f"killed by {name}") as error:
        work.done()
    assert not isinstance(error.value, LostDevice) and "model 0: warming up" in str(error.value)
    assert device.time([model], quick).latency_s.shape == (1, quick.blocks)
    assert pid_of(device) == agent


def test_a_device_that_is_closed_in_the_middle_of_work_leaves_at_once(
    board: MakeDevice, sshd: Sshd, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "LINGER_S", 600.0)
    device, model = board(), make_model()
    work = Work(device, model, ENDLESS)
    at_work(device, work)
    device.close()
    with pytest.raises(DeviceError, match="closed") as error:
        work.done()
    assert not isinstance(error.value, LostDevice)
    sshd.wait_until_clean(20)


def test_what_dead_agents_left_is_swept_at_the_next_start(board: MakeDevice, sshd: Sshd) -> None:
    left = sshd.cache / "sessions" / ("0" * 32)
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "file").write_bytes(b"x")
    (left / "held").write_text("1")
    board().hello()
    assert not left.exists()


def test_other_versions_of_the_agent_go_when_they_are_old_and_nobody_runs_them(
    board: MakeDevice, sshd: Sshd
) -> None:
    sshd.cache.mkdir(parents=True)
    part, old, running, new = (
        sshd.cache / f"agent-{digit * 64}{end}"
        for digit, end in zip("0123", (".part", *3 * (".py",)), strict=True)
    )
    for path in (part, old, running, new):
        path.write_bytes(b"x")
        if path != new:
            os.utime(path, (0, 0))
    command = [sys.executable, "-c", "input()", str(running)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        board().hello()
        assert [path.exists() for path in (part, old, running, new)] == [False, False, True, True]
        process.kill()


# --- files


def test_a_model_travels_once(board: MakeDevice, make_model: MakeModel, quick: Timing) -> None:
    device, base = board(), make_model(1_000_000)
    connection = transport_of(device).connection
    candidates = [make_model(200_000, seed) for seed in (1, 2)]
    device.time([base, candidates[0]], quick)
    sent = connection.bytes_sent
    device.time([base, candidates[1]], quick)
    assert 0 < connection.bytes_sent - sent - len(candidates[1]) < 5_000
    assert [path.stat().st_size for path in hashes(folder_of(device))] == [len(base)]
    device.run(base, {"x": np.zeros((1, 64), np.float32)})
    device.profile(base, quick)
    assert [path.stat().st_size for path in hashes(folder_of(device))] == [len(base)]
    assert sorted(path.name for path in folder_of(device).iterdir() if len(path.name) != 64) == ["held"]


def test_an_upload_that_goes_on_from_something_else_starts_anew(
    board: MakeDevice, make_model: MakeModel, quick: Timing
) -> None:
    device = board()
    transport, folder = transport_of(device), folder_of(device)
    data = make_model(1_000_000)
    (folder / "x.part").write_bytes(b"\0" * 500_000)
    transport._uploads.add(f"{folder}/x")
    transport.put(data, f"{folder}/x")
    assert (folder / "x").read_bytes() == data and not (folder / "x.part").exists()
    (folder / "x").unlink()


def test_a_harmed_agent_is_replaced(board: MakeDevice, sshd: Sshd) -> None:
    first = board()
    first.hello()
    first.close()
    agent = next(sshd.cache.glob("agent-*.py"))
    content = agent.read_bytes()
    agent.write_bytes(content[:100])
    board().hello()
    assert agent.read_bytes() == content


@pytest.mark.parametrize(
    "size", [4_000_000, 6_000_000]
)  # of 4 MB less is missing than the broken file gave free
def test_a_full_disk_is_the_boards_and_no_candidates_fault(
    small_disk: Path, board: MakeDevice, make_model: MakeModel, quick: Timing, size: int
) -> None:
    device, small, large = board(), make_model(), make_model(size)
    agent = pid_of(device)
    for _ in range(2):
        with pytest.raises(FullDisk, match="no space left") as error:
            device.time([small, large], quick)
        assert str(folder_of(device)) in str(error.value) and "bytes free" in str(error.value)
        assert "opadapt resume" in str(error.value) and error.value.given_up
        assert pid_of(device) == agent
        assert device.time([small], quick).latency_s.shape == (1, quick.blocks)
        assert not list(folder_of(device).glob("*.part"))


def test_a_disk_that_fills_while_profiling_is_named(
    small_disk: Path, board: MakeDevice, make_model: MakeModel, quick: Timing
) -> None:
    device, model = board(), make_model(2_000_000)
    device.time([model], quick)
    with pytest.raises(FullDisk, match="no space left on the board"):
        device.profile(model, quick)
    assert device.time([model], quick).latency_s.shape == (1, quick.blocks)


def test_a_disk_too_full_for_the_agent_is_named(small_disk: Path, board: MakeDevice) -> None:
    with filled(small_disk), pytest.raises(FullDisk, match="no space left"):
        board().hello()


# --- several hosts


def test_two_hosts_do_not_measure_on_one_board(
    board: MakeDevice, sshd: Sshd, make_model: MakeModel, quick: Timing
) -> None:
    first, second, model = board(), board(), make_model()
    first.time([model], quick)
    with pytest.raises(DeviceError, match="another opadapt is measuring on this board") as error:
        second.time([model], quick)
    assert not isinstance(error.value, LostDevice)
    told = str(error.value)
    assert f"{getpass.getuser()}@{socket.gethostname()}, since 20" in told
    assert f"process {pid_of(first)}" in told and "wait for it to end" in told
    assert first.time([model], quick).latency_s.shape == (1, quick.blocks)
    first.close()
    assert second.time([model], quick).latency_s.shape == (1, quick.blocks)


def test_a_lost_host_gives_the_board_up_at_once(
    board: MakeDevice, sshd: Sshd, wire: Wire, make_model: MakeModel, quick: Timing
) -> None:
    first, second, model = board(), board(), make_model()
    lingering = pid_of(first)
    wire.cut()
    wait_for(lambda: not sshd.lock.read_text(), "the lock")
    assert second.time([model], quick).latency_s.shape == (1, quick.blocks)
    assert alive(lingering)
    second.close()
    assert first.time([model], quick).latency_s.shape == (1, quick.blocks)
    wait_for(lambda: not alive(lingering), "the lingering agent's end")


# --- what is not a board


def test_a_board_without_that_python_is_told_apart(sshd: Sshd) -> None:
    facts = sshd.facts().model_copy(update={"python": "no-such-python3"})
    with pytest.raises(DeviceError, match="the agent does not start") as error:
        AgentDevice(facts, SshTransport(ALIAS, facts), 1).hello()
    assert "no-such-python3" in str(error.value) and "install Python there" in str(error.value)
    sshd.wait_until_clean()


def test_the_environment_that_opadapt_made_comes_first(board: MakeDevice, sshd: Sshd) -> None:
    own = sshd.cache / "venv/bin/python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sshd.python)
    facts = sshd.facts().model_copy(update={"python": "no-such-python3"})
    with AgentDevice(facts, SshTransport(ALIAS, facts), 1) as device:
        assert device.hello()["protocol"] == 1
    own.unlink(), own.parent.rmdir(), own.parent.parent.rmdir()


def test_a_login_shell_may_talk(board: MakeDevice, sshd: Sshd, make_model: MakeModel, quick: Timing) -> None:
    (sshd.home / ".bashrc").write_text("echo Welcome to the board; echo {not json\n")
    device = board()
    assert device.time([make_model()], quick).latency_s.shape == (1, quick.blocks)
    (sshd.home / ".bashrc").unlink()

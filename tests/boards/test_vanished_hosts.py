"""A host that is gone without a word: the agent gives the board up. And one that closes in the middle of a login."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from boards.conftest import MakeDevice, MakeModel
from boards.sshd_server import ALIAS, Sshd, Wire, descendants, wait_for
from boards.test_ssh_faults import ENDLESS, Work, at_work, pid_of

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.ssh import transport as transport_module
from opadapt.measure.ssh.connection import Connection
from opadapt.measure.timing import Timing

WAIT_S = 30.0  # for another thread; reached only where it waits for a time limit of a minute


@pytest.mark.parametrize("measuring", [False, True], ids=["idle", "measuring"])
def test_a_board_whose_host_vanished_is_free_again(
    board: MakeDevice,
    sshd: Sshd,
    wire: Wire,
    make_model: MakeModel,
    quick: Timing,
    monkeypatch: pytest.MonkeyPatch,
    measuring: bool,
) -> None:
    """Nothing passes through the connection any more, and neither end has noticed."""
    limits = {"BEAT_S": 0.1, "SILENCE_S": 1.0, "LINGER_S": 0.5, "END_WAIT_S": 0.2}
    for name, seconds in limits.items():
        monkeypatch.setattr(transport_module, name, seconds)
    vanished, other, model = board(), board(), make_model()
    agent = pid_of(vanished)
    work = Work(vanished, model, ENDLESS) if measuring else None
    if work is not None:
        at_work(vanished, work)
    wire.silence()
    wait_for(lambda: not sshd.lock.read_text() and not descendants(agent), "the lock", 30)
    assert other.time([model], quick).latency_s.shape == (1, quick.blocks)
    vanished.close()
    if work is not None:
        with pytest.raises(DeviceError):
            work.done()


def test_an_agent_that_is_shown_life_is_told_goodbye_all_the_same(
    board: MakeDevice, sshd: Sshd, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among empty lines it must not overlook what is said."""
    monkeypatch.setattr(transport_module, "LINGER_S", 600.0)
    monkeypatch.setattr(transport_module, "BEAT_S", 0.005)
    device = board()
    work = Work(device, make_model(), ENDLESS)
    at_work(device, work)
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        work.done()
    sshd.wait_until_clean(20)


def test_a_process_is_sent_an_empty_line_now_and_then(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    process = connection.process(["cat"], beat_s=0.02)
    for _ in range(3):
        assert process.read_line(20) == b"" and process.code is None
    process.write_line(b"x" * 100_000)
    while not (line := process.read_line(20)):
        assert process.code is None
    assert line == b"x" * 100_000
    process.close(20)
    connection.close()


def test_closing_does_not_wait_for_a_login(sshd: Sshd, wire: Wire) -> None:
    wire.silence_new()
    connection = Connection(ALIAS, timeout_s=60)
    with ThreadPoolExecutor(2) as pool:
        work = pool.submit(connection.run, ["true"], timeout_s=60)
        wait_for(lambda: wire._open, "the login")
        pool.submit(connection.close).result(WAIT_S)
        with pytest.raises(DeviceError, match="was closed") as error:
            work.result(WAIT_S)
    assert not isinstance(error.value, LostDevice)


def test_a_closed_connection_is_not_made_again_until_it_is_opened(sshd: Sshd) -> None:
    connection = Connection(ALIAS)
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()
    with pytest.raises(DeviceError, match="was closed"):
        connection.run(["true"], timeout_s=20)
    assert (sshd.folder / "sshd.log").read_text().count("Accepted") == 1
    connection.open()
    assert connection.run(["true"], timeout_s=20).code == 0
    connection.close()

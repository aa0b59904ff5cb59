"""The agent as a child process: when it goes it is the device that is lost, and nothing of it stays."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.facts import load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.lock import MeasuringLock
from opadapt.measure.transport import LocalTransport


@pytest.fixture
def transport() -> Iterator[LocalTransport]:
    made = LocalTransport()
    yield made
    made.close()


def started(transport: LocalTransport) -> tuple[int, Path]:
    """Process id and folder of a new agent."""
    transport.start()
    hello = transport.request({"do": "hello"}, 60)
    return int(hello["pid"]), Path(hello["folder"])


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_killed_agent_is_a_lost_device_and_its_folder_goes(transport: LocalTransport) -> None:
    pid, folder = started(transport)
    (folder / "model").write_bytes(b"x")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LostDevice, match="the agent ended") as error:
        transport.request({"do": "forget", "paths": []}, 60)
    assert f"exit code {-signal.SIGKILL}" in str(error.value)
    assert not folder.exists()
    assert started(transport)[0] != pid


def test_work_goes_on_with_another_agent(tmp_path: Path) -> None:
    transport = LocalTransport()
    with LocalDevice(load_facts("local"), 1, transport, MeasuringLock(tmp_path)) as device:
        first = transport.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert device.conditions()["threads"] == 1
        assert transport.pid not in (None, first)


def test_a_silent_agent_is_a_lost_device(tmp_path: Path) -> None:
    silent = tmp_path / "agent.py"
    silent.write_text("import sys; sys.stdin.read()\n")
    transport = LocalTransport(agent=silent)
    transport.start()
    with pytest.raises(LostDevice, match=r"did not answer within 0\.1 s"):
        transport.request({"do": "hello"}, 0.1)


def test_an_agent_that_never_answered_is_not_tried_again(tmp_path: Path) -> None:
    broken = tmp_path / "agent.py"
    broken.write_text("raise SystemExit(3)\n")
    transport = LocalTransport(agent=broken)
    transport.start()
    with pytest.raises(DeviceError, match="the agent ended") as error:
        transport.request({"do": "hello"}, 20)
    assert not isinstance(error.value, LostDevice)


def test_a_start_ends_the_agent_before(transport: LocalTransport) -> None:
    pid, folder = started(transport)
    started(transport)
    assert not alive(pid) and not folder.exists()


def test_files_in_a_folder_that_is_gone_are_a_lost_device(transport: LocalTransport, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone" / "file")
    with pytest.raises(LostDevice, match="cannot be written"):
        transport.put(b"x", gone)
    with pytest.raises(LostDevice, match="cannot be read"):
        transport.get(gone)


def test_a_full_disk_is_named_and_left_no_fuller(
    transport: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"

    def half_written(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(DeviceError, match="no space left") as error:
        transport.put(b"xyz", str(path))
    assert error.value.kind == "space" and "make room" in str(error.value)
    assert not path.exists()

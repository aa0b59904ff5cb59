"""The real adb server, as adbutils brings it, with a pretended phone behind it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adb_tools import FACTS, wait_for
from fake_adbd import FakeAdbd
from phone import Phone

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.adb import connection as connection_module
from opadapt.measure.adb.server import AdbServer
from opadapt.measure.adb.transport import AdbTransport
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.timing import Timing


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The adb program that adbutils brings, serving on a port of its own."""
    adbutils = pytest.importorskip("adbutils")
    program = shutil.which("adb") or str(Path(adbutils.__file__).parent / "binaries" / "adb")
    try:
        subprocess.run([program, "version"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip(f"{program} does not run on this machine")
    home = tmp_path_factory.mktemp("adb_home")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**os.environ, "HOME": str(home), "ADB_MDNS": "0", "TMPDIR": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-P", str(port), "nodaemon", "server"], env=environment, stdout=log, stderr=log
        )
        try:
            wait_for(lambda: process.poll() is not None or AdbServer("127.0.0.1", port)._silent() is None)
            yield port
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def plugged(real_server: int, tmp_path: Path) -> Iterator[FakeAdbd]:
    with FakeAdbd(Phone(tmp_path / "phone")).running() as adbd:
        yield adbd


def connect(port: int, adbd: FakeAdbd) -> str:
    return str(AdbServer("127.0.0.1", port)._client().connect(adbd.serial))


def test_with_the_real_adb_server(
    real_server: int, plugged: FakeAdbd, model: bytes, quick: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = AdbServer("127.0.0.1", real_server)
    assert "connected to" in connect(server.port, plugged)
    assert server.choose(None) == plugged.serial
    there = AdbTransport(plugged.serial, FACTS, server, str(plugged.phone.storage))
    with AgentDevice(FACTS, there, 1) as opened:
        session = Path(opened.hello()["folder"])
        assert opened.time([model, model], quick).latency_s.shape == (2, quick.blocks)
        x = np.zeros((1, 8, 8, 8), np.float32)
        assert opened.run(model, {"x": x})["y"].shape == (1, 10)
        data = np.random.default_rng(0).bytes((1 << 20) + 3)
        there.put(data, str(session / "large"))
        assert there.get(str(session / "large")) == data
        found = there.connection.run(["python3", "-c", "import sys; sys.exit('no')"])
        assert (found.code, found.stderr) == (1, b"no\n")
        with pytest.raises(DeviceError, match="cannot be read"):
            there.get("/no/such/file")
    assert not session.exists()
    monkeypatch.setattr(connection_module, "BACK_S", 0.3)
    opened.__enter__()
    plugged.unplug()
    with pytest.raises(LostDevice, match=f"phone {plugged.serial} is gone"):
        opened.conditions()
    opened.close()


def test_the_real_adb_server_and_a_phone_that_wants_to_be_asked(real_server: int, plugged: FakeAdbd) -> None:
    plugged.phone.state = "unauthorized"
    server = AdbServer("127.0.0.1", real_server)
    connect(server.port, plugged)
    wait_for(lambda: server.states().get(plugged.serial) == "unauthorized")
    with pytest.raises(DeviceError, match="keeps us out") as error:
        server.choose(plugged.serial)
    assert "Allow USB debugging" in str(error.value.do)
    with pytest.raises(LostDevice, match="unauthorized"):
        server.open(plugged.serial, "sync:")

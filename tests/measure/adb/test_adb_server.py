"""Finding the adb server and a phone; each failure says what to do."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest
from adb_tools import FACTS, device
from phone import FakeAdbServer, Phone

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.adb import server as server_module
from opadapt.measure.adb.server import AdbServer
from opadapt.measure.adb.transport import AdbTransport
from opadapt.measure.agent_device import AgentDevice


def test_without_adbutils_the_error_says_how_to_install_it(
    adb: FakeAdbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "adbutils", None)
    with pytest.raises(DeviceError) as error:
        device(adb).hello()
    assert error.value.do == "pip install 'opadapt[android]'"


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_no_adb_server(closed_port: int) -> None:
    with pytest.raises(LostDevice, match=f"no adb server answers at 127.0.0.1:{closed_port}") as error:
        AdbServer("127.0.0.1", closed_port).states()
    assert "start-server" in str(error.value.do) and error.value.found == "exit code 1"


def test_no_adb_program(closed_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADBUTILS_ADB_PATH", str(tmp_path / "adb"))
    with pytest.raises(DeviceError, match="no adb server") as error:
        AdbServer("127.0.0.1", closed_port).states()
    assert "No such file" in str(error.value.found)


def test_a_server_elsewhere_is_not_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(server_module, "_start", lambda library, port: started.append(port))
    with pytest.raises(DeviceError, match=r"no adb server answers at nowhere\.invalid:5037"):
        AdbServer("nowhere.invalid", 5037).states()
    assert started == []


def test_the_servers_place_is_taken_from_adbs_own_variables(
    adb: FakeAdbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb.port))
    assert AdbServer().states() == {"one": "device"}
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "usb")
    with pytest.raises(DeviceError, match="ANDROID_ADB_SERVER_PORT"):
        AdbServer()


def test_something_else_at_the_servers_port(closed_port: int) -> None:
    with socket.create_server(("127.0.0.1", closed_port)) as listener:

        def answer() -> None:
            for _ in range(2):  # the second connection is the first real one
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DeviceError, match="the adb server does not answer"):
            AdbServer("127.0.0.1", closed_port).states()
        thread.join()


def test_no_phone(adb: FakeAdbServer) -> None:
    adb.unplug("one")
    with pytest.raises(LostDevice, match="no phone is connected") as error:
        AdbServer("127.0.0.1", adb.port).choose(None)
    assert error.value.given_up and "USB debugging" in str(error.value.do)


def test_of_several_phones_one_must_be_named(
    adb: FakeAdbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adb.phones["two"] = Phone(tmp_path / "two")
    server = AdbServer("127.0.0.1", adb.port)
    with pytest.raises(DeviceError, match="several phones") as error:
        server.choose(None)
    assert "one (device), two (device)" in str(error.value) and "TYPE@SERIAL" in str(error.value)
    assert server.choose("two") == "two"
    monkeypatch.setenv("ANDROID_SERIAL", "one")
    assert server.choose(None) == "one" and server.choose("two") == "two"


def test_an_unready_phone_is_not_taken_for_the_only_one(adb: FakeAdbServer, tmp_path: Path) -> None:
    adb.phones["two"] = Phone(tmp_path / "two", state="offline")
    assert AdbServer("127.0.0.1", adb.port).choose(None) == "one"


def device_named(adb: FakeAdbServer, serial: str) -> AgentDevice:
    return AgentDevice(FACTS, AdbTransport(serial, FACTS, AdbServer("127.0.0.1", adb.port)), 1)


def test_an_unknown_serial_number(adb: FakeAdbServer) -> None:
    with pytest.raises(LostDevice, match="no phone 'three'") as error:
        device_named(adb, "three").hello()
    assert error.value.given_up and error.value.found == "one (device)"


@pytest.mark.parametrize("named", ["", "one"])
@pytest.mark.parametrize(
    ("state", "do"), [("offline", "unplug"), ("recovery", "start Android"), ("?", "adb devices")]
)
def test_a_phone_that_is_not_ready(adb: FakeAdbServer, named: str, state: str, do: str) -> None:
    adb.phones["one"].state = state
    with pytest.raises(LostDevice, match="phone one is not ready") as error:
        device_named(adb, named).hello()
    assert error.value.given_up and error.value.found == state and do in str(error.value.do)


@pytest.mark.parametrize("named", ["", "one"])
@pytest.mark.parametrize(("state", "do"), [("unauthorized", "Allow USB debugging"), ("no", "udev")])
def test_a_phone_that_keeps_us_out(adb: FakeAdbServer, named: str, state: str, do: str) -> None:
    adb.phones["one"].state = state
    with pytest.raises(DeviceError, match="phone one keeps us out") as error:
        device_named(adb, named).hello()
    assert error.value.found == state and do in str(error.value.do)
    assert not isinstance(error.value, LostDevice)


def test_the_device_file_may_name_the_phone(adb: FakeAdbServer, tmp_path: Path) -> None:
    adb.phones["two"] = Phone(tmp_path / "two")
    facts = FACTS.model_copy(update={"host": "two"})
    assert AdbTransport("", facts, AdbServer("127.0.0.1", adb.port)).connection.serial == "two"
    assert AdbTransport("one", facts, AdbServer("127.0.0.1", adb.port)).connection.serial == "one"

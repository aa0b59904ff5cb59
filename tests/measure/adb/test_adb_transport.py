"""The agent on a phone over adb: copied, started, asked, lost and found again."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from adb_tools import FACTS, agents, device, running_agents, running_children, transport, wait_for
from phone import FakeAdbServer, Phone

from opadapt.errors import DeviceError, FullDisk, LostDevice
from opadapt.measure.adb import connection as connection_module
from opadapt.measure.adb import transport as transport_module
from opadapt.measure.adb.server import AdbServer
from opadapt.measure.adb.streams import Refusal, receive, send
from opadapt.measure.adb.transport import AdbTransport
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.fleet import FleetDevice
from opadapt.measure.opening import open_device
from opadapt.measure.timing import Timing
from opadapt.measure.transport import AGENT

SLOW = Timing(blocks=6, min_block_s=0.003, min_runs=3, warmup_s=2, timeout_s=60)


def test_the_agent_travels_once_and_its_folder_goes_with_it(adb: FakeAdbServer) -> None:
    phone = adb.phones["one"]
    for _ in range(2):
        with device(adb) as opened:
            session = Path(opened.hello()["folder"])
            assert session.is_relative_to(phone.storage) and session.is_dir()
        assert not session.exists()
    assert len([path for path in phone.sent if "agent-" in path]) == 1
    (left,) = agents(phone)
    assert (phone.storage / left).read_bytes() == AGENT.read_bytes()


@pytest.mark.parametrize("address", ["phone.yaml", "phone.yaml@one"])
def test_devices_are_opened_by_their_serial_numbers(
    adb: FakeAdbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    path = tmp_path / "phone.yaml"
    path.write_text("name: phone\ndescription: a phone\ntransport: adb\narch: host\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb.port))
    monkeypatch.setattr(transport_module, "FOLDER", str(adb.phones["one"].storage))
    with open_device(address) as opened:
        assert Path(opened.hello()["folder"]).is_relative_to(adb.phones["one"].storage)


def test_a_spoilt_copy_of_the_agent_is_replaced(adb: FakeAdbServer) -> None:
    phone = adb.phones["one"]
    with device(adb):
        pass
    (name,) = agents(phone)
    (phone.storage / name).write_text("import sys; sys.exit(7)")
    with device(adb) as opened:
        assert opened.hello()["protocol"] == 1


def test_an_agent_that_arrives_changed_is_not_started(adb: FakeAdbServer) -> None:
    adb.phones["one"].flip = True
    with pytest.raises(DeviceError, match="not what was sent"):
        device(adb).hello()
    assert not any("agent-" in command and "exec" in command for command in adb.phones["one"].started)
    assert agents(adb.phones["one"]) == []


def test_files_of_any_size_arrive_as_they_were_sent(adb: FakeAdbServer) -> None:
    there = transport(adb)
    there.start()
    folder = there.request({"do": "hello"}, 60)["folder"]
    for size in (0, 1, (1 << 16) - 1, 1 << 16, (1 << 20) + 17):
        data = np.random.default_rng(size).bytes(size)
        there.put(data, f"{folder}/{hashed(data)}")
        assert there.get(f"{folder}/{hashed(data)}") == data
    there.close()


def test_a_file_that_arrives_changed_is_refused(adb: FakeAdbServer) -> None:
    there = transport(adb)
    there.start()
    path = there.request({"do": "hello"}, 60)["folder"] + "/file"
    adb.phones["one"].flip = True
    with pytest.raises(DeviceError, match="arrives changed"):
        there.put(b"abc", path)
    assert not Path(path).exists() and adb.phones["one"].sent.count(f"{path}.part") == 2
    adb.phones["one"].flip = False
    there.put(b"abc", path)
    assert there.get(path) == b"abc"
    there.close()


def test_a_command_keeps_stdout_stderr_and_exit_code_apart(adb: FakeAdbServer) -> None:
    found = transport(adb).connection.run(["sh", "-c", 'echo "out;*"; echo "it\'s err" >&2; exit 3'])
    assert (found.code, found.stdout, found.stderr) == (3, b"out;*\n", b"it's err\n")


def test_android_before_7(adb: FakeAdbServer) -> None:
    adb.phones["one"].features = "cmd"
    with pytest.raises(DeviceError, match="too old") as error:
        device(adb).hello()
    assert "Android 7" in str(error.value.expected)


def test_a_phone_without_python(adb: FakeAdbServer, tmp_path: Path) -> None:
    adb.phones["bare"] = Phone(tmp_path / "bare", python=None)
    with pytest.raises(DeviceError, match="phone bare: nothing there can run the agent") as error:
        device(adb, "bare").hello()
    assert "not found" in str(error.value.found) and "python:" in str(error.value.do)
    assert adb.phones["bare"].sent == []


def test_an_interpreter_without_onnxruntime(adb: FakeAdbServer, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('No module named onnxruntime')")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    adb.phones["poor"] = Phone(tmp_path / "poor", python=str(wrapper))
    with pytest.raises(DeviceError) as error:
        device(adb, "poor").hello()
    assert "No module named onnxruntime" in str(error.value)


def test_storage_is_full(adb: FakeAdbServer, model: bytes, quick: Timing) -> None:
    with device(adb) as opened:
        adb.phones["one"].space = len(model) - 1
        with pytest.raises(FullDisk) as error:
            opened.time([model], quick)
        assert "No space left" in str(error.value.found) and "free storage" in str(error.value.do)
        adb.phones["one"].space = None
        assert opened.time([model], quick).latency_s.shape == (1, quick.blocks)


def test_a_file_that_is_not_there(adb: FakeAdbServer) -> None:
    with pytest.raises(DeviceError, match="cannot be read") as error:
        transport(adb).get("/no/such/file")
    assert "No such file" in str(error.value.found)
    with pytest.raises(DeviceError, match="cannot be written"):
        transport(adb).connection.put(b"x", "/proc/nothing")


def test_a_path_that_adb_cannot_take() -> None:
    here, there = socket.socketpair()
    with here, there:
        for path in ("/a\0b", "/" + "a" * 1025):
            with pytest.raises(ValueError, match="path"):
                receive(here, path)


def test_a_refusal_in_the_middle_of_a_file_is_heard() -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"FAIL" + (4).to_bytes(4, "little") + b"full")
        there.shutdown(socket.SHUT_RD)
        with pytest.raises(Refusal, match="full"):
            send(here, "/x", bytes(1 << 22))


def test_unplugged_while_measuring_then_plugged_in_again(adb: FakeAdbServer, model: bytes) -> None:
    opened = device(adb)
    session = Path(opened.hello()["folder"])
    with ThreadPoolExecutor(1) as pool:
        times = pool.submit(opened.time, [model], SLOW)
        wait_for(lambda: any(session.glob("*/stage")))
        phone = adb.unplug("one")
        wait_for(lambda: not running_children(phone))  # nothing goes on, but the files wait for us
        assert session.exists() and not times.done()
        adb.phones["one"] = phone
        assert times.result(60).latency_s.shape == (1, SLOW.blocks)
    assert len([path for path in phone.sent if path.endswith(f"{hashed(model)}.part")]) == 1
    assert opened.hello()["folder"] == str(session)
    opened.close()
    assert not session.exists()


def hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_unplugged_for_good(adb: FakeAdbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "LINGER_S", 0.1)
    monkeypatch.setattr(connection_module, "BACK_S", 0.3)
    opened = device(adb)
    session = Path(opened.hello()["folder"])
    phone = adb.unplug("one")
    with pytest.raises(LostDevice, match="phone one is gone") as error:
        opened.conditions()
    assert error.value.found == "not listed by adb" and "opadapt resume" in str(error.value.do)
    wait_for(lambda: not running_agents(phone))
    assert not session.exists()
    opened.close()


def test_the_adb_server_is_gone(adb: FakeAdbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connection_module, "BACK_S", 0.3)
    server = FakeAdbServer()
    server.phones["two"] = Phone(tmp_path / "two")
    with server.running():
        opened = device(server)
        opened.hello()
    with pytest.raises(LostDevice, match="phone two is gone") as error:
        opened.conditions()
    assert "no adb server answers" in str(error.value.found)
    opened.close()


def test_two_runs_on_one_phone(adb: FakeAdbServer) -> None:
    with device(adb) as first:
        second = device(adb)
        with pytest.raises(DeviceError) as error:
            second.hello()
        assert f"{getpass.getuser()}@" in str(error.value)
        first.close()
        with second:
            assert second.hello()["folder"]


def test_unplugged_while_a_file_travels(adb: FakeAdbServer) -> None:
    there = transport(adb)
    there.start()
    path = there.request({"do": "hello"}, 60)["folder"] + "/file"
    phone = adb.phones["one"]
    phone.on_data = lambda: adb.unplug("one")  # after the first packet
    with pytest.raises(LostDevice, match="phone one"):
        there.put(bytes(1 << 24), path)
    adb.phones["one"] = phone
    there.start()
    assert there.request({"do": "hello"}, 60)["folder"] == str(Path(path).parent)
    there.put(b"abc", path)
    assert there.get(path) == b"abc"
    there.close()


def test_a_silent_phone_is_given_up(adb: FakeAdbServer) -> None:
    there = transport(adb)
    there.start()
    there.request({"do": "conditions", "threads": 1}, 60)
    with pytest.raises(LostDevice, match="did not answer in time"):
        there.request({"do": "conditions", "threads": 1}, 0.001)
    adb.phones["one"].frozen = True
    with pytest.raises(LostDevice, match="did not answer in time"):
        there.connection.run(["ls"], timeout_s=0.1)


def test_an_agent_that_is_killed_is_started_again(adb: FakeAdbServer) -> None:
    there = transport(adb)
    there.start()
    hello = there.request({"do": "hello"}, 60)
    os.kill(hello["pid"], 9)
    with pytest.raises(LostDevice, match="ended") as error:
        there.request({"do": "conditions", "threads": 1}, 60)
    assert "exit code 137" in str(error.value)
    there.start()
    assert there.request({"do": "hello"}, 60)["folder"] == hello["folder"]
    there.close()


def test_two_phones_are_a_fleet(adb: FakeAdbServer, tmp_path: Path, model: bytes) -> None:
    adb.phones["two"] = Phone(tmp_path / "two")
    boards = [device(adb, "one"), device(adb, "two")]
    with FleetDevice(FACTS, ("one", "two"), boards) as fleet, ThreadPoolExecutor(2) as pool:
        work = [pool.submit(fleet.time, [model], SLOW) for _ in range(2)]
        assert {times.result(60).conditions["board"] for times in work} == {"one", "two"}
        assert Path(boards[1].hello()["folder"]).is_relative_to(adb.phones["two"].storage)


def test_a_fleet_goes_on_without_a_phone_that_is_not_there(adb: FakeAdbServer, tmp_path: Path) -> None:
    absent = AgentDevice(FACTS, AdbTransport("two", FACTS, AdbServer("127.0.0.1", adb.port)), 1)
    with FleetDevice(FACTS, ("one", "two"), [device(adb, "one"), absent]) as fleet:
        assert fleet.parallel == 1 and [host for host, _ in fleet.losses] == ["two"]

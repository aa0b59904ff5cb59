"""The agent as a process: it outlives its children, and nothing outlives it."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from opadapt.errors import DeviceError, FullDisk, LostDevice
from opadapt.measure import agent
from opadapt.measure.agent import block_order
from opadapt.measure.facts import load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.lock import MeasuringLock
from opadapt.measure.timing import Timing
from opadapt.measure.transport import AGENT, LocalTransport
from opadapt.model.graph import Model
from opadapt.model.save import at_batch

LONG = Timing(warmup_s=60, timeout_s=60)


class Bench:
    """A local device whose agent's process id and children the test may know."""

    def __init__(self, lock: MeasuringLock) -> None:
        self.transport = LocalTransport()
        self.device = LocalDevice(load_facts("local"), 1, self.transport, lock)

    @property
    def pid(self) -> int:
        assert self.transport.pid is not None
        return self.transport.pid


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(MeasuringLock(tmp_path))
    with made.device:
        yield made


@pytest.fixture(scope="module")
def model(cnn: Callable[..., Model]) -> bytes:
    return at_batch(cnn(), 1).SerializeToString()


def at_work(bench: Bench) -> int:
    """The process id of the child, once it runs the model."""
    stage = Path(str(bench.device.hello()["folder"]))
    wait_for(lambda: any("warming" in f.read_text() for f in stage.glob("*/stage")))
    return children(bench.pid)[0]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGKILL"])
def test_a_killed_child_is_an_answer(bench: Bench, model: bytes, quick: Timing, name: str) -> None:
    agent = bench.pid
    thread, raised = in_background(lambda: bench.device.time([model], LONG))
    os.kill(at_work(bench), getattr(signal, name))
    thread.join(20)
    assert len(raised) == 1 and isinstance(raised[0], DeviceError)
    assert f"killed by {name}" in str(raised[0]) and "model 0: warming up" in str(raised[0])
    assert bench.device.time([model], quick).latency_s.shape == (1, quick.blocks)
    assert bench.pid == agent


def test_the_error_names_the_model_that_broke(bench: Bench, model: bytes, quick: Timing) -> None:
    with pytest.raises(DeviceError, match="model 1: making the session"):
        bench.device.time([model, b"garbage"], quick)


def test_a_timeout_is_an_answer(bench: Bench, model: bytes, quick: Timing) -> None:
    agent = bench.pid
    with pytest.raises(DeviceError) as error:
        bench.device.time([model], LONG.model_copy(update={"timeout_s": 1.0}))
    assert "no result within 1 s" in str(error.value) and "timeout_s" in str(error.value)
    assert bench.device.time([model], quick).latency_s.shape == (1, quick.blocks)
    assert bench.pid == agent and not children(agent)


def huge() -> bytes:
    """A model that asks for a pebibyte of memory: more than any process can address."""
    shape = numpy_helper.from_array(np.full(3, 1 << 16, np.int64), "shape")
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["y"], keepdims=0),
    ]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 1, 1]), ("y", []))
    ]
    graph = helper.make_graph(nodes, "huge", values[:1], values[1:], [shape])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = proto.SerializeToString()
    return data


def test_running_out_of_memory_is_an_answer(bench: Bench, model: bytes, quick: Timing) -> None:
    agent = bench.pid
    with pytest.raises(DeviceError, match="model 1: ") as error:
        bench.device.time([model, huge()], quick)
    assert error.value.do == "use a smaller model or batch" and not isinstance(error.value, LostDevice)
    assert bench.device.time([model], quick).latency_s.shape == (1, quick.blocks)
    assert bench.pid == agent


_INTERRUPTED = """
from pathlib import Path
from opadapt.measure.facts import load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.lock import MeasuringLock
from opadapt.measure.timing import Timing
model = Path("model.onnx").read_bytes()
with LocalDevice(load_facts("local"), 1, lock=MeasuringLock(Path("lock"))) as device:
    print(device.hello()["pid"], device.hello()["folder"], flush=True)
    try:
        device.time([model], Timing(warmup_s=3600, timeout_s=3600))
    except KeyboardInterrupt:
        times = device.time([model], Timing(blocks=6, min_block_s=0.001, warmup_s=0))
        print("interrupted", len(times.order), device.hello()["pid"])
"""


def test_ctrl_c_in_a_measurement_is_no_broken_model(tmp_path: Path, model: bytes) -> None:
    """It interrupts, at once, and what is measured next is measured by another agent."""
    (tmp_path / "model.onnx").write_bytes(model)
    command = [sys.executable, "-c", _INTERRUPTED]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        pid, folder = host.stdout.readline().split()
        try:
            wait_for(lambda: any("warming" in f.read_text() for f in Path(folder).glob("*/stage")))
            host.send_signal(signal.SIGINT)
            said = host.communicate(timeout=30)[0].split()
        finally:
            host.kill()
    assert said[:2] == ["interrupted", "6"] and said[2] != pid
    assert not alive(int(pid)) and not Path(folder).exists()


def test_files_of_a_request_are_removed(bench: Bench, model: bytes, quick: Timing) -> None:
    bench.device.profile(model, quick)
    with pytest.raises(DeviceError):
        bench.device.profile(b"garbage", quick)
    assert list(Path(str(bench.device.hello()["folder"])).iterdir()) == []


def test_nothing_is_left_when_stdin_closes(bench: Bench) -> None:
    folder, pid = Path(str(bench.device.hello()["folder"])), bench.pid
    (folder / "some.model").write_bytes(b"x")
    bench.device.close()
    assert not folder.exists() and not alive(pid)


def test_nothing_is_left_when_stdin_closes_in_the_middle_of_work(bench: Bench, model: bytes) -> None:
    folder, pid = Path(str(bench.device.hello()["folder"])), bench.pid
    thread, raised = in_background(lambda: bench.device.time([model], LONG))
    child = at_work(bench)
    bench.transport.close()
    thread.join(20)
    assert len(raised) == 1 and isinstance(raised[0], DeviceError)
    wait_for(lambda: not alive(child) and not alive(pid) and not folder.exists())


def test_onnxruntime_leaves_nothing_in_the_home_folder(
    tmp_path: Path, model: bytes, quick: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    bench = Bench(MeasuringLock(tmp_path))
    with bench.device as device:
        device.time([model], quick)
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(bench: Bench, model: bytes, number: signal.Signals) -> None:
    folder, pid = Path(str(bench.device.hello()["folder"])), bench.pid
    thread, raised = in_background(lambda: bench.device.time([model], LONG))
    child = at_work(bench)
    os.kill(pid, number)
    wait_for(lambda: not alive(child) and not alive(pid) and not folder.exists())
    bench.device.close()  # else the work is begun anew
    thread.join(20)
    assert len(raised) == 1


def test_a_lost_agent_is_started_again_and_leaves_nothing(bench: Bench, model: bytes) -> None:
    folder, pid = Path(str(bench.device.hello()["folder"])), bench.pid
    timing = LONG.model_copy(update={"blocks": 6, "warmup_s": 1.5})
    thread, raised = in_background(lambda: bench.device.time([model], timing))
    child = at_work(bench)
    os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert not raised and bench.pid != pid
    wait_for(lambda: not alive(child))  # it watches its own stdin
    assert not folder.exists()  # SIGKILL left the agent no time to tidy up


def test_an_agent_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not start"):
        LocalTransport(python=str(tmp_path / "nothing")).start()
    silent = LocalTransport(agent=tmp_path / "missing.py")
    silent.start()
    with pytest.raises(DeviceError, match="the agent ended"):
        silent.request({"do": "hello"}, 20)


def test_a_full_disk_of_this_machine_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.symlink_to("/dev/full")
    with pytest.raises(FullDisk, match="cannot be written") as error:
        LocalTransport().put(b"x" * 10, str(path))
    assert error.value.expected == f"10 bytes for {path}" and "No space left" in str(error.value.found)
    assert not path.is_symlink()


def test_another_agent_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / "agent.py"
    changed.write_text(AGENT.read_text() + "\n# another version\n")
    device = LocalDevice(load_facts("local"), 1, LocalTransport(agent=changed), MeasuringLock(tmp_path))
    with pytest.raises(DeviceError, match="another agent"):
        device.hello()


def test_another_kind_of_board_is_refused(tmp_path: Path) -> None:
    facts = load_facts("local").model_copy(update={"arch": "riscv64"})
    device = LocalDevice(facts, 1, lock=MeasuringLock(tmp_path))
    with pytest.raises(DeviceError, match="not that kind of board"):
        device.hello()


def test_malformed_requests_are_answered() -> None:
    agent = subprocess.Popen([sys.executable, str(AGENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdin is not None and agent.stdout is not None
    for line in (b"not json", b"[1, 2]", b"{}", b'{"id": 7, "do": "dance"}', b'{"id": 8, "do": "forget"}'):
        agent.stdin.write(line + b"\n")
        agent.stdin.flush()
        answer = json.loads(agent.stdout.readline())
        assert answer["error"]["kind"] == "request"
    assert answer["id"] == 8
    agent.stdin.write(b'{"do": "forget", "paths": ["/etc/passwd", "' + str(AGENT).encode() + b'"]}\n')
    agent.stdin.flush()
    assert json.loads(agent.stdout.readline())["removed"] == 0 and AGENT.exists()
    agent.stdin.close()
    assert agent.wait(10) == 0
    agent.stdout.close()


def test_the_agent_is_one_file_for_python_3_9() -> None:
    tree = ast.parse(AGENT.read_text(), feature_version=(3, 9))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    assert names - sys.stdlib_module_names == {"numpy", "onnxruntime"}
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))


def test_block_order() -> None:
    assert block_order(1, 3) == [0, 0, 0]
    assert block_order(2, 4) == [0, 1, 1, 0, 1, 0, 0, 1]
    assert block_order(3, 4) == [0, 1, 2, 2, 1, 0, 1, 2, 0, 0, 2, 1]
    for models in range(1, 9):  # over a mirrored pair every model has the same mean place: drift cancels
        pair = block_order(models, 2)
        places = [sum(i for i, m in enumerate(pair) if m == model) for model in range(models)]
        assert len(set(places)) == 1


@pytest.mark.parametrize(
    ("min_s", "min_runs", "runs"), [(0.010, 3, 10), (0.0105, 1, 11), (0.0, 5, 5), (0.002, 5, 5)]
)
def test_a_block_is_long_enough_and_has_enough_runs(
    monkeypatch: pytest.MonkeyPatch, min_s: float, min_runs: int, runs: int
) -> None:
    """Each run takes a millisecond by a clock of the test's own; the first of all warms the caches."""
    done: list[None] = []
    monkeypatch.setattr(agent, "time", SimpleNamespace(perf_counter_ns=lambda: 1_000_000 * len(done)))
    assert agent._block(lambda: done.append(None), min_s, min_runs) == [1_000_000] * runs
    assert len(done) == 1 + runs


def test_android_tells_no_load_and_has_no_shared_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused() -> tuple[float, float, float]:
        raise PermissionError(13, "Permission denied", "/proc/loadavg")

    monkeypatch.setattr(os, "getloadavg", refused)
    assert agent.conditions([])["load_average"] == []
    assert agent.lock_place(tmp_path / "lock") == tmp_path / "lock"
    assert agent.lock_place(tmp_path / "tmp/lock") == AGENT.with_name("board.lock")

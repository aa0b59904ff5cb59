"""Small models made by hand, short timings, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from boards.emulated import TYPE, taken
from boards.sshd_server import ALIAS, served
from onnx import TensorProto, helper, numpy_helper
from phone import FakeAdbServer, Phone

from opadapt.measure.adb.server import AdbServer
from opadapt.measure.adb.transport import AdbTransport
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.device import Device
from opadapt.measure.facts import load_facts
from opadapt.measure.fleet import FleetDevice
from opadapt.measure.local import LocalDevice
from opadapt.measure.lock import MeasuringLock
from opadapt.measure.null import NullDevice
from opadapt.measure.opening import open_device
from opadapt.measure.ssh.transport import SshTransport
from opadapt.measure.timing import Timing
from opadapt.model.graph import Model, Source


@pytest.fixture(scope="session")
def quick() -> Timing:
    """As short as a measurement may be."""
    return Timing(blocks=6, min_block_s=0.003, min_runs=3, warmup_s=0.005, profile_s=0.02, timeout_s=300)


@pytest.fixture(scope="session")
def cnn() -> Callable[..., Model]:
    """A residual CNN: conv-relu-conv-add-relu-pool-flatten-gemm, input f32[1,8,size,size]."""

    def make(channels: int = 16, size: int = 16) -> Model:
        rng = np.random.default_rng(0)

        def weight(name: str, *shape: int) -> onnx.TensorProto:
            return numpy_helper.from_array((0.1 * rng.standard_normal(shape)).astype(np.float32), name)

        def conv(name: str, x: str, w: str, y: str) -> onnx.NodeProto:
            return helper.make_node("Conv", [x, w], [y], name=name, pads=[1, 1, 1, 1], kernel_shape=[3, 3])

        nodes = [
            conv("first", "x", "w0", "c0"),
            helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
            conv("second", "r0", "w1", "c1"),
            helper.make_node("Add", ["c1", "r0"], ["a"], name="residual"),
            helper.make_node("Relu", ["a"], ["r1"], name="relu1"),
            helper.make_node("GlobalAveragePool", ["r1"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "w2"], ["y"], name="head"),
        ]
        graph = helper.make_graph(
            nodes,
            "cnn",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, size, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
            [
                weight("w0", channels, 8, 3, 3),
                weight("w1", channels, channels, 3, 3),
                weight("w2", channels, 10),
            ],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        onnx.checker.check_model(proto)
        return Model(proto, Source(None, 17, 8))

    return make


@pytest.fixture(scope="session")
def lock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lock of the tests' own, so that they wait for nobody."""
    return tmp_path_factory.mktemp("lock")


KINDS = ["null", "local", "fleet of null", "fleet of local", "adb", "ssh"]


@pytest.fixture(scope="module", params=[*KINDS, pytest.param("emulated", marks=pytest.mark.slow)])
def device(
    request: pytest.FixtureRequest, lock_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Device]:
    others = {"adb": _over_adb, "ssh": _over_ssh, "emulated": _on_emulated_board}
    if request.param in others:
        yield from others[request.param](tmp_path_factory.mktemp(request.param))
        return
    kind = request.param.removeprefix("fleet of ")
    facts = load_facts(kind)

    def one() -> Device:
        if kind == "null":
            return NullDevice(facts, 1)
        return LocalDevice(facts, 1, lock=MeasuringLock(lock_folder))

    made = one() if kind == request.param else FleetDevice(facts, ("a", "b"), (one(), one()))
    with made as opened:
        yield opened


def _over_ssh(folder: Path) -> Iterator[Device]:
    with served(folder / "board") as server:
        with AgentDevice(server.facts(), SshTransport(ALIAS, server.facts()), 1) as opened:
            yield opened
        server.wait_until_clean()


def _on_emulated_board(folder: Path) -> Iterator[Device]:
    """A real aarch64 onnxruntime and a real SSH server, where such a board runs."""
    with taken() as (alias,), open_device(f"{TYPE}@{alias}") as opened:
        yield opened


def _over_adb(folder: Path) -> Iterator[Device]:
    """A pretended phone that is as quick as this machine, behind a pretended adb server."""
    facts = load_facts("redmi-note-7s").model_copy(update={"arch": "host", "pin_cores": ()})
    server = FakeAdbServer()
    server.phones["0123ABCD"] = phone = Phone(folder)
    with server.running():
        adb = AdbServer("127.0.0.1", server.port)
        with AgentDevice(facts, AdbTransport("", facts, adb, str(phone.storage)), 1) as opened:
            yield opened

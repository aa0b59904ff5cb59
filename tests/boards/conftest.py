"""Boards to connect to: a real OpenSSH server on loopback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from boards.sshd_server import ALIAS, Sshd, Wire, served
from onnx import TensorProto, helper, numpy_helper

from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.ssh.transport import SshTransport
from opadapt.measure.timing import Timing

MakeDevice = Callable[[], AgentDevice]
MakeModel = Callable[..., bytes]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A board that the alias ``board`` leads to, for a user whose home is ``sshd.client``."""
    with served(tmp_path / "board") as server:
        yield server


@pytest.fixture
def wire(sshd: Sshd) -> Iterator[Wire]:
    """The alias leads through this wire."""
    made = Wire(sshd.port)
    sshd.trust(made.port)
    sshd.reach(made.port)
    yield made
    made.close()


@pytest.fixture
def board(sshd: Sshd, request: pytest.FixtureRequest) -> Iterator[MakeDevice]:
    """Makes devices on the board; they are closed in the end, and then nothing may be left there."""
    if (
        "wire" in request.fixturenames
    ):  # it has to outlive them: an agent that hears no goodbye lingers for a minute
        request.getfixturevalue("wire")
    made: list[AgentDevice] = []

    def make() -> AgentDevice:
        made.append(AgentDevice(sshd.facts(), SshTransport(ALIAS, sshd.facts()), 1))
        return made[-1]

    yield make
    for device in made:
        device.close()
    sshd.wait_until_clean()


@pytest.fixture
def small_disk(sshd: Sshd) -> Iterator[Path]:
    """The board's cache on a file system of 3 MB."""
    if os.getuid() != 0:
        pytest.skip("only root mounts a small file system")
    sshd.cache.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "opadapt-test", str(sshd.cache)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this container may not mount")
    yield sshd.cache
    subprocess.run(["umount", str(sshd.cache)], check=True)


@pytest.fixture(scope="session")
def quick() -> Timing:
    """As short as a measurement may be."""
    return Timing(blocks=6, min_block_s=0.003, min_runs=3, warmup_s=0.005, profile_s=0.02, timeout_s=60)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A model y = x w of a size in bytes, input f32[1,64]; ``seed`` makes different ones."""

    def make(size: int = 10_000, seed: int = 0) -> bytes:
        columns = max(1, size // (4 * 64))
        weight = np.random.default_rng(seed).standard_normal((64, columns)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
            [numpy_helper.from_array(weight, "w")],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(proto)
        return proto.SerializeToString()

    return make

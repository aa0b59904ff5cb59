"""The null device is a function of the model alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opadapt.measure.null import NullDevice
from opadapt.measure.opening import open_device
from opadapt.measure.profile import BETWEEN, profile
from opadapt.measure.timing import BlockTimes, Timing, faster, noise_floor, ratio
from opadapt.model.graph import Model
from opadapt.model.save import at_batch


def conv_model(groups: int, channels: int = 16, size: int = 32) -> bytes:
    weight = np.zeros((channels, channels // groups, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=groups)
    shape = [1, channels, size, size]
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_repeats_itself_exactly(cnn: Callable[..., Model], quick: Timing) -> None:
    model = at_batch(cnn(), 1).SerializeToString()
    with open_device("null") as a, open_device("null") as b:
        first, second = a.time([model, model], quick), b.time([model, model], quick)
        assert np.array_equal(first.latency_s, second.latency_s)
        assert np.ptp(first.latency_s) == 0
        assert a.profile(model, quick).kernels == b.profile(model, quick).kernels
        assert noise_floor(a, model, quick) == 0


def test_is_the_same_in_another_process() -> None:
    program = (
        "import sys; from opadapt.measure.opening import open_device; from opadapt.measure.timing import Timing\n"
        "print(repr(float(open_device('null').time([sys.stdin.buffer.read()], Timing()).latency_s[0, 0])))"
    )
    model = conv_model(4)
    done = subprocess.run([sys.executable, "-c", program], input=model, capture_output=True, check=True)
    assert float(done.stdout) == open_device("null").time([model], Timing()).latency_s[0, 0]


def test_costs_follow_the_facts() -> None:
    device = open_device("null")
    cost = device.facts.cost
    assert cost is not None
    macs, moved = 16 * 16 * 9 * 32 * 32, 4 * (2 * 16 * 32 * 32 + 16 * 16 * 9)
    expected = cost.overhead_s + macs / cost.dense_macs_per_s + moved / cost.bytes_per_s
    assert device.time([conv_model(1)], Timing()).latency_s[0, 0] == pytest.approx(expected, rel=1e-12)


def test_cheap_candidates_win_but_grouping_alone_does_not(quick: Timing) -> None:
    device = open_device("null")
    times = device.time([conv_model(1), conv_model(4), conv_model(16)], quick)
    assert not faster(ratio(times, 0, 1), 0.02)  # a measured fact: 4 groups of 16 channels are slower than 1
    assert faster(ratio(times, 0, 2), 0.02)


@pytest.mark.parametrize("wall", [0.5, 1.0, 2.0])
def test_time_between_the_kernels_belongs_to_no_node(
    cnn: Callable[..., Model], quick: Timing, monkeypatch: pytest.MonkeyPatch, wall: float
) -> None:
    """A wall time of half, once and twice what all kernels take."""
    plain = NullDevice.time

    def slower(*arguments: Any) -> BlockTimes:
        times = plain(*arguments)
        return dataclasses.replace(times, latency_s=wall * times.latency_s)

    monkeypatch.setattr(NullDevice, "time", slower)
    with open_device("null") as device:
        found = profile(device, cnn(), quick)
    assert found.covered == pytest.approx(min(1.0, 1 / wall))
    assert sum(n.latency_s for n in found.nodes) == pytest.approx(found.covered * found.wall.value)
    between = [(BETWEEN, pytest.approx(found.wall.value / 2))] if wall == 2 else []
    assert list(found.unattributed) == between


def test_nodes_without_names_get_some(quick: Timing) -> None:
    raw = open_device("null").profile(conv_model(1), quick)
    assert [k.name for k in raw.kernels] == ["Conv_0"]
    assert [n.name for n in onnx.load_model_from_string(raw.optimized).graph.node] == ["Conv_0"]

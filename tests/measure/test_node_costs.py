"""MACs, parameters and bytes by hand; profiled times brought to the wall; ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from pydantic import ValidationError

from opadapt.errors import DeviceError
from opadapt.measure.cost import OpCost, node_cost
from opadapt.measure.device import Kernel
from opadapt.measure.profile import NodeCost, Profile, match_kernels, shares, wall_times
from opadapt.measure.rank import RankConfig, rank_nodes, rank_regions
from opadapt.measure.timing import Estimate

Shape = tuple[int, ...]


@pytest.mark.parametrize(
    ("op_type", "shapes", "output", "attrs", "macs"),
    [
        ("Conv", [(1, 16, 32, 32), (32, 16, 3, 3)], (1, 32, 16, 16), {}, 32 * 16 * 16 * 16 * 9),
        ("Conv", [(1, 16, 32, 32), (16, 1, 3, 3)], (1, 16, 32, 32), {"group": 16}, 16 * 32 * 32 * 9),
        ("Conv", [(1, 7, 64), (8, 7, 5)], (1, 8, 60), {}, 8 * 60 * 7 * 5),
        ("ConvTranspose", [(1, 8, 4, 4), (8, 6, 2, 2)], (1, 6, 8, 8), {}, 8 * 4 * 4 * 6 * 4),
        ("Gemm", [(1, 64), (64, 10), (10,)], (1, 10), {}, 640),
        ("Gemm", [(64, 1), (10, 64)], (1, 10), {"transA": 1, "transB": 1}, 640),
        ("MatMul", [(2, 3, 5), (5, 7)], (2, 3, 7), {}, 2 * 3 * 5 * 7),
        ("MatMul", [(2, 3, 5), (2, 5, 7)], (2, 3, 7), {}, 2 * 3 * 5 * 7),
        ("LSTM", [(10, 1, 6), (2, 32, 6), (2, 32, 8)], (10, 2, 1, 8), {}, 10 * 2 * 32 * (6 + 8)),
        ("Relu", [(1, 8, 4, 4)], (1, 8, 4, 4), {}, 0),
        ("Conv", [(), ()], (1, 8), {}, 0),  # unknown shapes
    ],
)
def test_macs(op_type: str, shapes: list[Shape], output: Shape, attrs: dict[str, Any], macs: int) -> None:
    names = [f"t{i}" for i in range(len(shapes))]
    node = helper.make_node(op_type, names, ["y"], **attrs)
    known = {n: s for n, s in zip(names, shapes, strict=True) if s}
    assert node_cost(node, {**known, "y": output}, set()).macs == macs


def test_parameters_and_bytes() -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=4)
    shapes = {"x": (1, 8, 4, 4), "w": (8, 2, 1, 1), "b": (8,), "y": (1, 8, 4, 4)}
    cost = node_cost(node, shapes, {"w", "b"})
    assert cost.parameters == 16 + 8
    assert cost.bytes == 4 * (128 + 16 + 8 + 128)
    assert cost.kind == "grouped"
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    assert node_cost(reshape, shapes, {"shape"}) == OpCost(0, 0, 0)


def kernels(*latencies_s: float) -> list[Kernel]:
    return [Kernel(f"k{i}", "Conv", latency) for i, latency in enumerate(latencies_s)]


def test_the_price_of_profiling_is_taken_off_every_kernel() -> None:
    true = np.array([1e-6, 5e-6, 100e-6, 20e-6])
    found = wall_times(kernels(*(true + 5e-6)), float(true.sum()), float(true.sum()))
    assert [k.latency_s for k in found] == pytest.approx(list(true))


@pytest.mark.parametrize(
    ("wall", "expected"), [(1e-6, 1e-6), (30e-6, 30e-6), (53e-6, 53e-6), (500e-6, 53e-6)]
)
def test_kernels_fill_the_wall_time_at_most(wall: float, expected: float) -> None:
    """Inflated times are brought down to the wall; time that no kernel took is not given to any."""
    found = wall_times(kernels(6e-6, 7e-6, 40e-6), wall, wall)
    assert sum(k.latency_s for k in found) == pytest.approx(expected)
    assert all(k.latency_s > 0 for k in found)


def test_a_profile_without_kernels_is_refused() -> None:
    with pytest.raises(DeviceError, match="no kernel times"):
        wall_times([], 1e-3, 1e-3)


def test_a_block_that_others_disturbed_is_no_time_between_kernels() -> None:
    found = wall_times(kernels(6e-6, 7e-6, 40e-6), wall_s=80e-6, fastest_s=50e-6)
    assert sum(k.latency_s for k in found) == pytest.approx(80e-6)
    found = wall_times(kernels(6e-6, 7e-6, 40e-6), wall_s=80e-6, fastest_s=60e-6)
    assert sum(k.latency_s for k in found) == pytest.approx(80e-6 * 53 / 60)


def test_kernels_match_nodes_by_name_then_by_order() -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        helper.make_node("Relu", ["b"], ["c"], name="same"),
        helper.make_node("Conv", ["c"], ["d"]),
        helper.make_node("Conv", ["d"], ["e"]),
    ]
    profiled = [("Conv_7", "Conv"), ("same", "Relu"), ("Conv_9", "Conv"), ("same", "Relu"), ("x", "Pad")]
    found = match_kernels([Kernel(name, op, 1.0) for name, op in profiled], nodes)
    assert found == [2, 0, 3, 1, None]


def test_fused_time_is_divided() -> None:
    conv, relu = OpCost(900, 9, 80), OpCost(0, 0, 40)
    small, pool = OpCost(100, 9, 8), OpCost(0, 0, 120)
    assert shares("FusedConv", {"c": ("Conv", conv), "r": ("Relu", relu)}) == {"c": 1.0, "r": 0.0}
    assert shares("Fused", {"c": ("Conv", conv), "s": ("Conv", small)}) == {"c": 0.9, "s": 0.1}
    assert shares("Fused", {"r": ("Relu", relu), "p": ("Pool", pool)}) == {"r": 0.25, "p": 0.75}
    assert shares("Relu", {"r": ("Relu", relu), "p": ("Pool", pool)}) == {"r": 1.0}  # the other vanished
    free = OpCost(0, 0, 0)
    assert shares("X", {"a": ("Reshape", free), "b": ("Squeeze", free)}) == {"a": 0.5, "b": 0.5}
    assert shares("X", {}) == {}


PROFILE = Profile(
    wall=Estimate(1e-3, 0.9e-3, 1.1e-3),
    nodes=(
        NodeCost("stem", "Conv", 0.6e-3, 100, 5000),
        NodeCost("act", "Relu", 0.1e-3, 0, 0),
        NodeCost("head", "Gemm", 0.2e-3, 900, 900),
    ),
    covered=0.9,
    unattributed=(("ReorderInput", 0.1e-3),),
    conditions={},
)


def test_ranks_by_latency_by_parameters_or_between() -> None:
    by_time = rank_nodes(PROFILE, RankConfig(weight=1))
    assert [(r.name, r.score) for r in by_time] == [
        ("stem", pytest.approx(0.6)),
        ("head", pytest.approx(0.2)),
        ("act", pytest.approx(0.1)),
    ]
    by_size = rank_nodes(PROFILE, RankConfig(weight=0))
    assert [(r.name, r.score) for r in by_size] == [("head", 0.9), ("stem", 0.1), ("act", 0.0)]
    mean = rank_nodes(PROFILE, RankConfig(weight=0.5))
    assert [(r.name, r.score) for r in mean[:2]] == [
        ("head", pytest.approx(0.55)),
        ("stem", pytest.approx(0.35)),
    ]


def test_a_region_is_the_sum_of_its_nodes() -> None:
    regions = [("tail", ["head"]), ("block", ["stem", "act", "folded away"])]
    block, tail = rank_regions(PROFILE, regions, RankConfig())
    assert (block.name, block.parameters, block.macs) == ("block", 100, 5000)
    assert block.latency_s == pytest.approx(0.7e-3) and block.latency_share == pytest.approx(0.7)
    assert block.parameter_share == pytest.approx(0.1)
    assert tail.name == "tail"


def test_the_weight_is_a_share() -> None:
    with pytest.raises(ValidationError):
        RankConfig(weight=1.5)

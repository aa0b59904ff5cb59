"""Which groups a run searches, by the weight of latency against parameters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opadapt.experiment import Experiment
from opadapt.measure.profile import NodeCost, Profile
from opadapt.measure.timing import Estimate
from opadapt.model.graph import Model, Source
from opadapt.model.normalise import normalise
from opadapt.search.space import load_space
from opadapt.steps.explore import rank_groups


@pytest.fixture(scope="module")
def model() -> Model:
    """Two equal convolutions on an image, few weights; a large matrix behind them."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w1"], ["b"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w2"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "two costs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 200])],
        [weight("w0", 2, 2, 3, 3), weight("w1", 2, 2, 3, 3), weight("w2", 2, 200)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return normalise(proto, Source(None, 20, 9))


PROFILE = Profile(
    wall=Estimate(1e-3, 1e-3, 1e-3),
    nodes=(
        NodeCost("first", "Conv", 0.4e-3, 36, 2304),
        NodeCost("second", "Conv", 0.3e-3, 36, 2304),
        NodeCost("pool", "GlobalAveragePool", 0.05e-3, 0, 0),
        NodeCost("flat", "Reshape", 0.05e-3, 0, 0),
        NodeCost("head", "Gemm", 0.1e-3, 400, 400),
    ),
    covered=0.9,
    unattributed=(("between kernels", 0.1e-3),),
    conditions={},
)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (1.0, [("first", 0.7), ("head", 0.1)]),
        (0.0, [("head", 400 / 472), ("first", 72 / 472)]),
        (0.5, [("head", 0.05 + 200 / 472), ("first", 0.35 + 36 / 472)]),
    ],
)
def test_the_weight_decides_which_group_is_worst(
    model: Model, weight: float, expected: list[tuple[str, float]]
) -> None:
    experiment = Experiment.model_validate(
        {"model": "m.onnx", "rank": {"weight": weight}, "search": {"max_region_nodes": 1, "top_groups": 2}}
    )
    context: Any = SimpleNamespace(experiment=experiment, space=load_space())
    found = rank_groups(context, model, PROFILE)
    assert [(r.group.members[0].region.name, r.score) for r in found] == [
        (name, pytest.approx(score)) for name, score in expected
    ]
    first = next(r for r in found if r.group.members[0].region.name == "first")
    assert len(first.group.members) == 2 and first.parameters == 72
    assert first.latency_s == pytest.approx(0.7e-3) and first.member_s == pytest.approx(0.35e-3)

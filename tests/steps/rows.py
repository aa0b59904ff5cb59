"""A network of three equal convolutions in a row, none of which has a bias, and offers to replace them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from opadapt.model import validate
from opadapt.model.graph import Model
from opadapt.model.regions import Group, Member, groups, regions
from opadapt.search.candidate import Candidate
from opadapt.search.select import Option
from opadapt.search.space import load_space
from opadapt.search.vary import seeds
from opadapt.steps import students
from opadapt.steps.context import Context
from opadapt.steps.explore import original_candidate
from opadapt.steps.offer import Offer
from opadapt.steps.students import Student, build
from opadapt.steps.training import Trained

CHANNELS, SIZE = 16, 16  # so much that the null device finds separable convolutions faster


def write_row(path: Path) -> Path:
    """input -> a -> relu -> b -> relu -> c -> relu -> mean -> four scores."""
    rng = np.random.default_rng(0)
    weights = {"head.w": rng.standard_normal((CHANNELS, 4))}
    nodes, x = [], "input"
    for name in "abc":
        weights[f"{name}.w"] = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 12
        nodes.append(helper.make_node("Conv", [x, f"{name}.w"], [name], name, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"], f"{name}.relu"))
        x = f"{name}.relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "head.w"], ["scores"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "row",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def group_of(model: Model, node: str) -> Group:
    """The group of equal operators that this node is in."""
    return next(
        g
        for g in groups(model, [r for r in regions(model) if r.kind == "operator"])
        if any(m.region.nodes == (node,) for m in g.members)
    )


def separable(group: Group) -> Candidate:
    """Each of its convolutions as a depthwise and a pointwise one."""
    return next(
        c for c in seeds(original_candidate(group), load_space(), 0) if "depthwise_pointwise" in c.origin
    )


def offers_of(
    group: Group, saved_s: float = 1e-6, damages: Mapping[str, float] | None = None
) -> dict[str, Offer]:
    """The separable form for every member, untrained, by the name of its node."""
    candidate = separable(group)
    return {
        member.region.name: _offer(
            member, candidate, number, saved_s, (damages or {}).get(member.region.name, 1.0)
        )
        for number, member in enumerate(group.members)
    }


def _offer(member: Member, candidate: Candidate, number: int, saved_s: float, damage: float) -> Offer:
    region = member.region
    option = Option(region.name, region.nodes, saved_s, damage, f"{region.name} separable")
    trained = Trained(candidate.bindings[number], 0.1)
    return Offer(option, "row", member, candidate, trained, 1e-5)


def student(model: Model, offers: Sequence[Offer]) -> Student:
    return Student(tuple(offers), build(model, offers), 1.5)


def saving(context: Context, claimed: float = 1.0) -> tuple[float, float, dict[str, Offer]]:
    """Wall time, what one replacement really saves (both in seconds), and offers that claim a multiple of it."""
    model = context.original
    group = group_of(model, "a")
    wall_s = 1.0  # the null device's own times do not matter: only ratios are used
    one = offers_of(group)["a"]
    faster = students._speedup(context, model, student(model, [one]).spliced.model)
    saved_s = wall_s * (1 - 1 / faster)
    damages = {"a": 3.0, "b": 1.0, "c": 2.0}
    offers = offers_of(group, claimed * saved_s, damages)
    return wall_s, saved_s, {offer.option.key: offer for offer in offers.values()}


def part(model: Model, source: str, target: str, x: np.ndarray) -> np.ndarray:
    """What a part of the model between two tensors makes of x."""
    cut = onnx.utils.Extractor(model.proto).extract_model([source], [target])
    return np.asarray(validate.run(cut, {source: x})[0])

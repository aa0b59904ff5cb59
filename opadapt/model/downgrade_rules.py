"""How operators are said at older opsets. Adding one: a function, a row in ``RULES``, a case in the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from opadapt.model.graph import NDArrayAny
from opadapt.model.workbench import attributes

Nodes = list[onnx.NodeProto]
Step = tuple[str, Sequence[str], dict[str, Any]]


class NoForm(Exception):
    """Why a node cannot be said at the older opset."""


@dataclass
class Context:
    """What a rule may look at, and where it puts new constants."""

    opset: int
    constants: dict[str, NDArrayAny]
    ranks: Mapping[str, int]
    fresh: Callable[[str], str]
    added: list[onnx.TensorProto]

    def constant(self, node: onnx.NodeProto, index: int) -> NDArrayAny | None:
        """The value of a constant input, None where it is left out. Raises NoForm where it is computed."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self.constants:
            raise NoForm(f"input {index} is computed, but an attribute there")
        return self.constants[node.input[index]]

    def ints(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        value = self.constant(node, index)
        return None if value is None else [int(v) for v in np.ravel(value)]

    def rank(self, tensor: str) -> int:
        if tensor not in self.ranks:
            raise NoForm(f"the rank of '{tensor}' is unknown")
        return self.ranks[tensor]

    def tensor(self, node: onnx.NodeProto, value: NDArrayAny) -> str:
        name = self.fresh(f"{node.name}/constant")
        self.added.append(numpy_helper.from_array(value, name))
        return name


def _node(op: str, old: onnx.NodeProto, inputs: Sequence[str], **given: Any) -> onnx.NodeProto:
    kept = {k: v for k, v in given.items() if v is not None}
    return helper.make_node(op, list(inputs), list(old.output), old.name, **kept)


def _axes_to_attribute(node: onnx.NodeProto, context: Context) -> Nodes:
    given = attributes(node)
    axes = context.ints(node, 1)
    if given.pop("noop_with_empty_axes", 0) and not axes:
        return [_node("Identity", node, node.input[:1])]
    # reductions take the batch-free axes as they are; opsets below 11 know no negative ones
    if axes and min(axes) < 0:
        rank = context.rank(node.input[0]) + (len(axes) if node.op_type == "Unsqueeze" else 0)
        axes = [a % rank for a in axes]
    return [_node(node.op_type, node, node.input[:1], axes=axes or None, **given)]


def _split(node: onnx.NodeProto, context: Context) -> Nodes:
    given = attributes(node)
    given.pop("num_outputs", None)  # without sizes the parts are equal; the check against the model tells
    if context.opset >= 13:
        return [_node("Split", node, node.input, **given)]
    return [_node("Split", node, node.input[:1], split=context.ints(node, 1), **given)]


def _pad(node: onnx.NodeProto, context: Context) -> Nodes:
    pads, value, axes = context.ints(node, 1) or [], context.constant(node, 2), context.ints(node, 3)
    if axes is not None:
        rank = context.rank(node.input[0])
        full = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            full[axis % rank], full[rank + axis % rank] = pads[i], pads[len(axes) + i]
        pads = full
    mode = attributes(node).get("mode", b"constant")
    if mode == b"wrap":
        raise NoForm("mode 'wrap' came with opset 19")
    if context.opset >= 11:
        inputs = [node.input[0], context.tensor(node, np.array(pads, np.int64)), *node.input[2:3]]
        return [_node("Pad", node, inputs, mode=mode)]
    fill = 0.0 if value is None else float(np.ravel(value)[0])
    return [_node("Pad", node, node.input[:1], pads=pads, value=fill, mode=mode)]


def _slice(node: onnx.NodeProto, context: Context) -> Nodes:
    steps = context.ints(node, 4)
    if steps is not None and set(steps) != {1}:
        raise NoForm("steps other than 1 came with opset 10")
    starts, ends, axes = (context.ints(node, i) for i in (1, 2, 3))
    return [_node("Slice", node, node.input[:1], starts=starts, ends=ends, axes=axes)]


def _clip(node: onnx.NodeProto, context: Context) -> Nodes:
    bounds = [context.constant(node, i) for i in (1, 2)]
    low, high = (None if b is None else float(np.ravel(b)[0]) for b in bounds)
    return [_node("Clip", node, node.input[:1], min=low, max=high)]


def _softmax(node: onnx.NodeProto, context: Context) -> Nodes:
    """Before 13 the axis started a block that was flattened: equal for the last axis, moved there if not."""
    rank = context.rank(node.input[0])
    axis = attributes(node).get("axis", -1) % rank
    if axis == rank - 1:
        return [_node(node.op_type, node, node.input, axis=rank - 1)]
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    moved, done = context.fresh(f"{node.name}/moved"), context.fresh(f"{node.name}/normalised")
    return [
        helper.make_node("Transpose", node.input, [moved], moved, perm=perm),
        helper.make_node(node.op_type, [moved], [done], done, axis=rank - 1),
        _node("Transpose", node, [done], perm=perm),
    ]


def _resize(node: onnx.NodeProto, context: Context) -> Nodes:
    given = attributes(node)
    for name, default in (("antialias", 0), ("keep_aspect_ratio_policy", b"stretch")):
        if given.pop(name, default) != default:
            raise NoForm(f"attribute {name} came with opset 18")
    if "axes" in given:
        raise NoForm("attribute axes came with opset 18")
    if context.opset >= 13:
        return [_node("Resize", node, node.input, **given)]
    inputs = [*node.input, *[""] * (4 - len(node.input))]
    if context.opset >= 11:  # roi and scales are required there
        inputs[1] = inputs[1] or context.tensor(node, np.zeros(0, np.float32))
        inputs[2] = inputs[2] or context.tensor(node, np.zeros(0, np.float32))
        return [_node("Resize", node, inputs if inputs[3] else inputs[:3], **given)]
    transform = given.get("coordinate_transformation_mode", b"half_pixel")
    nearest = given.get("nearest_mode", b"round_prefer_floor")
    mode = given.get("mode", b"nearest")
    plain = mode == b"nearest" and transform == b"asymmetric" and nearest == b"floor"
    if not plain or not inputs[2]:
        raise NoForm("only nearest, asymmetric, floor Resize with scales existed before opset 11")
    return [
        _node("Resize" if context.opset == 10 else "Upsample", node, [inputs[0], inputs[2]], mode="nearest")
    ]


def _gemm(node: onnx.NodeProto, context: Context) -> Nodes:
    inputs = list(node.input)
    if len(inputs) < 3 or not inputs[2]:
        inputs = [*inputs[:2], context.tensor(node, np.zeros(1, np.float32))]
    return [_node("Gemm", node, inputs, **attributes(node))]


def _chain(node: onnx.NodeProto, context: Context, steps: Sequence[Step]) -> Nodes:
    """Several nodes in place of one. Step ``i`` makes ``#i``; the last makes the node's own output."""
    made: list[str] = []
    nodes: Nodes = []
    for number, (op, inputs, settings) in enumerate(steps):
        last = number == len(steps) - 1
        made.append(node.output[0] if last else context.fresh(f"{node.name}/{op}"))
        names = [made[int(name[1:])] if name.startswith("#") else name for name in inputs]
        nodes.append(helper.make_node(op, names, [made[-1]], node.name if last else made[-1], **settings))
    return nodes


def _gelu(node: onnx.NodeProto, context: Context) -> Nodes:
    """The erf form, or the tanh form (arXiv 1606.08415, section 2)."""
    x = node.input[0]

    def number(value: float) -> str:
        return context.tensor(node, np.array(value, np.float32))

    if attributes(node).get("approximate", b"none") == b"none":
        inner: list[Step] = [
            ("Mul", [x, number(2**-0.5)], {}),
            ("Erf", ["#0"], {}),
        ]
    else:
        inner = [
            ("Mul", [x, x], {}),
            ("Mul", ["#0", x], {}),
            ("Mul", ["#1", number(0.044715)], {}),
            ("Add", [x, "#2"], {}),
            ("Mul", ["#3", number((2 / np.pi) ** 0.5)], {}),
            ("Tanh", ["#4"], {}),
        ]
    n = len(inner)
    outer: list[Step] = [
        ("Add", [f"#{n - 1}", number(1.0)], {}),
        ("Mul", [x, f"#{n}"], {}),
        ("Mul", [f"#{n + 1}", number(0.5)], {}),
    ]
    return _chain(node, context, [*inner, *outer])


def _hard_swish(node: onnx.NodeProto, context: Context) -> Nodes:
    x = node.input[0]
    gate: Step = ("HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})
    return _chain(node, context, [gate, ("Mul", [x, "#0"], {})])


def _mish(node: onnx.NodeProto, context: Context) -> Nodes:
    x = node.input[0]
    return _chain(node, context, [("Softplus", [x], {}), ("Tanh", ["#0"], {}), ("Mul", [x, "#1"], {})])


def _layer_normalization(node: onnx.NodeProto, context: Context) -> Nodes:
    if any(node.output[1:]):
        raise NoForm("its mean and deviation outputs are used, and the operator came with opset 17")
    given, x = attributes(node), node.input[0]
    rank = context.rank(x)
    axes = list(range(given.get("axis", -1) % rank, rank))
    epsilon = context.tensor(node, np.array(given.get("epsilon", 1e-5), np.float32))
    steps: list[Step] = [
        ("ReduceMean", [x], {"axes": axes}),
        ("Sub", [x, "#0"], {}),
        ("Mul", ["#1", "#1"], {}),
        ("ReduceMean", ["#2"], {"axes": axes}),
        ("Add", ["#3", epsilon], {}),
        ("Sqrt", ["#4"], {}),
        ("Div", ["#1", "#5"], {}),
        ("Mul", ["#6", node.input[1]], {}),
    ]
    if len(node.input) > 2 and node.input[2]:
        steps.append(("Add", ["#7", node.input[2]], {}))
    return _chain(node, context, steps)


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

# operator -> (the rule is for opsets below this one, the rule)
RULES: dict[str, tuple[int, Callable[[onnx.NodeProto, Context], Nodes]]] = {
    **{f"Reduce{name}": (18, _axes_to_attribute) for name in _REDUCTIONS},
    "ReduceSum": (13, _axes_to_attribute),
    "Squeeze": (13, _axes_to_attribute),
    "Unsqueeze": (13, _axes_to_attribute),
    "Split": (18, _split),
    "Pad": (19, _pad),
    "Slice": (10, _slice),
    "Clip": (11, _clip),
    "Softmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "Resize": (19, _resize),
    "Gemm": (11, _gemm),
    "Gelu": (20, _gelu),
    "HardSwish": (14, _hard_swish),
    "Mish": (18, _mish),
    "LayerNormalization": (17, _layer_normalization),
}

# Same signature, other meaning: relabelling below this opset would be wrong, and no rule is written.
CHANGED = {"GroupNormalization": 21, "DFT": 20, "Hardmax": 13, "GridSample": 20}

"""Down to an older opset: each node is relabelled where its meaning there is the same, rewritten where a rule
knows how, refused otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import defs, helper, inliner, numpy_helper

from opadapt.errors import ModelError
from opadapt.model.graph import NDArrayAny, reads

Nodes = list[onnx.NodeProto]


class _NoForm(Exception):
    """Why a node cannot be said at the older opset."""


@dataclass
class _Context:
    """What a rule may look at, and where it puts new constants."""

    opset: int
    constants: dict[str, NDArrayAny]
    ranks: Mapping[str, int]
    fresh: Callable[[str], str]
    added: list[onnx.TensorProto]

    def constant(self, node: onnx.NodeProto, index: int) -> NDArrayAny | None:
        """The value of a constant input, None where it is left out. Raises _NoForm where it is computed."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self.constants:
            raise _NoForm(f"input {index} is computed, but an attribute there")
        return self.constants[node.input[index]]

    def ints(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        value = self.constant(node, index)
        return None if value is None else [int(v) for v in np.ravel(value)]

    def rank(self, tensor: str) -> int:
        if tensor not in self.ranks:
            raise _NoForm(f"the rank of '{tensor}' is unknown")
        return self.ranks[tensor]

    def tensor(self, node: onnx.NodeProto, value: NDArrayAny) -> str:
        name = self.fresh(f"{node.name}/constant")
        self.added.append(numpy_helper.from_array(value, name))
        return name


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _node(op: str, old: onnx.NodeProto, inputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    kept = {k: v for k, v in attributes.items() if v is not None}
    return helper.make_node(op, list(inputs), list(old.output), old.name, **kept)


def _axes_to_attribute(node: onnx.NodeProto, context: _Context) -> Nodes:
    attributes = _attributes(node)
    axes = context.ints(node, 1)
    if attributes.pop("noop_with_empty_axes", 0) and not axes:
        return [_node("Identity", node, node.input[:1])]
    # reductions take the batch-free axes as they are; opsets below 11 know no negative ones
    if axes and min(axes) < 0:
        rank = context.rank(node.input[0]) + (len(axes) if node.op_type == "Unsqueeze" else 0)
        axes = [a % rank for a in axes]
    return [_node(node.op_type, node, node.input[:1], axes=axes or None, **attributes)]


def _split(node: onnx.NodeProto, context: _Context) -> Nodes:
    attributes = _attributes(node)
    attributes.pop(
        "num_outputs", None
    )  # without sizes the parts are equal; the check against the model tells
    if context.opset >= 13:
        return [_node("Split", node, node.input, **attributes)]
    return [_node("Split", node, node.input[:1], split=context.ints(node, 1), **attributes)]


def _pad(node: onnx.NodeProto, context: _Context) -> Nodes:
    pads, value, axes = context.ints(node, 1) or [], context.constant(node, 2), context.ints(node, 3)
    if axes is not None:
        rank = context.rank(node.input[0])
        full = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            full[axis % rank], full[rank + axis % rank] = pads[i], pads[len(axes) + i]
        pads = full
    mode = _attributes(node).get("mode", b"constant")
    if mode == b"wrap":
        raise _NoForm("mode 'wrap' came with opset 19")
    if context.opset >= 11:
        inputs = [node.input[0], context.tensor(node, np.array(pads, np.int64)), *node.input[2:3]]
        return [_node("Pad", node, inputs, mode=mode)]
    fill = 0.0 if value is None else float(np.ravel(value)[0])
    return [_node("Pad", node, node.input[:1], pads=pads, value=fill, mode=mode)]


def _slice(node: onnx.NodeProto, context: _Context) -> Nodes:
    steps = context.ints(node, 4)
    if steps is not None and set(steps) != {1}:
        raise _NoForm("steps other than 1 came with opset 10")
    starts, ends, axes = (context.ints(node, i) for i in (1, 2, 3))
    return [_node("Slice", node, node.input[:1], starts=starts, ends=ends, axes=axes)]


def _clip(node: onnx.NodeProto, context: _Context) -> Nodes:
    bounds = [context.constant(node, i) for i in (1, 2)]
    low, high = (None if b is None else float(np.ravel(b)[0]) for b in bounds)
    return [_node("Clip", node, node.input[:1], min=low, max=high)]


def _softmax(node: onnx.NodeProto, context: _Context) -> Nodes:
    """Before 13 the axis started a block that was flattened; equal for the last axis, else it is moved there."""
    rank = context.rank(node.input[0])
    axis = int(str(_attributes(node).get("axis", -1))) % rank
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


def _resize(node: onnx.NodeProto, context: _Context) -> Nodes:
    attributes = _attributes(node)
    for name, default in (("antialias", 0), ("keep_aspect_ratio_policy", b"stretch")):
        if attributes.pop(name, default) != default:
            raise _NoForm(f"attribute {name} came with opset 18")
    if "axes" in attributes:
        raise _NoForm("attribute axes came with opset 18")
    if context.opset >= 13:
        return [_node("Resize", node, node.input, **attributes)]
    inputs = [*node.input, *[""] * (4 - len(node.input))]
    if context.opset >= 11:  # roi and scales are required there
        inputs[1] = inputs[1] or context.tensor(node, np.zeros(0, np.float32))
        inputs[2] = inputs[2] or context.tensor(node, np.zeros(0, np.float32))
        return [_node("Resize", node, inputs if inputs[3] else inputs[:3], **attributes)]
    transform = attributes.get("coordinate_transformation_mode", b"half_pixel")
    nearest = attributes.get("nearest_mode", b"round_prefer_floor")
    mode = attributes.get("mode", b"nearest")
    plain = mode == b"nearest" and transform == b"asymmetric" and nearest == b"floor"
    if not plain or not inputs[2]:
        raise _NoForm("only nearest, asymmetric, floor Resize with scales existed before opset 11")
    return [
        _node("Resize" if context.opset == 10 else "Upsample", node, [inputs[0], inputs[2]], mode="nearest")
    ]


def _gemm(node: onnx.NodeProto, context: _Context) -> Nodes:
    inputs = list(node.input)
    if len(inputs) < 3 or not inputs[2]:
        inputs = [*inputs[:2], context.tensor(node, np.zeros(1, np.float32))]
    return [_node("Gemm", node, inputs, **_attributes(node))]


def _chain(
    node: onnx.NodeProto, context: _Context, steps: Sequence[tuple[str, Sequence[str], dict[str, object]]]
) -> Nodes:
    """Several nodes in place of one. Step ``i`` makes ``#i``; the last makes the node's own output."""
    made: list[str] = []
    nodes: Nodes = []
    for number, (op, inputs, attributes) in enumerate(steps):
        last = number == len(steps) - 1
        made.append(node.output[0] if last else context.fresh(f"{node.name}/{op}"))
        names = [made[int(name[1:])] if name.startswith("#") else name for name in inputs]
        nodes.append(helper.make_node(op, names, [made[-1]], node.name if last else made[-1], **attributes))
    return nodes


def _gelu(node: onnx.NodeProto, context: _Context) -> Nodes:
    """The erf form, or the tanh form (arXiv 1606.08415, section 2)."""
    x = node.input[0]

    def number(value: float) -> str:
        return context.tensor(node, np.array(value, np.float32))

    if _attributes(node).get("approximate", b"none") == b"none":
        inner: list[tuple[str, Sequence[str], dict[str, object]]] = [
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
    outer = [
        ("Add", [f"#{n - 1}", number(1.0)], {}),
        ("Mul", [x, f"#{n}"], {}),
        ("Mul", [f"#{n + 1}", number(0.5)], {}),
    ]
    return _chain(node, context, [*inner, *outer])


def _hard_swish(node: onnx.NodeProto, context: _Context) -> Nodes:
    x = node.input[0]
    gate = ("HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})
    return _chain(node, context, [gate, ("Mul", [x, "#0"], {})])


def _mish(node: onnx.NodeProto, context: _Context) -> Nodes:
    x = node.input[0]
    return _chain(node, context, [("Softplus", [x], {}), ("Tanh", ["#0"], {}), ("Mul", [x, "#1"], {})])


def _layer_normalization(node: onnx.NodeProto, context: _Context) -> Nodes:
    if any(node.output[1:]):
        raise _NoForm("its mean and deviation outputs are used, and the operator came with opset 17")
    attributes, x = _attributes(node), node.input[0]
    rank = context.rank(x)
    axes = list(range(int(str(attributes.get("axis", -1))) % rank, rank))
    epsilon = context.tensor(node, np.array(attributes.get("epsilon", 1e-5), np.float32))
    steps: list[tuple[str, Sequence[str], dict[str, object]]] = [
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
_RULES: dict[str, tuple[int, Callable[[onnx.NodeProto, _Context], Nodes]]] = {
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
_CHANGED = {"GroupNormalization": 21, "DFT": 20, "Hardmax": 13, "GridSample": 20}


def downgrade(proto: onnx.ModelProto, current: int, opset: int) -> onnx.ModelProto:
    """The same model at an older opset. Raises ModelError naming the operator that has no form there."""
    result = _expand_functions(proto, opset)
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in [*result.graph.input, *result.graph.value_info, *result.graph.output]
        if v.type.tensor_type.HasField("shape")
    }
    constants = {i.name: numpy_helper.to_array(i) for i in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    ranks |= {name: value.ndim for name, value in constants.items()}
    taken = {name for node in result.graph.node for name in (*node.input, *node.output)} | set(constants)

    def fresh(wanted: str) -> str:
        names = (wanted if k == 0 else f"{wanted}_{k}" for k in range(len(taken) + 1))
        name = next(n for n in names if n not in taken)
        taken.add(name)
        return name

    context = _Context(opset, constants, ranks, fresh, [])
    nodes = [new for node in result.graph.node for new in _lowered(node, context, current)]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(context.added)
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", opset))
    used = {name for node in nodes for name in reads(node)} | {o.name for o in result.graph.output}
    dead = [i for i in result.graph.initializer if i.name not in used]
    for tensor in dead:
        result.graph.initializer.remove(tensor)
    return result


def _expand_functions(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Operators newer than ``opset`` (Attention, RMSNormalization, ...) replaced by the definition onnx ships."""
    wanted = set()
    for node in proto.graph.node:
        newest = defs.get_schema(node.op_type, _version(proto))
        changed = _CHANGED.get(node.op_type, 0) > opset and newest.since_version >= _CHANGED.get(
            node.op_type, 0
        )
        has_body = newest.has_function or newest.has_context_dependent_function
        if has_body and node.op_type not in _RULES and (changed or not _exists(node.op_type, opset)):
            wanted.add(("", node.op_type))
    if not wanted:
        return proto
    typed = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return inliner.inline_selected_functions(typed, sorted(wanted), inline_schema_functions=True)


def _version(proto: onnx.ModelProto) -> int:
    return int(proto.opset_import[0].version)


def _exists(op: str, opset: int) -> bool:
    return _schema(op, opset) is not None


def _schema(op: str, opset: int) -> defs.OpSchema | None:
    try:
        schema = defs.get_schema(op, opset)
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _lowered(node: onnx.NodeProto, context: _Context, current: int) -> Nodes:
    below, rule = _RULES.get(node.op_type, (0, None))
    try:
        if rule is not None and context.opset < below:
            return rule(node, context)
        return [_relabelled(node, context, current)]
    except _NoForm as reason:
        raise ModelError(
            f"operator {node.op_type} (node '{node.name}') has no form at opset {context.opset}",
            expected=f"operators of opset {context.opset}",
            found=str(reason),
            do="choose a newer opset for the export, for example --opset 17 or --opset 20",
        ) from None


def _relabelled(node: onnx.NodeProto, context: _Context, current: int) -> onnx.NodeProto:
    """The node as it is, attributes the older schema lacks dropped where they hold their default."""
    now, then = _schema(node.op_type, current), _schema(node.op_type, context.opset)
    if now is None or then is None:
        since = "a newer opset" if now is None else f"opset {now.since_version}"
        raise _NoForm(f"the operator came with {since}")
    if now.since_version == then.since_version:
        return node
    if then.since_version < _CHANGED.get(node.op_type, 0) <= now.since_version:
        raise _NoForm(f"its meaning changed with opset {_CHANGED[node.op_type]}")
    if len([name for name in node.input if name]) > then.max_input or len(node.output) > then.max_output:
        raise _NoForm(f"it takes at most {then.max_input} inputs and {then.max_output} outputs there")
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    for attribute in node.attribute:
        if attribute.name in then.attributes:
            result.attribute.append(attribute)
            continue
        default = now.attributes[attribute.name].default_value
        if default.name and helper.get_attribute_value(default) == helper.get_attribute_value(attribute):
            continue
        raise _NoForm(f"attribute {attribute.name} is newer")
    return result

"""What a node costs on paper: MACs, parameters and bytes, from shapes alone, at batch 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx
from onnx import NodeProto, helper

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class OpCost:
    """Multiply-accumulates, elements of the initializers read, and bytes of all tensors read and written
    (4 each). ``kind``: how well the MACs vectorise."""

    macs: int
    parameters: int
    bytes: int
    kind: Literal["dense", "grouped", "depthwise"] = "dense"


Operands = Sequence[Shape]  # of the inputs; () for one that is absent or of unknown shape
Rule = Callable[[Operands, Shape, Mapping[str, Any]], int]


def _conv(inputs: Operands, output: Shape, attrs: Mapping[str, Any]) -> int:
    return math.prod(output) * math.prod(inputs[1][1:])


def _conv_transpose(inputs: Operands, output: Shape, attrs: Mapping[str, Any]) -> int:
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _gemm(inputs: Operands, output: Shape, attrs: Mapping[str, Any]) -> int:
    return math.prod(output) * inputs[0][0 if attrs.get("transA") else 1]


def _matmul(inputs: Operands, output: Shape, attrs: Mapping[str, Any]) -> int:
    return math.prod(output) * inputs[0][-1]


def _recurrent(inputs: Operands, output: Shape, attrs: Mapping[str, Any]) -> int:
    """Per time step and sequence, every weight of W and R once (both directions)."""
    return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))


MACS: Mapping[str, tuple[int, Rule]] = {  # operator -> (operands whose shapes it needs, rule)
    "Conv": (2, _conv),
    "ConvTranspose": (2, _conv_transpose),
    "Gemm": (2, _gemm),
    "MatMul": (2, _matmul),
    "LSTM": (3, _recurrent),
    "GRU": (3, _recurrent),
    "RNN": (3, _recurrent),
}
MOVES_NOTHING = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})


def node_cost(node: NodeProto, shapes: Shapes, initializers: Collection[str]) -> OpCost:
    """The cost of one node. Shapes that are not known count as nothing."""
    inputs = [shapes.get(name, ()) for name in node.input]
    outputs = [shapes.get(name, ()) for name in node.output]
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    macs = 0
    needed, rule = MACS.get(node.op_type, (0, None))
    if rule is not None and len(inputs) >= needed and all(inputs[:needed]):
        macs = rule(inputs, outputs[0], attrs)
    weights = [name for name in dict.fromkeys(node.input) if name in shapes and name in initializers]
    parameters = sum(math.prod(shapes[name]) for name in weights)
    touched = [] if node.op_type in MOVES_NOTHING else [*dict.fromkeys(node.input), *node.output]
    elements = sum(math.prod(shapes[name]) for name in touched if name in shapes)
    groups = int(attrs.get("group", 1))
    kind: Literal["dense", "grouped", "depthwise"] = "dense"
    if groups > 1:
        kind = "depthwise" if inputs and len(inputs[0]) > 1 and groups == inputs[0][1] else "grouped"
    return OpCost(macs, parameters, 4 * elements, kind)


def concrete_shapes(proto: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of the float tensors of a model whose shapes are known; a free dimension counts 1 (the batch).

    Integers are left out: they are shapes and indices, neither parameters nor work.
    """
    graph = proto.graph
    found: dict[str, Shape] = {}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        tensor = info.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.FLOAT and tensor.HasField("shape"):
            found[info.name] = tuple(d.dim_value or 1 for d in tensor.shape.dim)
    for value in graph.initializer:
        if value.data_type == onnx.TensorProto.FLOAT:
            found[value.name] = tuple(value.dims)
    return found

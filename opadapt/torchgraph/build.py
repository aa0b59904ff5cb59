"""ONNX model -> trainable torch.fx.GraphModule, one pass over the nodes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import torch
from onnx import numpy_helper, shape_inference
from torch import fx, nn

from opadapt.errors import ModelError, Refused
from opadapt.torchgraph import weights
from opadapt.torchgraph.context import TORCH_DTYPE, Context, Host, Op, Result, Shape
from opadapt.torchgraph.host import fold
from opadapt.torchgraph.ops import BUILDERS, arithmetic

STANDARD_DOMAINS = ("", "ai.onnx")


def build(proto: onnx.ModelProto, trainable: Collection[str] | None = None) -> fx.GraphModule:
    """The model as a torch module, called with its inputs in graph order (those that are no initializers).

    It returns a tensor, or a tuple where the model has several outputs. Float32 initializers that operators
    read as tensors are parameters, a single number in a formula excepted (``trainable`` names another choice;
    the rest are constants): ``parameter_names`` maps names, ``write_back`` returns the trained values. In
    ``train()`` BatchNormalization uses the batch's statistics and updates the running ones and Dropout drops;
    the module is handed over in ``eval()``. Everything moves with ``.to(device)``. Dimensions that the model
    declares as numbers are taken as such; symbolic ones stay free.

    Raises Refused("torch", ...) for an operator or a form of one that has no builder, ModelError for a name
    in ``trainable`` that cannot train.
    """
    _check_operators(proto)
    inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    ctx = Context(_opset(proto), fx.Graph(), nn.Module(), {}, {}, {})
    for info in [*inferred.input, *inferred.value_info, *inferred.output]:
        if info.type.HasField("tensor_type"):
            ctx.elem_types[info.name] = info.type.tensor_type.elem_type
            shape = _shape(info.type.tensor_type)
            if shape is not None:
                ctx.shapes[info.name] = shape
    constants = weights.constants_of(proto.graph)
    for info in proto.graph.input:
        if info.name not in constants:
            node = ctx.graph.placeholder(ctx.attribute_name("x", info.name))
            ctx.values[info.name] = node
            ctx.anchor = ctx.anchor or node
    meta = _add_constants(ctx, proto.graph, constants, trainable)
    for node_proto in proto.graph.node:
        if node_proto.op_type == "Constant" and node_proto.output[0] in constants:
            continue
        op = Op.of(node_proto)
        _record_rank(ctx, op)
        folded = fold(ctx, op)
        _record(ctx, op, BUILDERS[op.type](ctx, op) if folded is None else folded)
    results = [_output(ctx, info.name) for info in proto.graph.output]
    ctx.graph.output(results[0] if len(results) == 1 else tuple(results))
    for node in reversed(ctx.graph.nodes):  # every node is pure, so what nothing reads can go
        if not node.users and node.op not in ("placeholder", "output"):
            ctx.graph.erase_node(node)
    module = fx.GraphModule(ctx.root, ctx.graph, "OnnxModule")
    for key, names in meta.items():  # what no output depends on is not in the module
        module.meta[key] = {
            name: attribute for name, attribute in names.items() if hasattr(module, attribute)
        }
    return module.eval()


def _opset(proto: onnx.ModelProto) -> int:
    for entry in proto.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            return int(entry.version)
    raise ModelError("the model imports no opset of the standard domain")


def _check_operators(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        if node.domain not in STANDARD_DOMAINS or node.op_type not in BUILDERS:
            name = node.name or (node.output[0] if node.output else "")
            kind = node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"
            raise Refused("torch", f"no builder for operator {kind} (node '{name}')")


def _shape(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    if not tensor.HasField("shape"):
        return None
    # Some exporters write 0 or -1 for an unknown size, so those stay free.
    return tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)


def _add_constants(
    ctx: Context,
    graph: onnx.GraphProto,
    constants: dict[str, onnx.TensorProto],
    trainable: Collection[str] | None,
) -> dict[str, dict[str, str]]:
    """Register parameters and running statistics; the rest stays Host values. Returns the name maps."""
    parameters: dict[str, str] = {}
    statistics: dict[str, str] = {}
    trained = weights.trained_names(graph, constants, trainable)
    running = weights.statistics_of(graph)
    for name, tensor in constants.items():
        if tensor.data_type not in TORCH_DTYPE:
            continue  # refused where it is read
        array = numpy_helper.to_array(tensor)
        if name in trained or name in running:
            attribute = ctx.attribute_name("p" if name in trained else "s", name)
            value = torch.from_numpy(np.array(array, copy=True))
            if name in trained:
                ctx.root.register_parameter(attribute, nn.Parameter(value))
                parameters[name] = attribute
            else:
                ctx.root.register_buffer(attribute, value)
                statistics[name] = attribute
            ctx.values[name] = ctx.graph.get_attr(attribute)
            ctx.shapes[name] = tuple(array.shape)
            ctx.elem_types[name] = tensor.data_type
        else:
            ctx.values[name] = Host(array, tensor.data_type)
    return {weights.PARAMETERS: parameters, weights.STATISTICS: statistics}


def _record(ctx: Context, op: Op, result: Result) -> None:
    values = [result] if isinstance(result, fx.Node | Host) else list(result)
    for i, name in enumerate(op.outputs):
        if not name:
            continue
        if i >= len(values):
            raise op.refuse(f"output {i} is used and has no builder")
        ctx.values[name] = values[i]


# Operators whose result has the rank of their first input; inference loses it behind computed shapes.
_SAME_RANK = frozenset(
    {"Concat", "Pad", "Slice", "Split", "Transpose", "Cast", "Identity", "Softmax", "Dropout"}
)


def _record_rank(ctx: Context, op: Op) -> None:
    """Keep track of ranks, and no more, where shape inference gave up."""
    ranks = [len(s) for name in op.inputs if name and (s := ctx.shape(name)) is not None]
    for name in op.outputs:
        if name in ctx.shapes or len(ranks) != len([n for n in op.inputs if n]) or not ranks:
            continue
        if op.type in _SAME_RANK:
            ctx.shapes[name] = (None,) * ranks[0]
        elif op.type in arithmetic.BROADCASTING:
            ctx.shapes[name] = (None,) * max(ranks)
        elif op.type == "Unsqueeze":
            axes = ctx.shape(op.input(1)) or (len(op.attrs.get("axes", ())),)
            ctx.shapes[name] = (None,) * (ranks[0] + (axes[0] or 0))


def _output(ctx: Context, name: str) -> fx.Node:
    if name not in ctx.values:
        raise ModelError(f"output '{name}' is made by no node")
    return ctx.as_tensor(ctx.values[name], name)

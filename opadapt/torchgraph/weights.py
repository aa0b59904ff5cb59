"""Which initializers train, what they are called in the module, and how they get back into the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from opadapt.errors import ModelError

PARAMETERS = "opadapt.parameters"  # keys of GraphModule.meta: initializer name -> attribute name
STATISTICS = "opadapt.statistics"
SMALLEST_NORMAL = np.float32(1.17549435e-38)

# Inputs that are weights whatever their size; a single number elsewhere is part of a formula (0.5 in a GELU).
_WEIGHT_SLOTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
}
# Inputs that are read as numbers, not as tensors: what leads to them is shape arithmetic.
_NUMBER_SLOTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
_STATISTICS_SLOTS = {"BatchNormalization": (3, 4)}


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Tensors stored in the model by name: initializers, and the values of Constant nodes."""
    found = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _slots(graph: onnx.GraphProto, slots: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Tensors that stand in the given inputs of the given operators, and what they are an Identity of."""
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    found: set[str] = set()
    for node in graph.node:
        for i in slots.get(node.op_type, ()):
            name = node.input[i] if i < len(node.input) else ""
            while name:
                found.add(name)
                name = same.get(name, "")
    return found


def statistics_of(graph: onnx.GraphProto) -> set[str]:
    """Names of the running means and variances of the BatchNormalization nodes."""
    return _slots(graph, _STATISTICS_SLOTS)


def _numbers(graph: onnx.GraphProto) -> set[str]:
    """Tensors that only serve shape arithmetic: everything upstream of a slot that is read as numbers."""
    wanted: set[str] = set()
    for node in reversed(graph.node):
        slots: Iterable[int] = _NUMBER_SLOTS.get(node.op_type, ())
        if wanted.intersection(node.output):
            slots = () if node.op_type in ("Shape", "Size") else range(len(node.input))
        wanted.update(node.input[i] for i in slots if i < len(node.input) and node.input[i])
    return wanted


def trained_names(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto], wanted: Collection[str] | None
) -> set[str]:
    """Names of the float32 tensors that become parameters.

    Without ``wanted``: those that an operator reads as a tensor and that have more than one element, or stand
    where operators keep weights. Raises ModelError for a wanted name that cannot train.
    """
    excluded = statistics_of(graph) | _numbers(graph)
    floats = {
        name
        for name, t in constants.items()
        if t.data_type == onnx.TensorProto.FLOAT and name not in excluded and 0 not in t.dims
    }
    if wanted is not None:
        if wrong := sorted(set(wanted) - floats):
            raise ModelError(
                f"'{wrong[0]}' cannot be trained",
                expected="names of float32 initializers that operators read as tensors",
                found=", ".join(wrong),
            )
        return set(wanted)
    weights = _slots(graph, _WEIGHT_SLOTS)
    return {name for name in floats if name in weights or np.prod(constants[name].dims) > 1}


def parameter_names(module: nn.Module) -> dict[str, str]:
    """Initializer name -> name in ``module.named_parameters()``, for a module of ``build``."""
    return dict(_meta(module, PARAMETERS))


def statistics_names(module: nn.Module) -> dict[str, str]:
    """Initializer name of a running mean or variance -> name in ``module.named_buffers()``."""
    return dict(_meta(module, STATISTICS))


def _meta(module: nn.Module, key: str) -> dict[str, str]:
    meta = getattr(module, "meta", {})
    if key not in meta:
        raise ModelError("not a module of torchgraph.build", found=type(module).__name__)
    names: dict[str, str] = meta[key]
    return names


def flush_denormals(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The array with denormal numbers, which slow inference down, set to zero."""
    return np.where(np.abs(array) < SMALLEST_NORMAL, np.float32(0), array)


def write_back(module: nn.Module, proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the module's parameters and running statistics in the same initializers.

    Values are float32, denormals flushed to zero. ``proto`` is the model the module was built from, or one
    with the same initializers. Raises ModelError where a name or shape does not match.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    constants = constants_of(result.graph)
    for name, attribute in (parameter_names(module) | statistics_names(module)).items():
        target = constants.get(name)
        value: torch.Tensor = getattr(module, attribute)
        if target is None or tuple(target.dims) != tuple(value.shape):
            raise ModelError(
                f"trained weight '{name}' does not fit the model",
                expected=f"an initializer of shape {tuple(value.shape)}",
                found="none" if target is None else str(tuple(target.dims)),
                do="write back into the model that the module was built from",
            )
        array = value.detach().to("cpu", torch.float32).contiguous().numpy()
        target.CopyFrom(numpy_helper.from_array(flush_denormals(array), name))
    return result

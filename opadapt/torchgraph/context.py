"""What an operator's builder sees: the operator, the values of its inputs, and ways to add torch calls.

A value is one of two kinds.
- ``fx.Node``: a tensor of the running graph.
- ``Host``: numbers known while building, or Python numbers of the running graph (sizes of a free dimension
  and what is computed from them). Shapes, pads, indices and constants live here, so that shape arithmetic
  costs no tensor operation at run time; a Host becomes a buffer only where an operator needs a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import fx, nn

from opadapt.errors import Refused
from opadapt.torchgraph.kernels import numbers

Shape = tuple[int | None, ...]  # None: a size that is known at run time only

TORCH_DTYPE: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def is_float(elem_type: int) -> bool:
    """Whether an ONNX element type is a floating-point type that torch has."""
    return elem_type in TORCH_DTYPE and TORCH_DTYPE[elem_type].is_floating_point


@dataclass(frozen=True, eq=False)
class Host:
    """Numbers outside the tensors. ``array`` has dtype object where an element is an ``fx.Node`` (a Python
    number of the running graph), and the dtype of ``elem_type`` where everything is known."""

    array: NDArray[Any]
    elem_type: int

    @property
    def known(self) -> bool:
        return self.array.dtype != object

    @staticmethod
    def of(array: NDArray[Any], elem_type: int) -> Host:
        """A Host in its simplest form: native dtype where no element is symbolic."""
        if array.dtype == object and any(isinstance(v, fx.Node) for v in array.flat):
            return Host(array, elem_type)
        return Host(array.astype(helper.tensor_dtype_to_np_dtype(elem_type)), elem_type)


Value = fx.Node | Host
Result = Value | Sequence[Value]


@dataclass(frozen=True, eq=False)
class Op:
    """One ONNX node: ``inputs`` may hold "" for an absent one; ``attrs`` are Python values."""

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]

    @staticmethod
    def of(node: onnx.NodeProto) -> Op:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        text = {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()}
        return Op(node.op_type, node.name or node.output[0], tuple(node.input), tuple(node.output), text)

    def input(self, index: int) -> str:
        """The name of an input, "" where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def refuse(self, reason: str) -> Refused:
        return Refused("torch", f"{self.type} '{self.name}': {reason}")


@dataclass
class Context:
    """The torch graph under construction."""

    opset: int
    graph: fx.Graph
    root: nn.Module
    values: dict[str, Value]
    shapes: dict[str, Shape]
    elem_types: dict[str, int]
    buffers: dict[int, fx.Node] = field(default_factory=dict)  # id(Host) -> its get_attr node
    taken: set[str] = field(default_factory=set)
    anchor: fx.Node | None = None  # a graph input: the device that tensors made at run time go to

    def attribute_name(self, prefix: str, name: str) -> str:
        """A fresh attribute name of the root module, made from any ONNX name."""
        base = f"{prefix}_{re.sub(r'[^0-9A-Za-z_]', '_', name)}"
        fresh, count = base, 1
        while fresh in self.taken:
            count += 1
            fresh = f"{base}__{count}"
        self.taken.add(fresh)
        return fresh

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_method(name, args, kwargs)

    def module(self, op: Op, module: nn.Module, *args: Any) -> fx.Node:
        """A call of a submodule: for what differs between train() and eval()."""
        name = self.attribute_name("m", op.name)
        self.root.add_module(name, module)
        return self.graph.call_module(name, args)

    def value(self, op: Op, name: str) -> Value:
        try:
            return self.values[name]
        except KeyError:
            raise op.refuse(f"input '{name}' is made by no earlier node") from None

    def tensor(self, op: Op, index: int) -> fx.Node:
        """An input as a tensor of the running graph. Refused where it is absent."""
        name = op.input(index)
        if not name:
            raise op.refuse(f"input {index} is absent")
        return self.as_tensor(self.value(op, name), name)

    def optional(self, op: Op, index: int) -> fx.Node | None:
        """An input as a tensor, None where it is absent."""
        return self.tensor(op, index) if op.input(index) else None

    def as_tensor(self, value: Value, name: str) -> fx.Node:
        if isinstance(value, fx.Node):
            return value
        if id(value) not in self.buffers:
            self.buffers[id(value)] = self._materialise(value, name)
        return self.buffers[id(value)]

    def _materialise(self, value: Host, name: str) -> fx.Node:
        dtype = TORCH_DTYPE.get(value.elem_type)
        if dtype is None:
            raise Refused("torch", f"constant '{name}' has element type {value.elem_type}, which torch lacks")
        if not value.known:
            flat, shape = list(value.array.flat), value.array.shape
            return self.call(numbers.from_numbers, flat, shape, dtype, self.device())
        attribute = self.attribute_name("c", name)
        array = np.array(value.array, copy=True)
        self.root.register_buffer(attribute, torch.from_numpy(array).to(dtype))
        return self.graph.get_attr(attribute)

    def device(self) -> fx.Node:
        if self.anchor is None:
            raise Refused("torch", "a model without inputs makes tensors at run time")
        return self.call(getattr, self.anchor, "device")

    def host(self, op: Op, index: int) -> Host:
        """An input as numbers. Refused where it is the data of a tensor."""
        value = self.value(op, op.input(index))
        if isinstance(value, fx.Node):
            raise op.refuse(f"input {index} '{op.input(index)}' depends on the data, not on shapes alone")
        return value

    def known(self, op: Op, index: int) -> NDArray[Any] | None:
        """An input as known numbers; None where it is absent. Refused where it is not known yet."""
        if not op.input(index):
            return None
        host = self.host(op, index)
        if not host.known:
            raise op.refuse(f"input {index} '{op.input(index)}' depends on a free dimension")
        return host.array

    def shape(self, name: str) -> Shape | None:
        """Sizes of a tensor as far as they are known; None where not even the rank is."""
        value = self.values.get(name)
        return tuple(value.array.shape) if isinstance(value, Host) else self.shapes.get(name)

    def rank(self, op: Op, index: int) -> int:
        shape = self.shape(op.input(index))
        if shape is None:
            raise op.refuse(f"the rank of input {index} '{op.input(index)}' is not known")
        return len(shape)

    def elem_type(self, name: str) -> int:
        """The element type; float where inference does not know better."""
        value = self.values.get(name)
        if isinstance(value, Host):
            return value.elem_type
        return self.elem_types.get(name, onnx.TensorProto.FLOAT)


Builder = Callable[[Context, Op], Result]

"""What an expansion works on: the program being built, which tensor is which value, and the constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from opadapt.errors import Refused
from opadapt.ir.program import Builder
from opadapt.ir.spec import Array
from opadapt.ir.types import Dim

Constant = NDArray[Any]


def refuse(node: onnx.NodeProto, reason: str) -> Refused:
    """The refusal of a node, naming its operator."""
    return Refused("expand", f"{node.op_type} '{node.name}': {reason}")


class Context:
    """The program under construction. ``values`` maps tensor names to value numbers of the builder."""

    def __init__(self, builder: Builder, values: dict[str, int], constants: Mapping[str, Constant]) -> None:
        self.builder = builder
        self.values = values
        self.constants = constants
        self.binding: dict[str, Array] = {}
        self.origin: dict[str, str] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def emit(self, op: str, *args: int, **attrs: Any) -> int:
        return self.builder.emit(op, *args, **attrs)

    def shape(self, value: int) -> tuple[Dim, ...]:
        return self.builder.types[value].shape

    def rank(self, value: int) -> int:
        return len(self.shape(value))

    def size(self, node: onnx.NodeProto, value: int, axis: int) -> int:
        """The size of an axis. Raises Refused for the batch axis, whose size is unknown."""
        size = self.shape(value)[axis]
        if not isinstance(size, int):
            raise refuse(node, f"needs the size of axis {axis}, which is the batch")
        return size

    # ---- operands ---------------------------------------------------------------------------------------

    def name(self, node: onnx.NodeProto, index: int) -> str | None:
        """The name of an operand; None where the optional operand is left out."""
        return node.input[index] if index < len(node.input) and node.input[index] else None

    def constant(self, node: onnx.NodeProto, index: int) -> Constant | None:
        """The value of a constant operand; None where it is left out or computed."""
        name = self.name(node, index)
        return None if name is None else self.constants.get(name)

    def ints(self, node: onnx.NodeProto, index: int) -> tuple[int, ...] | None:
        """A constant integer operand (axes, shape, ...); None where left out. Raises Refused if computed."""
        if self.name(node, index) is None:
            return None
        found = self.constant(node, index)
        if found is None:
            raise refuse(node, f"operand {index} ({node.input[index]}) is computed, not constant")
        return tuple(int(v) for v in np.atleast_1d(found).ravel())

    def activation(self, node: onnx.NodeProto, index: int) -> int:
        """The value of an operand that is computed. Raises Refused for a constant or an unknown tensor."""
        name = self.name(node, index)
        if name is None or name not in self.values:
            raise refuse(node, f"operand {index} ({name}) is no activation of this region")
        return self.values[name]

    def operand(self, node: onnx.NodeProto, index: int, role: str = "weight") -> int:
        """An element-wise operand: an activation, a number (a constant of one element), or a parameter."""
        name = self.name(node, index)
        if name is None:
            raise refuse(node, f"operand {index} is missing")
        if name in self.values:
            return self.values[name]
        value = self.constants.get(name)
        if value is None:
            raise refuse(
                node, f"operand {index} ({name}) is neither constant nor an activation of this region"
            )
        if value.dtype != np.float32:
            raise refuse(node, f"operand {index} ({name}) is {value.dtype}, not float32")
        if value.size == 1 and np.isfinite(value).all():
            return self.builder.const(shortest(value.ravel()[0]), value.shape)
        return self.parameter(node, index, role)

    def weight(self, node: onnx.NodeProto, index: int) -> Array:
        """A constant float32 operand. Raises Refused for anything else."""
        value = self.constant(node, index)
        if value is None:
            raise refuse(node, f"operand {index} ({self.name(node, index)}) is computed, not a weight")
        if value.dtype != np.float32:
            raise refuse(node, f"operand {index} is {value.dtype}, not float32")
        return value

    def parameter(
        self,
        node: onnx.NodeProto,
        index: int,
        role: str,
        layout: Callable[[Array], Array] = lambda value: value,
    ) -> int:
        """A trainable parameter holding a constant operand in the program's layout; shared where repeated."""
        value = np.ascontiguousarray(layout(self.weight(node, index)), dtype=np.float32)
        if 0 in value.shape:
            raise refuse(node, f"operand {index} is empty")
        key = (node.input[index], value.shape, value.tobytes())
        if key not in self._known:
            taken = sum(name.rstrip("0123456789") == role for name in self.binding)
            name = f"{role}{taken}"
            self.binding[name] = value
            self.origin[name] = node.input[index]
            self._known[key] = self.builder.param(name, value.shape)
        return self._known[key]

    # ---- common steps -----------------------------------------------------------------------------------

    def number(self, value: float) -> int:
        return self.builder.const(shortest(value))

    def reshape(self, value: int, shape: Sequence[Dim]) -> int:
        """A reshape, left out where it changes nothing."""
        return value if self.shape(value) == tuple(shape) else self.emit("reshape", value, shape=tuple(shape))

    def per_channel(self, vector: int, rank: int, axis: int = 1) -> int:
        """A vector placed along one axis of a tensor of the rank, to be broadcast over the others."""
        (size,) = self.shape(vector)
        return self.reshape(vector, tuple(size if i == axis else 1 for i in range(rank)))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values, strings decoded."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def axis_of(node: onnx.NodeProto, axis: int, rank: int) -> int:
    """An axis counted from the front. Raises Refused out of range."""
    if not -rank <= axis < rank:
        raise refuse(node, f"axis {axis} of a tensor with {rank} axes")
    return axis % rank


def shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-5, where an attribute holds 9.99999974e-06."""
    return float(str(np.float32(value)))


__all__ = ["Constant", "Context", "attributes", "axis_of", "refuse", "shortest"]

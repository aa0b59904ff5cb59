"""Writing ONNX nodes: names, shared integer constants, and initializers in the layout their kernel wants."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from opadapt.errors import ProgramError
from opadapt.ir.program import Binding
from opadapt.ir.spec import Array
from opadapt.ir.types import BATCH, Dim, TensorType
from opadapt.lower.view import View

Tensor = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How an initializer is made from a parameter: ``value.transpose(perm).reshape(shape)``."""

    param: str
    param_shape: tuple[int, ...]
    perm: tuple[int, ...]
    shape: tuple[int, ...]

    def forward(self, value: Array) -> Array:
        """Program layout -> initializer layout."""
        return np.ascontiguousarray(value.transpose(self.perm).reshape(self.shape), dtype=np.float32)

    def inverse(self, value: Array) -> Array:
        """Initializer layout -> program layout."""
        permuted = value.reshape([self.param_shape[p] for p in self.perm])
        return np.ascontiguousarray(permuted.transpose(np.argsort(self.perm)), dtype=np.float32)


@dataclass(frozen=True)
class Static:
    """A weight operand of a kernel: ``value`` transposed by ``perm``, then reshaped to ``shape``."""

    value: int
    perm: tuple[int, ...]
    shape: tuple[int, ...]


def layout_of(view: View, static: Static, agreed: Collection[str] = ()) -> Layout | None:
    """The static operand as a layout of one parameter; None where it is not one.

    Nobody else may read the parameter, unless its name is in ``agreed``: all its readers want the same layout.
    """
    value, perm, shape = static.value, static.perm, static.shape
    while view.is_op(value, "param") or view.private(value):
        step = view.program[value]
        if step.op == "param":
            name = step.attr["name"]
            alone = name in agreed or view.private(value)
            return Layout(name, step.attr["shape"], perm, shape) if alone else None
        if step.op == "reshape" and perm == tuple(range(len(perm))):
            perm = tuple(range(view.type(step.args[0]).rank))
        elif step.op == "transpose":
            perm = tuple(step.attr["perm"][p] for p in perm)
        else:
            return None
        value = step.args[0]
    return None


class Emitter:
    """Collects nodes and initializers of one lowering; ``names`` maps program values to tensor names."""

    def __init__(self, view: View, binding: Binding, inputs: Sequence[str], output: str, prefix: str) -> None:
        self.view = view
        self.binding = binding
        self.output = output
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, Tensor] = {}
        self.layout: dict[str, Layout] = {}
        self.constants: set[str] = set()
        # values are named as in the program's textual form; no parameter name begins with %
        self.names: dict[int, str] = dict(enumerate(inputs))
        self.agreed: frozenset[str] = frozenset()  # see layout_of
        self._serial = 0

    def target(self, value: int) -> str:
        """The tensor name under which a program value is to be made."""
        return self.output if value == self.view.program.output else f"{self.prefix}%{value}"

    def fresh(self) -> str:
        self._serial += 1
        return f"{self.prefix}%t{self._serial}"

    def node(self, op_type: str, inputs: Sequence[str], output: str | None = None, **attrs: Any) -> str:
        """Append a node with one output; returns the output's name (a fresh one unless given)."""
        name = output if output is not None else self.fresh()
        self.nodes_out(op_type, inputs, [name], **attrs)
        return name

    def nodes_out(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> None:
        node_name = f"{self.prefix}{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), list(outputs), name=node_name, **attrs))

    def leaf(self, value: int, initializer: str) -> None:
        """A program value that is an initializer; only as the program's output does it need a node."""
        if value == self.view.program.output:
            self.node("Identity", [initializer], self.output)
        else:
            self.names[value] = initializer

    def ints(self, values: Sequence[int]) -> str:
        """An int64 initializer with the values, shared by all who want the same."""
        name = f"{self.prefix}%i{'_'.join(map(str, values))}"
        if len(name) > 80:
            name = f"{self.prefix}%i{len(self.initializers)}"
        return self.constant(name, np.asarray(values, dtype=np.int64))

    def constant(self, name: str, value: Tensor) -> str:
        """An initializer that no training may change."""
        self.initializers[name] = value
        self.constants.add(name)
        return name

    def number(self, value: float, shape: Sequence[int] = ()) -> str:
        """A float32 initializer filled with one number, shared by all who want the same."""
        size = "x".join(map(str, shape))
        return self.constant(
            f"{self.prefix}%c{value!r}_{size}".rstrip("_"), np.full(tuple(shape), value, dtype=np.float32)
        )

    def parameter(self, layout: Layout) -> str:
        """The initializer of a parameter in a layout. Raises ProgramError where the binding lacks it."""
        value = self.binding.get(layout.param)
        if value is None or tuple(value.shape) != tuple(layout.param_shape):
            found = "nothing" if value is None else str(value.shape)
            raise ProgramError(f"param '{layout.param}'", expected=str(layout.param_shape), found=found)
        name = f"{self.prefix}{layout.param}"
        self.initializers[name] = layout.forward(np.asarray(value, dtype=np.float32))
        self.layout[name] = layout
        return name

    def static(self, static: Static) -> str:
        """The tensor of a static operand: an initializer already laid out, or nodes that lay it out."""
        layout = layout_of(self.view, static, self.agreed)
        if layout is not None:
            return self.parameter(layout)
        name, shape = self.names[static.value], self.view.shape(static.value)
        name = self.transposed(name, static.perm)
        return self.reshaped(name, [shape[p] for p in static.perm], static.shape)

    def transposed(self, name: str, perm: Sequence[int], output: str | None = None) -> str:
        """Transpose, left out where it would change nothing and no output name is asked for."""
        if output is None and list(perm) == list(range(len(perm))):
            return name
        return self.node("Transpose", [name], output, perm=list(perm))

    def reshaped(self, name: str, old: Sequence[Dim], new: Sequence[Dim], output: str | None = None) -> str:
        """Reshape between shapes of which one dimension may be a string (unknown until run time)."""
        if output is None and list(old) == list(new):
            return name
        target = [
            d if isinstance(d, int) else (0 if i < len(old) and old[i] == d == BATCH else -1)
            for i, d in enumerate(new)
        ]
        return self.node("Reshape", [name, self.ints(target)], output)


def merged(dims: Sequence[Dim]) -> Dim:
    """The product of dimensions; a string ("unknown") where several merge and the batch is among them."""
    known = TensorType(tuple(dims)).elements
    if BATCH not in dims:
        return known
    return BATCH if known == 1 else "?"


__all__ = ["Emitter", "Layout", "Static", "layout_of", "merged"]

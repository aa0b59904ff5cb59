"""A random program under construction: its builder, what is allowed, and estimates that keep it tame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opadapt.errors import ProgramError
from opadapt.ir.compute import split_einsum
from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Builder, Program
from opadapt.ir.types import BATCH, Dim, TensorType

Rng = np.random.Generator
LEAVES = frozenset({"param", "const"})
LARGEST = 20.0  # estimated magnitude above which a value is scaled down
ELEMENTS = 3000  # largest intermediate of a program without a demanded signature
# Instructions that only move or choose elements: they add no rounding to exact operands.
EXACT = frozenset({name for name, spec in TABLE.items() if spec.kind in ("leaf", "structure")}) | frozenset(
    {"max", "maximum", "minimum", "neg", "abs", "relu", "clip", "where"}
)


class Draft:
    """The builder of a random program. Every emission is checked against what is allowed and affordable."""

    def __init__(
        self, rng: Rng, inputs: Sequence[TensorType], allowed: frozenset[str], output: TensorType | None
    ) -> None:
        self.rng = rng
        self.allowed = allowed
        self.builder = Builder(inputs)
        self.magnitude = [3.0] * len(inputs)
        self.exact = [True] * len(inputs)
        self.used: set[int] = set()
        self.hidden: set[int] = set()  # values that no other move may read, such as padding with -inf
        self._names = 0
        largest = max(t.elements for t in (*inputs, *(() if output is None else (output,))))
        self.largest = max(ELEMENTS, 16 * largest)

    # ---- reading ----------------------------------------------------------------------------------------

    def type(self, value: int) -> TensorType:
        return self.builder.types[value]

    def shape(self, value: int) -> tuple[Dim, ...]:
        return self.builder.types[value].shape

    def program(self, output: int) -> Program:
        return self.builder.build(output)

    def live_instructions(self, output: int) -> int:
        """How many instructions a value depends on, its own included."""
        offset = len(self.builder.inputs)
        live, pending = set[int](), [output]
        while pending:
            value = pending.pop()
            if value >= offset and value not in live:
                live.add(value)
                pending.extend(self.builder.body[value - offset].args)
        return len(live)

    def require(self, condition: bool) -> None:
        """Give a move up where it does not apply."""
        if not condition:
            raise ProgramError("the move does not apply")

    def integer(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choose(self, items: Sequence[Any]) -> Any:
        self.require(len(items) > 0)
        return items[int(self.rng.integers(len(items)))]

    def pick(self, wanted: Callable[[TensorType], bool] = lambda t: True) -> int:
        """A value of a wanted type, mostly one that nothing reads yet, the newer the likelier."""
        found = [v for v, t in enumerate(self.builder.types) if wanted(t) and v not in self.hidden]
        self.require(bool(found))
        fresh = [v for v in found if v not in self.used]
        if fresh and self.chance(0.8):
            found = fresh
        weights = np.asarray([1.5**i for i in range(min(len(found), 24))])
        recent = found[-len(weights) :]
        return int(self.rng.choice(recent, p=weights / weights.sum()))

    def sized_axes(self, value: int, least: int = 1) -> list[int]:
        """Axes of known size, at least so large."""
        return [a for a, d in enumerate(self.shape(value)) if isinstance(d, int) and d >= least]

    def size(self, value: int, axis: int) -> int:
        size = self.shape(value)[axis]
        assert isinstance(size, int)
        return size

    # ---- writing ----------------------------------------------------------------------------------------

    def emit(self, op: str, *args: int, **attrs: Any) -> int:
        """Append an instruction. Raises ProgramError where it is not allowed, too large or does not type-check."""
        if op not in self.allowed:
            raise ProgramError(f"{op} is not allowed")
        value = self.builder.emit(op, *args, **attrs)
        self.used.update(args)
        self.magnitude.append(self._estimate(op, args, attrs, value))
        self.exact.append(op in EXACT and all(self.exact[a] for a in args))
        if op in LEAVES:
            self.hidden.add(value)
        if self.type(value).elements > self.largest:
            raise ProgramError("too large", expected=f"at most {self.largest} elements")
        return value

    def _estimate(self, op: str, args: Sequence[int], attrs: dict[str, Any], value: int) -> float:
        """Roughly the largest magnitude of the result."""
        of = [self.magnitude[a] for a in args]
        if op == "contract":
            a, _, out = split_einsum(attrs["einsum"])
            gone = [c for c in a if c not in out]
            count = math.prod(self.size(args[0], a.index(c)) for c in gone)
            return of[0] * of[1] * math.sqrt(count) * 1.5
        if op == "sum":
            return of[0] * self.type(args[0]).elements / self.type(value).elements
        return _ESTIMATES.get(op, _largest)(of, attrs)

    def param(self, stem: str, shape: Sequence[int]) -> int:
        self._names += 1
        return self.emit("param", name=f"{stem}{self._names}", shape=tuple(shape))

    def number(self, value: float, shape: Sequence[int] = ()) -> int:
        return self.emit("const", value=value, shape=tuple(shape))

    def tamed(self, value: int) -> int:
        """The value, scaled down where it may have grown large."""
        if self.magnitude[value] <= LARGEST:
            return value
        factor = float(f"{3.0 / self.magnitude[value]:.3g}")
        if {"mul", "const"} <= self.allowed:
            return self.emit("mul", value, self.number(factor))
        return self.emit("tanh", value)


def _largest(of: list[float], attrs: dict[str, Any]) -> float:
    return max(of, default=1.0)


_ESTIMATES: dict[str, Callable[[list[float], dict[str, Any]], float]] = {
    # a parameter has magnitude 1 at most: its fan-in is taken into account where it is contracted
    "param": lambda of, attrs: min(1.5, 3.0 / math.sqrt(max(1, math.prod(attrs["shape"][1:])))),
    "const": lambda of, attrs: abs(attrs["value"]),
    "pad": lambda of, attrs: max(of[0], abs(attrs["value"]) if math.isfinite(attrs["value"]) else 0.0),
    "add": lambda of, attrs: of[0] + of[1],
    "sub": lambda of, attrs: of[0] + of[1],
    "mul": lambda of, attrs: of[0] * of[1],
    "div": lambda of, attrs: of[0] / 0.5,
    "square": lambda of, attrs: of[0] ** 2,
    "exp": lambda of, attrs: math.exp(min(of[0], 2.0)),
    "log": lambda of, attrs: 3.0,
    "sqrt": lambda of, attrs: 1.0 + math.sqrt(of[0]),
    "reciprocal": lambda of, attrs: 2.0,
    "clip": lambda of, attrs: max(abs(attrs["min"]), abs(attrs["max"])),
    "sigmoid": lambda of, attrs: 1.0,
    "tanh": lambda of, attrs: 1.0,
    "erf": lambda of, attrs: 1.0,
    "normalize": lambda of, attrs: 2.0 * of[0] + 2.0,
}

__all__ = ["BATCH", "Draft", "Rng"]

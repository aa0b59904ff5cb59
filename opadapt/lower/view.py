"""Questions a lowering asks about a program: who reads a value, is it constant, is it made of weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from opadapt.ir.canonical import live_values
from opadapt.ir.program import Instruction, Program
from opadapt.ir.types import TensorType


class View:
    """A program with its live readers counted. Values are the program's value numbers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.types = program.types

    def step(self, value: int) -> Instruction | None:
        """The instruction that makes a value; None for an input of the program."""
        return None if value < len(self.program.inputs) else self.program[value]

    def is_op(self, value: int, *ops: str) -> bool:
        step = self.step(value)
        return step is not None and step.op in ops

    def args(self, value: int) -> tuple[int, ...]:
        return self.program[value].args

    def shape(self, value: int) -> tuple[int | str, ...]:
        return self.types[value].shape

    def type(self, value: int) -> TensorType:
        return self.types[value]

    @cached_property
    def live(self) -> frozenset[int]:
        """Values the output depends on, the output included."""
        return live_values(self.program)

    @cached_property
    def readers(self) -> Counter[int]:
        """How often each value is read by live instructions; the program's output counts as one reader."""
        counts: Counter[int] = Counter([self.program.output])
        for value in self.live:
            step = self.step(value)
            counts.update(step.args if step is not None else ())
        return counts

    @cached_property
    def param_readers(self) -> Counter[str]:
        """How often each parameter is read, under whatever value number."""
        counts: Counter[str] = Counter()
        for value in self.live:
            if self.is_op(value, "param"):
                counts[self.program[value].attr["name"]] += self.readers[value]
        return counts

    @cached_property
    def _static(self) -> list[bool]:
        flags = [False] * len(self.program.inputs)
        for step in self.program.body:
            flags.append(all(flags[a] for a in step.args))
        return flags

    def is_static(self, value: int) -> bool:
        """Whether a value depends on parameters and constants alone."""
        return self._static[value]

    def private(self, value: int) -> bool:
        """Whether exactly one live instruction reads a value, once, and it is not the output."""
        if self.is_op(value, "param"):
            return self.param_readers[self.program[value].attr["name"]] == 1 and value != self.program.output
        return self.readers[value] == 1 and value != self.program.output

    def fill(self, value: int) -> float | None:
        """The number a constant is filled with, seen through structure instructions; else None."""
        while self.is_op(value, "reshape", "transpose", "broadcast", "slice"):
            value = self.args(value)[0]
        return float(self.program[value].attr["value"]) if self.is_op(value, "const") else None

    def is_filled(self, value: int, expected: float, rtol: float = 1e-6) -> bool:
        number = self.fill(value)
        return number is not None and abs(number - expected) <= rtol * abs(expected)

    def factors(self, value: int) -> list[int]:
        """The operands of a product, nested private products flattened."""
        result: list[int] = []
        for arg in self.args(value):
            nested = self.is_op(arg, "mul") and self.private(arg)
            result.extend(self.factors(arg) if nested else [arg])
        return result

    def keeps_shape(self, value: int, operand: int) -> bool:
        """Whether a value has its operand's type (nothing else made it larger)."""
        return self.types[value] == self.types[operand]


def take(values: Sequence[int], wanted: int) -> list[int] | None:
    """The values without one occurrence of ``wanted``; None where it is not among them."""
    rest = list(values)
    if wanted not in rest:
        return None
    rest.remove(wanted)
    return rest


__all__ = ["View", "take"]

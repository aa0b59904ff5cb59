"""The program: an immutable SSA list of instructions with a signature.

    program ::= inputs (types), body (instructions), output (a value number)

Values are numbered: the inputs first (0 .. len(inputs)-1), then one per instruction of the body, in order.
An instruction's operands have smaller numbers than its own. Parameter values live outside (``Binding``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from opadapt.errors import ProgramError
from opadapt.ir.instructions import spec_of
from opadapt.ir.spec import Array, AttrKind, AttrValue
from opadapt.ir.types import BATCH, TensorType

Binding = Mapping[str, Array]  # parameter name -> float32 value of the parameter's shape


@dataclass(frozen=True)
class Signature:
    """What a program is from outside: the types of its inputs and of its one output."""

    inputs: tuple[TensorType, ...]
    output: TensorType

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.inputs))}) -> {self.output}"


@dataclass(frozen=True)
class Instruction:
    """One step: an operation of the table, operand value numbers, attributes sorted by name."""

    op: str
    args: tuple[int, ...] = ()
    attrs: tuple[tuple[str, AttrValue], ...] = ()

    @cached_property
    def attr(self) -> dict[str, AttrValue]:
        return dict(self.attrs)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_ATTR_CHECKS: dict[AttrKind, Any] = {
    "int": _is_int,
    "float": lambda v: isinstance(v, float) and v == v,  # no NaN: it equals nothing, not even its own text
    "str": lambda v: isinstance(v, str),
    "ints": lambda v: isinstance(v, tuple) and all(map(_is_int, v)),
    "dims": lambda v: isinstance(v, tuple) and all(_is_int(d) or d == BATCH for d in v),
    "pairs": lambda v: (
        isinstance(v, tuple) and all(isinstance(p, tuple) and len(p) == 2 and all(map(_is_int, p)) for p in v)
    ),
}


def _frozen(value: Any, kind: AttrKind) -> AttrValue:
    if kind == "float" and _is_int(value):
        return float(value)
    return tuple(_frozen(v, "int") for v in value) if isinstance(value, (list, tuple)) else value


def make(op: str, args: Sequence[int] = (), **attrs: Any) -> Instruction:
    """An instruction with its attributes checked against the table. Raises ProgramError."""
    spec = spec_of(op)
    if set(attrs) != set(spec.attrs):
        raise ProgramError(
            f"{op}: wrong attributes", expected=str(sorted(spec.attrs)), found=str(sorted(attrs))
        )
    if len(args) != spec.arity and not (spec.arity is None and args):
        raise ProgramError(
            f"{op}: wrong number of operands", expected=str(spec.arity or "1 or more"), found=str(len(args))
        )
    values = {name: _frozen(value, spec.attrs[name]) for name, value in attrs.items()}
    for name, value in values.items():
        if not _ATTR_CHECKS[spec.attrs[name]](value):
            raise ProgramError(f"{op}: attribute {name}", expected=spec.attrs[name], found=repr(value))
    return Instruction(op, tuple(args), tuple(sorted(values.items())))


@dataclass(frozen=True)
class Program:
    """A program of math instructions; type-checked at construction (raises ProgramError)."""

    inputs: tuple[TensorType, ...]
    body: tuple[Instruction, ...]
    output: int

    def __post_init__(self) -> None:
        seen: dict[str, tuple[int, ...]] = {}
        if not 0 <= self.output < len(self.types):
            raise ProgramError("output", expected=f"a value under {len(self.types)}", found=str(self.output))
        for name, shape in self.param_list:
            if seen.setdefault(name, shape) != shape:
                raise ProgramError(
                    f"param '{name}' has two shapes", expected=str(seen[name]), found=str(shape)
                )

    @cached_property
    def types(self) -> tuple[TensorType, ...]:
        """The type of every value, inputs first."""
        types = list(self.inputs)
        for instruction in self.body:
            number = len(types)
            if not all(0 <= a < number for a in instruction.args):
                raise ProgramError(
                    f"%{number} = {instruction.op}: operand used before it is made",
                    expected=f"values under {number}",
                    found=str(instruction.args),
                )
            spec = spec_of(instruction.op)
            types.append(spec.infer([types[a] for a in instruction.args], instruction.attr))
        return tuple(types)

    @cached_property
    def signature(self) -> Signature:
        return Signature(self.inputs, self.types[self.output])

    @cached_property
    def param_list(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((i.attr["name"], i.attr["shape"]) for i in self.body if i.op == "param")

    @cached_property
    def params(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trainable parameters by name, in order of appearance."""
        return dict(self.param_list)

    def number(self, position: int) -> int:
        """The value number of body instruction ``position``."""
        return len(self.inputs) + position

    def __getitem__(self, value: int) -> Instruction:
        """The instruction that makes a value. Inputs have none: IndexError."""
        if value < len(self.inputs):
            raise IndexError(f"%{value} is an input")
        return self.body[value - len(self.inputs)]


class Builder:
    """Builds a program step by step; every step is type-checked."""

    def __init__(self, inputs: Sequence[TensorType]) -> None:
        self.inputs = tuple(inputs)
        self.body: list[Instruction] = []
        self.types: list[TensorType] = list(inputs)

    def emit(self, op: str, *args: int, **attrs: Any) -> int:
        """Append an instruction and return its value number. Raises ProgramError."""
        return self.append(make(op, args, **attrs))

    def append(self, instruction: Instruction) -> int:
        spec = spec_of(instruction.op)
        self.types.append(spec.infer([self.types[a] for a in instruction.args], instruction.attr))
        self.body.append(instruction)
        return len(self.types) - 1

    def param(self, name: str, shape: Sequence[int]) -> int:
        return self.emit("param", name=name, shape=tuple(shape))

    def const(self, value: float, shape: Sequence[int] = ()) -> int:
        return self.emit("const", value=float(value), shape=tuple(shape))

    def inline(self, program: Program, args: Sequence[int]) -> int:
        """Append another program's body, its inputs replaced by ``args``; returns its output's number."""
        numbers = list(args)
        for step in program.body:
            numbers.append(
                self.append(Instruction(step.op, tuple(numbers[a] for a in step.args), step.attrs))
            )
        return numbers[program.output]

    def build(self, output: int) -> Program:
        return Program(self.inputs, tuple(self.body), output)

"""The expressions of rewrite rules: integer arithmetic over metavariables, and named calls. No eval.

expr ::= int | float | "string" | N | ?meta | %value | tuple | expr (+|-|*|//|%) expr | name(args, name=arg)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opadapt.errors import ProgramError
from opadapt.ir.spec import AttrValue


@dataclass(frozen=True)
class Meta:
    """``?name``: an attribute's value, a part of one, a size, or (as an operation) a function."""

    name: str


@dataclass(frozen=True)
class Reference:
    """``%name``: stands for a value of the program."""

    name: str


@dataclass(frozen=True)
class Binary:
    """Integer arithmetic."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Call:
    """A function of a small table, applied."""

    name: str
    args: tuple[Expr, ...]
    named: tuple[tuple[str, Expr], ...] = ()


Expr = int | float | str | Meta | Reference | Binary | Call | tuple["Expr", ...]


@dataclass(frozen=True)
class Condition:
    """A comparison of integers, or a named property of values (``computed(%x)``)."""

    op: str
    operands: tuple[Expr, ...]

    def __str__(self) -> str:
        if self.op in _COMPARE:
            return f"{show(self.operands[0])} {self.op} {show(self.operands[1])}"
        return f"{self.op}({', '.join(map(show, self.operands))})"


_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
COMPARISONS = frozenset(_COMPARE)
INTEGER_FUNCTIONS: Mapping[str, Callable[..., int]] = {"min": min, "max": max}


def evaluate(expr: Expr, metas: Mapping[str, AttrValue]) -> AttrValue:
    """The value of an expression without references. Raises ProgramError outside integer arithmetic."""
    if isinstance(expr, Meta):
        if expr.name not in metas:
            raise ProgramError(
                f"metavariable ?{expr.name} is not bound", found=", ".join(metas) or "none bound"
            )
        return metas[expr.name]
    if isinstance(expr, tuple):
        return tuple(evaluate(part, metas) for part in expr)
    if isinstance(expr, Binary):
        left, right = _integer(expr.left, metas), _integer(expr.right, metas)
        if expr.op in ("//", "%") and right == 0:
            raise ProgramError("division by zero", found=show(expr))
        return _ARITHMETIC[expr.op](left, right)
    if isinstance(expr, Call):
        if expr.name not in INTEGER_FUNCTIONS or expr.named:
            raise ProgramError("no such function of integers", expected="min, max", found=show(expr))
        return INTEGER_FUNCTIONS[expr.name](*(_integer(arg, metas) for arg in expr.args))
    if isinstance(expr, Reference):
        raise ProgramError("a value where an integer goes", found=show(expr))
    return expr


def _integer(expr: Expr, metas: Mapping[str, AttrValue]) -> int:
    value = evaluate(expr, metas)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProgramError(
            "arithmetic is of integers", expected="an integer", found=f"{show(expr)} = {value!r}"
        )
    return value


def compare(condition: Condition, metas: Mapping[str, AttrValue]) -> bool:
    """Whether a comparison holds; equality goes for any values, order for integers. Raises ProgramError."""
    left, right = condition.operands
    if condition.op in ("==", "!="):
        return _COMPARE[condition.op](evaluate(left, metas), evaluate(right, metas))
    return _COMPARE[condition.op](_integer(left, metas), _integer(right, metas))


def leaves(expr: Expr) -> Iterator[Meta | Reference]:
    """The metavariables and references of an expression."""
    if isinstance(expr, (Meta, Reference)):
        yield expr
        return
    parts: tuple[Expr, ...] = ()
    if isinstance(expr, tuple):
        parts = expr
    elif isinstance(expr, Binary):
        parts = (expr.left, expr.right)
    elif isinstance(expr, Call):
        parts = (*expr.args, *(value for _, value in expr.named))
    for part in parts:
        yield from leaves(part)


def calls(expr: Expr) -> Iterator[Call]:
    """The calls of an expression, the outer ones first."""
    if isinstance(expr, Call):
        yield expr
        for part in (*expr.args, *(value for _, value in expr.named)):
            yield from calls(part)
    elif isinstance(expr, tuple):
        for part in expr:
            yield from calls(part)
    elif isinstance(expr, Binary):
        yield from calls(expr.left)
        yield from calls(expr.right)


def show(expr: Expr) -> str:
    """The expression's text, for messages."""
    if isinstance(expr, Meta):
        return f"?{expr.name}"
    if isinstance(expr, Reference):
        return f"%{expr.name}"
    if isinstance(expr, Binary):
        return f"({show(expr.left)} {expr.op} {show(expr.right)})"
    if isinstance(expr, Call):
        parts = [*map(show, expr.args), *(f"{name}={show(value)}" for name, value in expr.named)]
        return f"{expr.name}({', '.join(parts)})"
    if isinstance(expr, tuple):
        return "(" + "".join(f"{show(part)}," for part in expr) + ")"
    return repr(expr)

"""Pattern programs: the textual form with symbolic values, metavariables and optional instructions.

    %x : f32[?n,?c,?h,?w]                               the type of a value
    %p = pad? %x pads=((0,0),(0,0),(?pt,?pb),(?pl,?pr)) optional: where absent, it stands for its operand
    %k = param shape=(?o,?c,?kh,?kw)                    attributes not written may be anything
    %a = ?act %y                                        any element-wise function of one value, whole
    return %a

The same text serves as a template: attributes are expressions (``?c // 2``), ``param`` takes no name, and
an optional instruction stands for its first operand where another operand is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

from lark import Lark, Token, Transformer

from opadapt.errors import ProgramError
from opadapt.ir.instructions import TABLE
from opadapt.ir.text import parse_text
from opadapt.search.expression import (
    COMPARISONS,
    Binary,
    Call,
    Condition,
    Expr,
    Meta,
    Reference,
    leaves,
    show,
)

CHAIN = "chain"  # %y = chain %x: y is an element-wise function of x alone, of two instructions or more
# computed(%x): x depends on an input; same_type(%x, %y)
PROPERTIES = frozenset({"computed", "same_type"})


@dataclass(frozen=True)
class Line:
    """One instruction of a pattern or template."""

    target: str
    op: str | Meta
    optional: bool
    args: tuple[str, ...]
    attrs: tuple[tuple[str, Expr], ...]
    line: int


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern or template. Names that no line makes are its inputs."""

    lines: tuple[Line, ...]
    types: tuple[tuple[str, tuple[Expr, ...]], ...]
    output: str

    @cached_property
    def by_target(self) -> Mapping[str, Line]:
        return {line.target: line for line in self.lines}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[Expr, ...]]:
        return dict(self.types)

    @cached_property
    def names(self) -> frozenset[str]:
        """Every value the text names."""
        used = {arg for line in self.lines for arg in line.args}
        return frozenset({self.output, *used, *self.by_target, *self.shapes})

    @cached_property
    def metas(self) -> frozenset[str]:
        """Every metavariable the text names."""
        exprs: list[Expr] = [value for line in self.lines for _, value in line.attrs]
        exprs += [dim for _, shape in self.types for dim in shape]
        exprs += [line.op for line in self.lines if isinstance(line.op, Meta)]
        return frozenset(leaf.name for expr in exprs for leaf in leaves(expr) if isinstance(leaf, Meta))


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern or template. Raises ProgramError with the line and column of what is wrong."""
    pattern: Pattern = _Build().transform(parse_text(_parser(), text, "pattern"))
    made: set[str] = set()
    for line in pattern.lines:
        _check_line(line)
        if line.target in made or any(
            line.target in other.args for other in pattern.lines if other.line < line.line
        ):
            raise ProgramError(f"line {line.line}: %{line.target} is made twice, or used before it is made")
        made.add(line.target)
    return pattern


def _check_line(line: Line) -> None:
    where = f"line {line.line}: {line.op if isinstance(line.op, str) else show(line.op)}"
    if line.optional and not line.args:
        raise ProgramError(f"{where}: without an operand it cannot be optional")
    if isinstance(line.op, Meta) or line.op == CHAIN:
        if line.attrs or len(line.args) != 1 or line.optional:
            raise ProgramError(f"{where}: takes one operand, no attributes, and is not optional")
        return
    spec = TABLE.get(line.op)
    if spec is None:
        raise ProgramError(f"{where}: no such instruction", expected=", ".join(TABLE), found=line.op)
    if len(line.args) != spec.arity and not (spec.arity is None and line.args):
        raise ProgramError(
            f"{where}: operands", expected=str(spec.arity or "1 or more"), found=str(len(line.args))
        )
    unknown = [name for name, _ in line.attrs if name not in spec.attrs]
    if unknown or len(dict(line.attrs)) != len(line.attrs):
        raise ProgramError(
            f"{where}: attributes", expected=", ".join(spec.attrs) or "none", found=str(line.attrs)
        )


def parse_expression(text: str) -> Expr:
    """Parse an expression. Raises ProgramError with the line and column of what is wrong."""
    expr: Expr = _Build().transform(parse_text(_parser(), text, "value"))
    return expr


def parse_condition(text: str) -> Condition:
    """Parse a condition. Raises ProgramError with the line and column of what is wrong."""
    condition: Condition = _Build().transform(parse_text(_parser(), text, "condition"))
    if not condition.op:
        raise ProgramError("no condition", expected="a comparison or a property", found=text)
    if condition.op not in COMPARISONS | PROPERTIES:
        raise ProgramError("no such property", expected=", ".join(sorted(PROPERTIES)), found=condition.op)
    return condition


@cache
def _parser() -> Lark:
    grammar = resources.files("opadapt.search").joinpath("pattern.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", start=["pattern", "value", "condition"], maybe_placeholders=False)


def _name(token: Token) -> str:
    return str(token)[1:]


class _Build(Transformer[Token, Any]):
    """Lark's tree -> the dataclasses; one method per rule of the grammar."""

    def pattern(self, parts: list[Any]) -> Pattern:
        *entries, output = parts
        lines = tuple(entry for entry in entries if isinstance(entry, Line))
        return Pattern(lines, tuple(e for e in entries if not isinstance(e, Line)), _name(output))

    def typing(self, parts: list[Any]) -> tuple[str, tuple[Expr, ...]]:
        return _name(parts[0]), tuple(parts[1:])

    def line(self, parts: list[Any]) -> Line:
        target, op, *rest = parts
        tokens = [part for part in rest if isinstance(part, Token)]
        return Line(
            _name(target),
            Meta(_name(op)) if op.type == "META" else str(op),
            any(token.type == "OPTIONAL" for token in tokens),
            tuple(_name(token) for token in tokens if token.type == "VALUE"),
            tuple(part for part in rest if not isinstance(part, Token)),
            target.line or 0,
        )

    def attr(self, parts: list[Any]) -> tuple[str, Expr]:
        return str(parts[0]), parts[1]

    def condition(self, parts: list[Any]) -> Condition:
        if len(parts) == 3:
            return Condition(str(parts[1]), (parts[0], parts[2]))
        value = parts[0]
        if isinstance(value, Call) and not value.named:
            return Condition(value.name, value.args)
        return Condition("", (value,))

    def binary(self, parts: list[Any]) -> Binary:
        return Binary(str(parts[1]), parts[0], parts[2])

    def signed(self, parts: list[Any]) -> Expr:
        sign, value = parts
        if sign == "+":
            return value  # type: ignore[no-any-return]
        return -value if isinstance(value, (int, float)) else Binary("-", 0, value)

    def call(self, parts: list[Any]) -> Call:
        name, *arguments = parts
        args = tuple(value for key, value in arguments if key is None)
        return Call(str(name), args, tuple((key, value) for key, value in arguments if key is not None))

    def argument(self, parts: list[Any]) -> tuple[str | None, Expr]:
        return (str(parts[0]), parts[1]) if len(parts) == 2 else (None, parts[0])

    def sequence(self, parts: list[Any]) -> Expr:
        return (*parts,)

    def integer(self, parts: list[Any]) -> int:
        return int(parts[0])

    def real(self, parts: list[Any]) -> float:
        return float(parts[0])

    def string(self, parts: list[Any]) -> str:
        return str(parts[0])[1:-1]

    def batch(self, parts: list[Any]) -> str:
        return str(parts[0])

    def meta(self, parts: list[Any]) -> Meta:
        return Meta(_name(parts[0]))

    def reference(self, parts: list[Any]) -> Reference:
        return Reference(_name(parts[0]))


__all__ = ["CHAIN", "Line", "Pattern", "parse_condition", "parse_expression", "parse_pattern"]

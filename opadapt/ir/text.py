"""The textual form of programs, for logs, seeds, rewrite rules, golden files and reports.

    program(f32[N,16,32,32], f32[16]) -> f32[N,16,32,32]
    %2 = pad %0 pads=((0,0),(0,0),(1,1),(1,1)) value=0.0
    %3 = param name="w" shape=(16,16,3,3)
    return %2

``parse_program(print_program(p)) == p`` for every program. The grammar is ``grammar.lark``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from opadapt.errors import ProgramError
from opadapt.ir.program import Builder, Program
from opadapt.ir.spec import AttrValue
from opadapt.ir.types import TensorType

# What a user reads in place of the grammar's terminal names.
_TERMINALS = {
    "VALUE": "a value such as %3",
    "NAME": "a name",
    "INT": "an integer",
    "FLOAT": "a float",
    "STRING": "a string",
    "BATCH": "N",
    "_NL": "a new line",
    "$END": "the end",
    "PROGRAM": "'program'",
    "RETURN": "'return'",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "COMMA": "','",
    "EQUAL": "'='",
    "F32": "'f32'",
}


def print_attr(value: AttrValue) -> str:
    """An attribute's value in the textual form."""
    return json.dumps(value) if isinstance(value, str) else _print_number(value)


def _print_number(value: AttrValue) -> str:
    if isinstance(value, tuple):
        inner = ",".join(map(_print_number, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return value if isinstance(value, str) else repr(value)  # the one string here is the batch N


def print_program(program: Program) -> str:
    """The program's text, one line per instruction, without a final new line."""
    lines = [f"program{program.signature}"]
    for position, step in enumerate(program.body):
        args = "".join(f" %{a}" for a in step.args)
        attrs = "".join(f" {name}={print_attr(value)}" for name, value in step.attrs)
        lines.append(f"%{program.number(position)} = {step.op}{args}{attrs}")
    lines.append(f"return %{program.output}")
    return "\n".join(lines)


def parse_program(text: str) -> Program:
    """The program that ``text`` states. Raises ProgramError with the line and column of what is wrong."""
    tree = parse_text(_parser(), text)
    header, *lines, result = tree.children
    *inputs, output = [_type(t) for t in header.children if t is not None]
    builder = Builder(inputs)
    for line in lines:
        target, op = line.children[0], line.children[1]
        if int(target[1:]) != len(builder.types):
            raise _error(target, "values are numbered in order", f"%{len(builder.types)}", str(target))
        args = [int(v[1:]) for v in line.children[2:] if isinstance(v, Token)]
        bad = [v for v in args if v >= len(builder.types)]
        if bad:
            raise _error(target, "operand used before it is made", f"values before {target}", f"%{bad[0]}")
        attrs: dict[str, Any] = {}
        for attr in line.children[2:]:
            if isinstance(attr, Tree):
                name = str(attr.children[0])
                if name in attrs:
                    raise _error(op, f"{op}: attribute given twice", "each once", name)
                attrs[name] = _value(attr.children[1])
        try:
            builder.emit(str(op), *args, **attrs)
        except ProgramError as error:
            raise _error(op, error.message, error.expected, error.found) from error
    value = result.children[0]
    if int(value[1:]) >= len(builder.types):
        raise _error(value, "returned value is never made", f"under %{len(builder.types)}", str(value))
    try:
        program = builder.build(int(value[1:]))
    except ProgramError as error:
        raise _error(value, error.message, error.expected, error.found) from error
    if program.signature.output != output:
        raise _error(value, "returned type differs", str(output), str(program.signature.output))
    return program


def parse_text(parser: Lark, text: str, start: str | None = None) -> Any:
    """Lark's tree of ``text``. Raises ProgramError with line, column, what was expected and found."""
    try:
        return parser.parse(text, start=start)
    except UnexpectedInput as error:
        allowed: set[str] = set()
        found = "the end of the text"
        if isinstance(error, UnexpectedCharacters):
            allowed, found = set(error.allowed or ()), repr(error.char)
        elif isinstance(error, UnexpectedToken):
            allowed = set(error.accepts or error.expected)
            found = repr(str(error.token)) if error.token.type != "$END" else found
        names = sorted({_TERMINALS.get(name, name.lower()) for name in allowed})
        raise ProgramError(
            f"line {max(error.line, 1)}, column {max(error.column, 1)}: text that does not parse",
            expected=" or ".join(names) or None,
            found=found,
        ) from error


@cache
def _parser() -> Lark:
    grammar = resources.files("opadapt.ir").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr")


def _error(where: Token, message: str, expected: str | None, found: str | None) -> ProgramError:
    return ProgramError(
        f"line {where.line}, column {where.column}: {message}", expected=expected, found=found
    )


def _type(tree: Any) -> TensorType:
    dims = [dim.children[0] for dim in tree.children if dim is not None]
    try:
        return TensorType(tuple(_value(dim) for dim in dims))
    except ProgramError as error:
        raise _error(dims[0], error.message, error.expected, error.found) from error


_LITERALS: Mapping[str, Callable[[str], AttrValue]] = {
    "INT": int,
    "FLOAT": float,
    "BATCH": str,
    "STRING": json.loads,
}


def _value(node: Any) -> AttrValue:
    if isinstance(node, Token):
        return _LITERALS[node.type](node)
    return tuple(_value(child) for child in node.children)


__all__ = ["parse_program", "parse_text", "print_attr", "print_program"]

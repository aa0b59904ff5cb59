"""A rewrite rule: a pattern, conditions, a template, and how new parameters come from the matched ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from opadapt.errors import ProgramError
from opadapt.ir.instructions import TABLE
from opadapt.search.expression import (
    INTEGER_FUNCTIONS,
    Call,
    Condition,
    Expr,
    Meta,
    Reference,
    calls,
    leaves,
    show,
)
from opadapt.search.initial import FUNCTIONS
from opadapt.search.pattern import CHAIN, Pattern


@dataclass(frozen=True)
class Rule:
    """before -> after, as data; checked as a whole at construction (raises ProgramError).

    ``choose`` lists the values a free choice may take; ``let`` names further integers, in order; ``where``
    must hold. ``init`` maps new parameters of the template (several for a call that gives several) to a call
    of ``opadapt.search.initial``. ``exact`` says that the program computes the same up to float rounding.
    """

    name: str
    source: str
    exact: bool
    match: Pattern
    replace: Pattern
    choose: Mapping[str, tuple[Expr, ...]] = field(default_factory=dict)
    let: Mapping[str, Expr] = field(default_factory=dict)
    where: tuple[Condition, ...] = ()
    init: Mapping[tuple[str, ...], Call] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_match(self.match)
        _check_replace(self.replace)
        self._check_metas()
        self._check_values()

    def _check_metas(self) -> None:
        """Every metavariable is bound before it is read, every function exists."""
        integers: list[tuple[str, list[Expr]]] = [
            ("choose", [e for values in self.choose.values() for e in values])
        ]
        known = set(self.match.metas)
        _bound(known, *integers[0])
        known |= set(self.choose)
        for name, expr in self.let.items():
            integers.append((f"let {name}", [expr]))
            _bound(known, *integers[-1])
            known.add(name)
        integers.append(("where", [e for c in self.where for e in c.operands]))
        integers.append(("replace", [e for line in self.replace.lines for _, e in line.attrs]))
        for what, exprs in integers[-2:]:
            _bound(known, what, exprs)
        _bound(known, "replace", [Meta(name) for name in sorted(self.replace.metas)])
        _bound(known, "init", list(self.init.values()))
        for what, exprs in integers:
            for call in (c for expr in exprs for c in calls(expr)):
                _check_call(call, INTEGER_FUNCTIONS, what)
        for call in (c for expr in self.init.values() for c in calls(expr)):
            _check_call(call, {**INTEGER_FUNCTIONS, **FUNCTIONS}, "init")

    def _check_values(self) -> None:
        """Every new parameter has one initial value; what is read is matched or made."""
        new = [line.target for line in self.replace.lines if line.op == "param"]
        given = [name for names in self.init for name in names]
        if sorted(new) != sorted(given):
            raise ProgramError("init: one value per new parameter", expected=str(new), found=str(given))
        matched, made = self.match.names, set(self.replace.by_target)
        clash = matched & made
        if clash:
            raise ProgramError("replace: names that the pattern has already", found=_names("%", clash))
        operands = [e for condition in self.where for e in condition.operands]
        refs = {
            r.name for e in (*operands, *self.init.values()) for r in leaves(e) if isinstance(r, Reference)
        }
        lost = (self.replace.names - made - matched) | (refs - matched)
        if lost:
            raise ProgramError("values that the pattern does not name", found=_names("%", lost))


def _check_match(match: Pattern) -> None:
    """Every line leads to the output, and attributes are things to compare."""
    used, pending = set[str](), [match.output]
    while pending:
        name = pending.pop()
        if name not in used:
            used.add(name)
            line = match.by_target.get(name)
            pending.extend(line.args if line is not None else ())
    if match.names - used:
        raise ProgramError(
            "match: values that do not lead to the output", found=_names("%", match.names - used)
        )
    attributes = [e for line in match.lines for _, e in line.attrs]
    for expr in (*attributes, *(e for _, shape in match.types for e in shape)):
        if not _is_pattern(expr):
            raise ProgramError(
                "match: an attribute to compute",
                expected="a number, a string, a metavariable or a tuple of them",
                found=show(expr),
                do="bind a metavariable and compare it in 'where'",
            )


def _check_replace(replace: Pattern) -> None:
    """Every line has all of its attributes, a new parameter its shape alone."""
    if replace.types:
        raise ProgramError("replace: types are for patterns alone", found=_names("%", replace.shapes))
    for line in replace.lines:
        if line.op == CHAIN:
            raise ProgramError("replace: chain is for patterns alone")
        if isinstance(line.op, str):
            wanted = {"shape"} if line.op == "param" else set(TABLE[line.op].attrs)
            if {name for name, _ in line.attrs} != wanted:
                raise ProgramError(
                    f"replace: attributes of %{line.target} = {line.op}",
                    expected=_names("", wanted) or "none",
                    found=_names("", dict(line.attrs)) or "none",
                )


def _bound(known: set[str], where: str, exprs: list[Expr]) -> None:
    unknown = {m.name for e in exprs for m in leaves(e) if isinstance(m, Meta)} - known
    if unknown:
        raise ProgramError(
            f"{where}: metavariables that nothing binds",
            expected=_names("?", known) or "none",
            found=_names("?", unknown),
        )


def _check_call(call: Call, table: Mapping[str, Callable[..., object]], where: str) -> None:
    if call.name not in table:
        raise ProgramError(f"{where}: no such function", expected=_names("", table), found=call.name)
    if call.name in INTEGER_FUNCTIONS:
        if len(call.args) < 2 or call.named:
            raise ProgramError(f"{where}: arguments of {call.name}", expected="integers", found=show(call))
        return
    signature = inspect.signature(table[call.name])
    try:
        signature.bind(None, *call.args, **dict(call.named))
    except TypeError as error:
        names = list(signature.parameters)[1:]  # the first is the rng
        raise ProgramError(
            f"{where}: arguments of {call.name}: {error}", expected=", ".join(names), found=show(call)
        ) from error


def _is_pattern(expr: Expr) -> bool:
    if isinstance(expr, tuple):
        return all(map(_is_pattern, expr))
    return isinstance(expr, (int, float, str, Meta))


def _names(sign: str, names: Iterable[str]) -> str:
    return ", ".join(f"{sign}{name}" for name in sorted(names))

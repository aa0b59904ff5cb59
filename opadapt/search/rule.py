"""A rewrite rule: a pattern, conditions, a template, and how new parameters come from the matched ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opadapt.errors import ProgramError
from opadapt.search.expression import INTEGER_FUNCTIONS, Call, Condition, Expr, Meta, Reference, calls, leaves
from opadapt.search.initial import FUNCTIONS
from opadapt.search.pattern import CHAIN, Pattern


@dataclass(frozen=True)
class Rule:
    """before -> after, as data.

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
        self._check_metas()
        self._check_params()

    def _check_metas(self) -> None:
        """Every metavariable is bound before it is read. Raises ProgramError."""
        known = set(self.match.metas)
        _known(known, [e for values in self.choose.values() for e in values], "choose")
        known |= set(self.choose)
        for name, expr in self.let.items():
            _known(known, [expr], f"let {name}")
            known.add(name)
        _known(known, [e for condition in self.where for e in condition.operands], "where")
        _known(known, [Meta(name) for name in sorted(self.replace.metas)], "replace")
        _known(known, list(self.init.values()), "init")
        for call in (c for values in self.choose.values() for e in values for c in calls(e)):
            _function(call, INTEGER_FUNCTIONS, "choose")
        for call in (c for expr in self.let.values() for c in calls(expr)):
            _function(call, INTEGER_FUNCTIONS, "let")
        for call in (c for expr in self.init.values() for c in calls(expr)):
            _function(call, {**INTEGER_FUNCTIONS, **FUNCTIONS}, "init")

    def _check_params(self) -> None:
        """Every new parameter has one initial value, made of matched values. Raises ProgramError."""
        new = [line.target for line in self.replace.lines if line.op == "param"]
        given = [name for names in self.init for name in names]
        if sorted(new) != sorted(given):
            raise ProgramError("init: one value per new parameter", expected=str(new), found=str(given))
        if any(line.op == CHAIN for line in self.replace.lines):
            raise ProgramError("replace: chain is for patterns alone")
        matched = self.match.names
        read = {arg for line in self.replace.lines for arg in line.args} | {self.replace.output}
        made = set(self.replace.by_target)
        operands = [e for condition in self.where for e in condition.operands]
        refs = {
            r.name for e in (*operands, *self.init.values()) for r in leaves(e) if isinstance(r, Reference)
        }
        lost = sorted((read - made - matched) | (refs - matched))
        if lost:
            raise ProgramError(
                "values that the pattern does not name", found=", ".join(f"%{n}" for n in lost)
            )


def _known(known: set[str], exprs: list[Expr], where: str) -> None:
    unknown = sorted({m.name for e in exprs for m in leaves(e) if isinstance(m, Meta)} - known)
    if unknown:
        raise ProgramError(
            f"{where}: metavariables that nothing binds",
            expected=", ".join(f"?{n}" for n in sorted(known)),
            found=", ".join(f"?{n}" for n in unknown),
        )


def _function(call: Call, table: Mapping[str, object], where: str) -> None:
    if call.name not in table:
        raise ProgramError(f"{where}: no such function", expected=", ".join(sorted(table)), found=call.name)

"""Where a pattern program occurs in a program: unification from the pattern's output upwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from opadapt.ir.canonical import plain_einsum
from opadapt.ir.instructions import COMMUTATIVE, TABLE
from opadapt.ir.program import Program
from opadapt.ir.spec import AttrValue
from opadapt.search.expression import Expr, Meta
from opadapt.search.pattern import CHAIN, Line, Pattern

# An element-wise function of value 0: (op, operands, attributes) per step; step i, from 1, makes value i.
Function = tuple[tuple[str, tuple[int, ...], tuple[tuple[str, AttrValue], ...]], ...]


@dataclass(frozen=True)
class Match:
    """One occurrence of a pattern: which value each of its names is, what each metavariable is.

    ``root`` is the value the pattern's output stands for. A metavariable of an operation is bound to a
    ``Function``. Names of absent optional parts are not in ``values``.
    """

    values: Mapping[str, int]
    metas: Mapping[str, AttrValue]
    root: int
    matched: frozenset[int] = frozenset()


def find(pattern: Pattern, program: Program) -> list[Match]:
    """All occurrences, by root value, whose interior results nothing outside the occurrence reads."""
    search = _Search(pattern, program)
    found: list[Match] = []
    for root in range(len(program.inputs), len(program.types)):
        start = Match({}, {}, root)
        for match in search.value(pattern.output, root, start):
            if search.enclosed(match) and match not in found:
                found.append(match)
    return found


class _Search:
    def __init__(self, pattern: Pattern, program: Program) -> None:
        self.pattern = pattern
        self.program = program

    @cached_property
    def users(self) -> list[list[int]]:
        """For each value, the values made from it."""
        users: list[list[int]] = [[] for _ in self.program.types]
        for position, step in enumerate(self.program.body):
            for arg in dict.fromkeys(step.args):
                users[arg].append(self.program.number(position))
        return users

    def enclosed(self, match: Match) -> bool:
        interior = [
            v for v in match.matched if v != match.root and self.program[v].op not in ("param", "const")
        ]
        return all(v != self.program.output and match.matched.issuperset(self.users[v]) for v in interior)

    def value(self, name: str, value: int, match: Match) -> Iterator[Match]:
        """Unify a name of the pattern with a value of the program."""
        if name in match.values:
            if match.values[name] == value:
                yield match
            return
        bound: Match | None = replace(match, values={**match.values, name: value})
        if bound is not None and name in self.pattern.shapes:
            bound = _unify(self.pattern.shapes[name], self.program.types[value].shape, bound)
        if bound is None:
            return
        line = self.pattern.by_target.get(name)
        if line is None:
            yield bound
            return
        present = False
        for result in self.line(line, value, bound):
            present = True
            yield result
        if line.optional and not present:
            absent = self.identity(line, value, bound)
            if absent is not None:
                yield from self.value(line.args[0], value, absent)

    def line(self, line: Line, value: int, match: Match) -> Iterator[Match]:
        """Unify a line with the instruction that makes a value."""
        if value < len(self.program.inputs):
            return
        step = self.program[value]
        if line.op == CHAIN or isinstance(line.op, Meta):
            yield from self.function(line, value, match)
            return
        if step.op != line.op:
            return
        bound: Match | None = replace(match, matched=match.matched | {value})
        for name, expr in line.attrs:
            bound = bound and _unify_attr(name, expr, step.attr[name], bound)
        if bound is None or len(step.args) != len(line.args):
            return
        orders = [step.args]
        if step.op in COMMUTATIVE and step.args[0] != step.args[1]:
            orders.append(step.args[::-1])
        for args in orders:
            yield from self.operands(line.args, args, bound)

    def operands(self, names: tuple[str, ...], values: tuple[int, ...], match: Match) -> Iterator[Match]:
        if not names:
            yield match
            return
        for first in self.value(names[0], values[0], match):
            yield from self.operands(names[1:], values[1:], first)

    def identity(self, line: Line, value: int, match: Match) -> Match | None:
        """The match where an optional line is absent: its attributes are those that change nothing."""
        rank = self.program.types[value].rank
        neutral: dict[str, AttrValue] = {"pads": ((0, 0),) * rank, "step": 1, "factor": 1, "offset": 0}
        bound: Match | None = match
        for name, expr in line.attrs:
            if name in neutral and bound is not None:
                bound = _unify(expr, neutral[name], bound)
        return bound

    def function(self, line: Line, value: int, match: Match) -> Iterator[Match]:
        """The largest element-wise function of one value that ends in ``value`` and goes no further."""
        least = 2 if line.op == CHAIN else 1
        for source in range(value):
            steps = self.steps_between(value, source)
            if steps is None or len([s for s in steps if self.program[s].op != "const"]) < least:
                continue
            if all(self.steps_between(user, source) is None for user in self.users[value]):
                bound: Match | None = replace(match, matched=match.matched | set(steps))
                if isinstance(line.op, Meta) and bound is not None:
                    bound = _unify(line.op, self.function_of(steps, source), bound)
                if bound is not None:
                    yield from self.value(line.args[0], source, bound)
            return

    def function_of(self, steps: list[int], source: int) -> Function:
        """The steps with operands numbered anew: 0 is the source, i the i-th step."""
        numbers = {source: 0} | {value: i for i, value in enumerate(steps, start=1)}
        made = [self.program[value] for value in steps]
        return tuple((step.op, tuple(numbers[a] for a in step.args), step.attrs) for step in made)

    def steps_between(self, value: int, source: int) -> list[int] | None:
        """The instructions from one value to another, if they are element-wise and read nothing else."""
        inside: set[int] = set()
        pending = [value]
        while pending:
            current = pending.pop()
            if current == source or current in inside:
                continue
            if current < source and self.op(current) != "const":
                return None
            if self.op(current) != "const" and not self.elementwise(current):
                return None
            inside.add(current)
            pending.extend(self.program[current].args)
        reads = any(source in self.program[v].args for v in inside)
        return sorted(inside) if reads else None

    def op(self, value: int) -> str | None:
        return self.program[value].op if value >= len(self.program.inputs) else None

    def elementwise(self, value: int) -> bool:
        op = self.op(value)
        return op is not None and TABLE[op].kind == "elementwise"


def _unify_attr(name: str, expr: Expr, value: AttrValue, match: Match) -> Match | None:
    if name == "einsum" and isinstance(expr, str):  # the letters' names do not matter
        return match if plain_einsum(expr) == plain_einsum(value) else None
    return _unify(expr, value, match)


def _unify(expr: Expr, value: AttrValue, match: Match) -> Match | None:
    if isinstance(expr, Meta):
        if expr.name in match.metas:
            return match if match.metas[expr.name] == value else None
        return replace(match, metas={**match.metas, expr.name: value})
    if isinstance(expr, tuple):
        if not isinstance(value, tuple) or len(value) != len(expr):
            return None
        bound: Match | None = match
        for part, inner in zip(expr, value, strict=True):
            bound = bound and _unify(part, inner, bound)
        return bound
    return match if expr == value else None

"""Applying rewrite rules to programs: ``variants`` says where and how, ``apply`` does it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.errors import ProgramError, Refused
from opadapt.ir.canonical import canonical, live_values
from opadapt.ir.program import Binding, Builder, Instruction, Program
from opadapt.ir.spec import Array, AttrValue
from opadapt.search.expression import (
    INTEGER_FUNCTIONS,
    Call,
    Expr,
    Meta,
    Reference,
    compare,
    evaluate,
    leaves,
    show,
)
from opadapt.search.initial import FUNCTIONS
from opadapt.search.matching import Match, find
from opadapt.search.pattern import Line
from opadapt.search.rule import Rule

Choice = Mapping[str, int]
Look = Callable[[int], Array | None]  # a value of the program as recorded samples make it, if there are any


def unseen(value: int) -> None:
    """The look at a program without samples."""


def matches(rule: Rule, program: Program) -> list[Match]:
    """Where the rule's pattern occurs, ordered by the value it replaces; ``where`` is not looked at yet."""
    return find(rule.match, program)


def variants(rule: Rule, program: Program) -> Iterator[tuple[Match, Choice]]:
    """Every occurrence with every choice whose conditions hold, in a fixed order."""
    for match in matches(rule, program):
        for choice in _choices(rule, match):
            if _failed_condition(rule, program, match, choice) is None:
                yield match, choice


def apply(
    rule: Rule,
    program: Program,
    match: Match,
    choice: Choice,
    binding: Binding | None,
    rng: np.random.Generator,
    look: Look = unseen,
) -> tuple[Program, Binding]:
    """The canonical program with one occurrence replaced, and its parameters' values (none without binding).

    ``look`` shows values of the program to the initial values that depend on data; they do without where it gives None.
    New parameters are named after the template's, made unique. Raises Refused where a condition fails, and
    ProgramError where the result does not type-check or a value does not have its parameter's shape.
    """
    failed = _failed_condition(rule, program, match, choice)
    if failed is not None:
        raise Refused("rewrite", f"rule {rule.name}: {failed} does not hold")
    metas = _metas(rule, match, choice)
    builder = Builder(program.inputs)
    numbers = list(range(len(program.inputs)))
    names: dict[str, str] = {}
    for position, step in enumerate(program.body):
        number = program.number(position)
        if number == match.root:
            made = {name: numbers[value] for name, value in match.values.items() if value < number}
            names = _names(rule, match, program)
            replaced = _emit(rule, builder, made, metas, names)
            if builder.types[replaced] != program.types[number]:
                raise ProgramError(
                    f"rule {rule.name}: the replacement has another type",
                    expected=str(program.types[number]),
                    found=str(builder.types[replaced]),
                )
            numbers.append(replaced)
        else:
            args = tuple(numbers[a] for a in step.args)
            numbers.append(builder.append(Instruction(step.op, args, step.attrs)))
    result = canonical(builder.build(numbers[program.output]))
    if binding is None:
        return result, {}
    values = {**binding, **_initial(rule, program, match, metas, names, binding, rng, look)}
    for name, shape in result.params.items():
        if name not in values or values[name].shape != shape:
            found = str(values[name].shape) if name in values else "nothing"
            raise ProgramError(f"rule {rule.name}: param '{name}'", expected=str(shape), found=found)
    return result, {name: values[name] for name in result.params}


def _choices(rule: Rule, match: Match) -> Iterator[Choice]:
    """Every combination of the free choices; a value that two expressions give comes once."""
    options = [dict.fromkeys(evaluate(e, match.metas) for e in values) for values in rule.choose.values()]
    for values in itertools.product(*options):
        yield dict(zip(rule.choose, values, strict=True))


def _metas(rule: Rule, match: Match, choice: Choice) -> dict[str, AttrValue]:
    metas: dict[str, AttrValue] = {**match.metas, **choice}
    for name, expr in rule.let.items():
        metas[name] = evaluate(expr, metas)
    return metas


def _failed_condition(rule: Rule, program: Program, match: Match, choice: Choice) -> str | None:
    """The first condition that does not hold, as text."""
    metas = _metas(rule, match, choice)
    for condition in rule.where:
        if condition.op in _PROPERTIES:
            refs = [r for e in condition.operands for r in leaves(e) if isinstance(r, Reference)]
            holds = _PROPERTIES[condition.op](program, [match.values[r.name] for r in refs])
        else:
            holds = compare(condition, metas)
        if not holds:
            return str(condition)
    return None


def _computed(program: Program, values: Sequence[int]) -> bool:
    """Whether every value depends on an input."""
    inputs = range(len(program.inputs))
    return all(not live_values(program, v).isdisjoint(inputs) for v in values)


def _same_type(program: Program, values: Sequence[int]) -> bool:
    return len({program.types[v] for v in values}) == 1


_PROPERTIES: Mapping[str, Callable[[Program, Sequence[int]], bool]] = {
    "computed": _computed,
    "same_type": _same_type,
}


def _absent(rule: Rule, match: Match) -> set[str]:
    """New parameters whose initial value needs an optional part that is absent."""
    return {
        name
        for targets, call in rule.init.items()
        for name in targets
        if any(isinstance(leaf, Reference) and leaf.name not in match.values for leaf in leaves(call))
    }


def _names(rule: Rule, match: Match, program: Program) -> dict[str, str]:
    """A name that the program does not have yet for each new parameter."""
    taken, names = set(program.params), dict[str, str]()
    absent = _absent(rule, match)
    for line in rule.replace.lines:
        if line.op == "param" and line.target not in absent:
            numbered = (f"{line.target}_{i}" for i in itertools.count(2))
            names[line.target] = next(n for n in itertools.chain([line.target], numbered) if n not in taken)
            taken.add(names[line.target])
    return names


def _emit(
    rule: Rule,
    builder: Builder,
    made: dict[str, int],
    metas: Mapping[str, AttrValue],
    names: Mapping[str, str],
) -> int:
    """Append the template's instructions. What needs an absent part is absent itself, or, if optional, stands
    for its first operand."""
    for line in rule.replace.lines:
        if line.op == "param":
            if line.target in names:
                shape = evaluate(dict(line.attrs)["shape"], metas)
                made[line.target] = builder.emit("param", name=names[line.target], shape=shape)
        elif all(arg in made for arg in line.args):
            made[line.target] = _emit_line(line, builder, [made[arg] for arg in line.args], metas)
        elif line.optional and line.args[0] in made:
            made[line.target] = made[line.args[0]]
    if rule.replace.output not in made:
        raise ProgramError(f"rule {rule.name}: the replacement needs an absent part")
    return made[rule.replace.output]


def _emit_line(line: Line, builder: Builder, args: list[int], metas: Mapping[str, AttrValue]) -> int:
    if isinstance(line.op, Meta):
        values = list(args)
        for op, operands, attrs in metas[line.op.name]:
            values.append(builder.append(Instruction(op, tuple(values[i] for i in operands), attrs)))
        return values[-1]
    return builder.emit(line.op, *args, **{name: evaluate(expr, metas) for name, expr in line.attrs})


def _initial(
    rule: Rule,
    program: Program,
    match: Match,
    metas: Mapping[str, AttrValue],
    names: Mapping[str, str],
    binding: Binding,
    rng: np.random.Generator,
    look: Look,
) -> dict[str, Array]:
    """The new parameters' values by their names in the program."""
    arrays = _arrays(rule, program, match, binding, look)
    result: dict[str, Array] = {}
    for targets, call in rule.init.items():
        if not set(targets) <= set(names):
            continue
        try:
            value = _call(call, metas, arrays, rng)
            parts = value if isinstance(value, tuple) else (value,)
            for target, part in zip(targets, parts, strict=True):
                result[names[target]] = np.ascontiguousarray(part, dtype=np.float32)
        except (ValueError, IndexError, np.linalg.LinAlgError) as error:
            raise ProgramError(
                f"rule {rule.name}: init of {', '.join(targets)}: {error}", found=show(call)
            ) from error
    return result


def _arrays(
    rule: Rule, program: Program, match: Match, binding: Binding, look: Look
) -> dict[str, NDArray[np.float64] | None]:
    """What the rule's initial values read: parameters, and other values as samples make them (None without)."""
    read = {leaf for call in rule.init.values() for leaf in leaves(call) if isinstance(leaf, Reference)}
    arrays: dict[str, NDArray[np.float64] | None] = {}
    for name, value in match.values.items():
        if Reference(name) not in read:
            continue
        if value >= len(program.inputs) and program[value].op == "param":
            arrays[name] = np.asarray(binding[program[value].attr["name"]], dtype=np.float64)
            continue
        seen = look(value)
        if seen is not None and not np.isfinite(seen).all():
            raise ProgramError(f"rule {rule.name}: %{name} is not finite on the samples")
        arrays[name] = None if seen is None else seen.astype(np.float64)
    return arrays


def _call(
    expr: Expr, metas: Mapping[str, AttrValue], arrays: Mapping[str, Any], rng: np.random.Generator
) -> Any:
    if isinstance(expr, Reference):
        return arrays[expr.name]
    if isinstance(expr, Call) and expr.name not in INTEGER_FUNCTIONS:
        args = [_call(arg, metas, arrays, rng) for arg in expr.args]
        named = {name: _call(value, metas, arrays, rng) for name, value in expr.named}
        return FUNCTIONS[expr.name](rng, *args, **named)
    return evaluate(expr, metas)


__all__ = ["Choice", "Match", "apply", "matches", "variants"]

"""Crossover: a stretch of one program in the place of a stretch of another.

    first: x -> A -> B -> C        second: x -> K -> L -> M        child: x -> K -> B -> M

A stretch makes its last value of its first one alone, beside parameters: the first lies on every way from the inputs to
the last (it dominates it: Lengauer and Tarjan 1979, doi 10.1145/357062.357071). So what is replaced is dead afterwards,
and nothing is computed twice.

Which stretches change places is drawn, the more often the more alike the values at their ends are, on samples of what
the region reads: homologous crossover (Langdon 2000, doi 10.1023/A:1010024515191) where alike means what is computed
(Nguyen et al. 2011, doi 10.1007/s10710-010-9121-2). Those that are drawn blindly mostly stand in for something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import chain, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opadapt.ir.canonical import live_values
from opadapt.ir.interpret import run_all
from opadapt.ir.program import Builder, Instruction, Program
from opadapt.ir.types import TensorType
from opadapt.search.candidate import Candidate, tidy
from opadapt.search.edit import DoesNotApply, is_param

ROWS = 4  # samples on which values are compared
NEAR = 0.05  # ends that differ by less are hardly preferred to one another
SAME = 1e-6  # stretches of equal length whose ends differ by less are the same


class Stretch(NamedTuple):
    """What makes the value ``end`` of the value ``start`` alone, in so many instructions."""

    start: int
    end: int
    length: int


def crossover(first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
    """The second's program with one of its stretches replaced by one of the first's, with its weights.

    Their ends are of the same kinds. Raises DoesNotApply where there are no such stretches, or equal ones only.
    """
    given, taken = stretches(first.program), stretches(second.program)
    chances = _chances(first, second, given, taken)
    if not chances.any():
        raise DoesNotApply("nothing to choose from: no stretches that differ between values of equal kinds")
    at = int(rng.choice(chances.size, p=(chances / chances.sum()).ravel()))
    source, target = given[at // len(taken)], taken[at % len(taken)]
    program, names = _grafted(first.program, source, second.program, target)
    bindings = tuple(
        theirs | {names[name]: weights for name, weights in ours.items()}
        for ours, theirs in zip(map(dict, first.bindings), map(dict, second.bindings), strict=True)
    )
    return tidy(program, bindings, f"({first.origin}) x ({second.origin})", first.samples)


def stretches(program: Program) -> list[Stretch]:
    """All stretches of a program between values whose first axis is the batch."""
    before = dominators(program)
    ends = [v for v in sorted(before.keys() & live_values(program)) if program.types[v].batch_axis == 0]
    return [
        Stretch(u, v, len(live_values(program, v, given=u)) - 1)
        for v in ends
        for u in ends
        if u < v and u in before[v]
    ]


def dominators(program: Program) -> dict[int, frozenset[int]]:
    """For each value that depends on an input, the values that lie on every way to it, itself included."""
    found = {number: frozenset([number]) for number in range(len(program.inputs))}
    for position, step in enumerate(program.body):
        read = [found[a] for a in step.args if a in found]
        if read:
            value = program.number(position)
            found[value] = frozenset.intersection(*read) | {value}
    return found


def _chances(
    first: Candidate, second: Candidate, given: list[Stretch], taken: list[Stretch]
) -> NDArray[np.float64]:
    """How likely each stretch of the first is to replace each of the second [given, taken], in any unit."""
    if not given or not taken:
        return np.zeros((len(given), len(taken)))
    apart = _apart(first, second)
    one, two = np.array(given), np.array(taken)
    starts, ends = (apart[np.ix_(one[:, side], two[:, side])] for side in (0, 1))
    same = (ends < SAME) & np.equal.outer(one[:, 2], two[:, 2])
    return np.where(same, 0.0, 1 / (starts + ends + NEAR))


def _apart(first: Candidate, second: Candidate) -> NDArray[np.float64]:
    """How far each value of the first is from each of the second: mean squared difference over mean square, on samples
    of the first member; infinite between values of different kinds. Without samples all of a kind are equally far."""
    kinds = _kinds(first.program), _kinds(second.program)
    made = _values(first), _values(second)
    result = np.full((len(kinds[0]), len(kinds[1])), np.inf)
    for kind in set(kinds[0]) & set(kinds[1]):
        places = [[v for v, found in enumerate(all_of) if found == kind] for all_of in kinds]
        rows = [[values[v].ravel() for v in vs if values] for values, vs in zip(made, places, strict=True)]
        result[np.ix_(*places)] = _differences(*map(np.stack, rows)) if first.samples else 1.0
    return result


def _kinds(program: Program) -> list[tuple[TensorType, str]]:
    """For each value its type and the instruction that makes it: a sum is put for a sum, not for what is added."""
    ops = ["input"] * len(program.inputs) + [step.op for step in program.body]
    return list(zip(program.types, ops, strict=True))


def _values(candidate: Candidate) -> list[NDArray[np.float32]]:
    """All values of the first member on a few samples; empty where none go with the candidate."""
    if not candidate.samples:
        return []
    few = [array[:ROWS] for array in candidate.samples[0]]
    return run_all(candidate.program, few, candidate.bindings[0])


def _differences(one: NDArray[np.float32], two: NDArray[np.float32]) -> NDArray[np.float64]:
    """Between the rows of two matrices [a, n] and [b, n]; infinite where one is not finite."""
    with np.errstate(all="ignore"):
        squares = np.add.outer(np.square(one).sum(1), np.square(two).sum(1)).astype(np.float64)
        found = (squares - 2 * (one @ two.T)) / np.maximum(squares / 2, 1e-12)
    return np.where(np.isfinite(found), np.maximum(found, 0.0), np.inf)


def _grafted(
    first: Program, source: Stretch, second: Program, target: Stretch
) -> tuple[Program, dict[str, str]]:
    """The second with the first's source for its target, and what the first's parameters are called in it."""
    rest = live_values(second, given=target.end) | live_values(second, target.start)
    used = {str(second[v].attr["name"]) for v in rest if is_param(second, v)}
    names = {name: _free(name, used | (set(first.params) - {name})) for name in first.params}
    builder = Builder(second.inputs)
    numbers = {number: number for number in range(len(second.inputs))}
    for value in sorted(rest - numbers.keys()):
        if value == target.end:
            made = {source.start: numbers[target.start]}
            for inner in sorted(live_values(first, source.end, given=source.start) - {source.start}):
                made[inner] = builder.append(_moved(first[inner], made, names))
            numbers[value] = made[source.end]
        else:
            numbers[value] = builder.append(_moved(second[value], numbers, {}))
    return builder.build(numbers[second.output]), names


def _moved(step: Instruction, numbers: Mapping[int, int], names: Mapping[str, str]) -> Instruction:
    """An instruction with the operands that stand for its own, and its parameter's new name."""
    attrs = tuple((k, names.get(str(v), v) if k == "name" else v) for k, v in step.attrs)
    return Instruction(step.op, tuple(numbers[a] for a in step.args), attrs)


def _free(name: str, used: Set[str]) -> str:
    numbered = (f"{name}_{number}" for number in count(1))
    return next(fresh for fresh in chain([name], numbered) if fresh not in used)

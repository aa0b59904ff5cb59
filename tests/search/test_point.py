"""Each point mutation changes what it says and nothing else, with what the space allows, and the result is valid."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from programs import block_candidate, residual_block, stage

from opadapt.errors import ProgramError
from opadapt.ir.canonical import canonical
from opadapt.ir.instructions import TABLE
from opadapt.ir.interpret import run
from opadapt.ir.program import Instruction, Program
from opadapt.ir.text import parse_program
from opadapt.search.candidate import rebind
from opadapt.search.point import MUTATIONS
from opadapt.search.space import Space, load_space
from opadapt.search.vary import seeds

SPACE = load_space()
BLOCK = canonical(residual_block(size=8))
GROUPED = next(c for c in seeds(block_candidate(), SPACE, 0) if "grouped_shuffle" in c.origin).program
SHIFTED = parse_program("program(f32[N,4,8,6]) -> f32[N,4,8,6]\n%1 = shift %0 axis=1 offset=1\nreturn %1")
RESAMPLED = parse_program(
    "program(f32[N,4,8,8]) -> f32[N,4,8,8]\n%1 = subsample %0 axis=2 step=2\n%2 = relu %1\n"
    "%3 = upsample %2 axis=2 factor=2\nreturn %3"
)
POOLED = parse_program(
    "program(f32[N,4,8,8]) -> f32[N,4]\n%1 = subsample %0 axis=2 step=2\n"
    "%2 = upsample %1 axis=3 factor=2\n%3 = max %2 axes=(2,3) keepdims=0\nreturn %3"
)
CENTRED = parse_program(
    "program(f32[N,4,4]) -> f32[N,4,4]\n%1 = mean %0 axes=(1,) keepdims=1\n%2 = sub %0 %1\nreturn %2"
)
PARTS = parse_program(
    "program(f32[N,8]) -> f32[N,8]\n%1 = slice %0 axis=1 start=0 stop=4\n"
    "%2 = split %0 axis=1 index=1 parts=2\n%3 = concat %1 %2 axis=1\nreturn %3"
)
# Where a mutation has something to do, if not in the block.
PLACES = {"groups": GROUPED, "axis": RESAMPLED, "factor": RESAMPLED}


def mutants(name: str, program: Program, space: Space = SPACE, tries: int = 60) -> list[Program]:
    """What a mutation makes of a program, by seed; the seeds for which it raises are left out."""
    made = []
    for seed in range(tries):
        with contextlib.suppress(ProgramError):
            made.append(MUTATIONS[name](program, np.random.default_rng(seed), space))
    return made


def ops(program: Program) -> Counter[str]:
    return Counter(step.op for step in program.body)


def values(program: Program, op: str, name: str) -> list[object]:
    """An attribute of every instruction of an operation."""
    return [step.attr[name] for step in program.body if step.op == op]


def edited(before: Program, after: Program) -> list[tuple[Instruction, Instruction]]:
    """The instructions that differ, of two programs of equal length."""
    return [(a, b) for a, b in zip(before.body, after.body, strict=True) if a != b]


def changed_attributes(before: Program, after: Program) -> set[str]:
    """Names of the attributes that differ; nothing else may."""
    pairs = edited(before, after)
    assert all((a.op, a.args) == (b.op, b.args) for a, b in pairs)
    return {name for a, b in pairs for name in a.attr if a.attr[name] != b.attr[name]}


def attributes_of(*allowed: str) -> Callable[[Program, Program], bool]:
    """Whether the first attribute is changed, and at most the others with it."""
    return lambda before, after: {allowed[0]} <= changed_attributes(before, after) <= set(allowed)


def factors(before: Program, after: Program) -> bool:
    return bool(changed_attributes(before, after)) and changed_attributes(before, after) <= {"step", "factor"}


def one_elementwise(before: Program, after: Program) -> bool:
    ((a, b),) = edited(before, after)
    kinds = {TABLE[a.op].kind, TABLE[b.op].kind}
    return a.op != b.op and a.args == b.args and kinds == {"elementwise"}


def one_operand(before: Program, after: Program) -> bool:
    ((a, b),) = edited(before, after)
    same = (a.op, a.attrs) == (b.op, b.attrs)
    return same and sum(x != y for x, y in zip(a.args, b.args, strict=True)) == 1


def fewer(before: Program, after: Program) -> bool:
    return ops(canonical(after)) < ops(before)


def one_function_more(before: Program, after: Program) -> bool:
    (op,) = (ops(after) - ops(before)).elements()
    return ops(before) < ops(after) and TABLE[op].kind == "elementwise" and TABLE[op].arity == 1


def depthwise_more(before: Program, after: Program) -> bool:
    return ops(after) == ops(before) + Counter(["pad", "window", "param", "contract"])


CHANGES: dict[str, Callable[[Program, Program], bool]] = {
    "kernel": attributes_of("kernel", "shape", "pads"),
    "dilation": attributes_of("dilation", "pads"),
    "width": attributes_of("shape"),
    "groups": attributes_of("shape"),
    "axis": attributes_of("axis"),
    "factor": factors,
    "elementwise": one_elementwise,
    "operand": one_operand,
    "delete": fewer,
    "shortcut": fewer,
    "bypass": fewer,
    "insert_elementwise": one_function_more,
    "insert_depthwise": depthwise_more,
}


def test_every_mutation_is_tested() -> None:
    assert set(CHANGES) == set(MUTATIONS)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_changes_what_it_says(name: str) -> None:
    before = PLACES.get(name, BLOCK)
    x = np.random.default_rng(1).standard_normal(before.inputs[0].at_batch(2)).astype(np.float32)
    made = mutants(name, before)
    assert len(made) >= 10
    for after in made:
        assert after.signature == before.signature
        assert CHANGES[name](before, after)
    for after in made[:10]:
        with np.errstate(all="ignore"):
            result = run(after, [x], rebind(after, {}, np.random.default_rng(0)))
        assert result.shape == before.signature.output.at_batch(2)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_adds_what_the_space_allows_alone(name: str) -> None:
    small = replace(SPACE, instructions=frozenset({"tanh", "maximum", "pad", "window", "contract"}))
    before = PLACES.get(name, BLOCK)
    for after in mutants(name, before, small):
        assert set(ops(after) - ops(before)) <= small.instructions


@pytest.mark.parametrize("missing", ["pad", "window", "param", "contract"])
def test_no_depthwise_convolution_without_its_instructions(missing: str) -> None:
    assert not mutants("insert_depthwise", BLOCK, replace(SPACE, instructions=SPACE.instructions - {missing}))


# ---- windows and parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kernel", "dilation"])
def test_sizes_come_from_the_choices_of_the_space(name: str) -> None:
    def drawn(space: Space) -> set[int]:
        before = Counter(values(BLOCK, "window", name))
        after = [
            Counter(values(program, "window", name)) - before
            for program in mutants(name, BLOCK, space, tries=20)
        ]
        return {size for sizes in after for window in sizes for size in window}

    assert drawn(replace(SPACE, choices={name: (7,)})) - {3} == {7}
    assert not drawn(replace(SPACE, choices={}))
    quick = load_space("quick")
    assert drawn(quick) and drawn(quick) <= {*quick.choices[name], 3}


def test_groups_are_doubled_and_halved() -> None:
    def count(program: Program) -> int:
        return next(shape[0] for shape in program.params.values() if len(shape) == 5)

    assert {count(after) / count(GROUPED) for after in mutants("groups", GROUPED)} == {0.5, 2}


# ---- axes and factors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "op", "name", "axes"),
    [
        (SHIFTED, "shift", "axis", {2, 3}),
        (POOLED, "subsample", "axis", {2, 3}),
        (POOLED, "max", "axes", {(2, 3), (1, 3)}),
        (RESAMPLED, "subsample", "axis", {1, 3}),
        (RESAMPLED, "upsample", "axis", {1, 3}),
        (CENTRED, "mean", "axes", {(2,)}),
    ],
)
def test_axis_moves_to_an_axis_that_fits(program: Program, op: str, name: str, axes: set[object]) -> None:
    assert {value for after in mutants("axis", program) for value in values(after, op, name)} == axes


def test_axis_leaves_a_reduction_whose_axes_differ_in_size() -> None:
    text = "program(f32[N,4,6]) -> f32[N,6]\n%1 = mean %0 axes=(1,) keepdims=0\nreturn %1"
    assert not mutants("axis", parse_program(text))


@pytest.mark.parametrize(
    ("program", "op", "name", "found"),
    [
        (SHIFTED, "shift", "offset", {-1, 0, 2}),
        (POOLED, "subsample", "step", {1, 2, 3, 4}),
        (POOLED, "upsample", "factor", {1, 2, 3, 4}),
        (RESAMPLED, "subsample", "step", {1, 4}),
        (PARTS, "slice", "start", {0, 1}),
        (PARTS, "split", "index", {0, 1}),
    ],
)
def test_factor_moves_to_a_value_near(program: Program, op: str, name: str, found: set[int]) -> None:
    assert {value for after in mutants("factor", program) for value in values(after, op, name)} == found


def test_a_resolution_is_changed_and_changed_back() -> None:
    for after in mutants("factor", RESAMPLED):
        assert values(after, "subsample", "step") == values(after, "upsample", "factor")


# ---- element-wise instructions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "arity"), [("relu %0", 1), ("clip %0 max=6.0 min=0.0", 1), ("add %0 %1", 2)]
)
def test_elementwise_draws_from_the_table_by_arity(line: str, arity: int) -> None:
    before = parse_program(f"program(f32[N,4], f32[N,4]) -> f32[N,4]\n%2 = {line}\nreturn %2")
    of_arity = {op for op, spec in TABLE.items() if spec.kind == "elementwise" and spec.arity == arity}
    allowed = SPACE.instructions - {"tanh", "minimum"}
    found = mutants("elementwise", before, replace(SPACE, instructions=allowed), tries=200)
    assert {after.body[0].op for after in found} == (of_arity & allowed) - {before.body[0].op}


# ---- stages ----------------------------------------------------------------------------------------------


def test_a_bypass_drops_whole_blocks_of_a_stage() -> None:
    made = mutants("bypass", canonical(stage(4)))
    left = Counter(ops(canonical(after))["contract"] for after in made)
    assert len(made) == 60
    assert {2, 4, 6} <= set(left) <= {0, 2, 4, 6, 8}  # of eight; where all are left, an activation is gone

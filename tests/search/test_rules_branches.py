"""Exact rules that fold parallel branches into one layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rule_checks import SPACE, error, exactly_reduced, rng
from rule_programs import PROGRAMS, image, weights

from opadapt.ir.canonical import canonical
from opadapt.ir.program import Program
from opadapt.ir.text import parse_program
from opadapt.search.candidate import Candidate, tidy
from opadapt.search.pattern import parse_pattern
from opadapt.search.rewrite import apply, variants
from opadapt.search.rule import Rule
from opadapt.search.vary import reduced
from opadapt.steps.exact import candidates_of


def ops(program: Program) -> list[str]:
    """The instructions that compute something."""
    return [s.op for s in program.body if s.op not in ("param", "reshape", "pad", "window")]


def test_a_repvgg_block_folds_into_one_convolution() -> None:
    program = PROGRAMS["repvgg_block"]
    binding = weights(program)
    folded, values = exactly_reduced(program, binding)
    assert ops(folded) == ["contract", "add", "relu"]
    assert sorted(v.shape for v in values.values()) == [(8,), (8, 8, 3, 3)]
    assert error(program, binding, folded, values) < 1e-5


def test_without_data_a_repvgg_block_is_offered_as_one_convolution() -> None:
    program = PROGRAMS["repvgg_block"]
    original = tidy(program, (weights(program), weights(program, seed=1)), "original")
    offered = candidates_of(original, SPACE.exact(), 0, whole=False)
    (one,) = [c for c in offered if ops(c.program) == ["contract", "add", "relu"]]
    for before, after in zip(original.bindings, one.bindings, strict=True):
        assert error(program, before, one.program, after) < 1e-5
    assert any(c.origin == "original > fold_normalize_conv" for c in offered)
    assert len({original.digest, *(c.digest for c in offered)}) == 1 + len(offered)
    # a stage is offered as a whole, without the single steps
    assert [c.digest for c in candidates_of(original, SPACE.exact(), 0, whole=True)] == [one.digest]


def test_what_no_exact_rule_changes_is_not_offered() -> None:
    program = PROGRAMS["residual_block"]
    assert candidates_of(tidy(program, (weights(program),), "original"), SPACE.exact(), 0, whole=False) == []


def test_rules_that_undo_each_other_come_to_an_end() -> None:
    def swap(before: str, after: str) -> Rule:
        match, template = (
            parse_pattern(f"%y = {before} %x\nreturn %y"),
            parse_pattern(f"%t = {after} %x\nreturn %t"),
        )
        return Rule(before, "made up", True, match, template)

    space = replace(SPACE, rules=(swap("neg", "abs"), swap("abs", "neg")))
    program = parse_program("program(f32[N,4]) -> f32[N,4]\n%1 = neg %0\nreturn %1")
    assert reduced(Candidate(program, ({},), "original"), space, 0).origin == "original > neg"


def test_every_sum_of_branches_becomes_one_layer() -> None:
    program = PROGRAMS["branches"]
    binding = weights(program)
    folded, values = exactly_reduced(program, binding)
    assert ops(folded).count("contract") == 6
    assert ops(folded).count("add") == 6
    assert "mul" not in ops(folded) and "normalize" not in ops(folded)
    assert error(program, binding, folded, values) < 1e-4


def test_strided_branches_fold_too() -> None:
    b = image(8, 12)
    half = b.emit("subsample", b.emit("subsample", 0, axis=2, step=2), axis=3, step=2)
    program = canonical(b.build(b.emit("add", b.conv(0, "w1", 6, stride=2), b.pointwise(half, "w2", 6))))
    binding = weights(program)
    folded, values = exactly_reduced(program, binding)
    assert ops(folded) == ["contract"]
    assert error(program, binding, folded, values) < 1e-5


Pair = tuple[int, int]


@pytest.mark.parametrize(
    ("size", "kernel", "pads", "stride", "dilation", "applies"),
    [
        (6, (3, 3), ((1, 1), (1, 1)), 1, 1, True),
        (6, (3, 3), ((0, 2), (0, 2)), 1, 1, False),
        (6, (2, 2), ((1, 0), (1, 0)), 1, 1, False),
        (6, (3, 3), ((2, 2), (2, 2)), 1, 2, True),
        (6, (3, 3), ((1, 3), (1, 3)), 1, 2, False),
        (6, (3, 5), ((1, 1), (2, 2)), 1, 1, True),
        (6, (3, 5), ((1, 1), (1, 3)), 1, 1, False),
        (7, (5, 1), ((4, 4), (0, 0)), 1, 2, True),
        (3, (3, 3), ((1, 4), (1, 4)), 2, 1, False),  # of one size, at other positions
    ],
)
def test_only_a_kernel_with_its_centre_at_the_position_takes_the_other_branches(
    size: int, kernel: Pair, pads: tuple[Pair, Pair], stride: int, dilation: int, applies: bool
) -> None:
    b = image(4, size)
    x = b.emit("pad", 0, pads=((0, 0), (0, 0), *pads), value=0.0)
    steps = {"stride": (stride, stride), "dilation": (dilation, dilation)}
    x = b.emit("window", x, axes=(2, 3), kernel=kernel, **steps)
    x = b.emit("contract", x, b.param("w1", (4, 4, *kernel)), einsum="nchwij,ocij->nohw")
    assert b.types[x] == b.types[0]
    for name, other in (
        ("merge_parallel_pointwise", b.pointwise(0, "w2", 4)),
        ("merge_identity", 0),
        ("merge_scaled_identity", b.scale(0, "s")),
        ("merge_normalized_identity", b.normalize(0, "n")),
    ):
        program = canonical(b.build(b.emit("add", x, other)))
        found = list(variants(SPACE.rule(name), program))
        assert bool(found) == applies, name
        for match, choice in found:
            changed, new = apply(SPACE.rule(name), program, match, choice, weights(program), rng())
            assert error(program, weights(program), changed, new) < 1e-5


def test_layers_of_different_inputs_stay_apart() -> None:
    b = image(4, 6)
    hidden = b.relu(0)
    program = canonical(b.build(b.emit("add", b.conv(0, "w1", 4), b.conv(hidden, "w2", 4))))
    names = ("merge_parallel", "merge_parallel_pointwise", "merge_identity")
    assert not [m for name in names for m in variants(SPACE.rule(name), program)]
    beside = image(4, 6)
    program = canonical(beside.build(beside.emit("add", beside.conv(0, "w1", 4), beside.relu(0))))
    assert not list(variants(SPACE.rule("merge_identity"), program))


def test_a_sum_that_spreads_a_branch_is_left_alone() -> None:
    """One position of the convolution beside nine of the image: one kernel gives one or nine."""
    b = image(4, 3)
    program = canonical(b.build(b.emit("add", b.conv(0, "w1", 4, stride=3), 0)))
    assert program.signature.output == program.inputs[0]
    assert not list(variants(SPACE.rule("merge_identity"), program))

"""Exact rules that fold parallel branches into one layer."""

from __future__ import annotations

import pytest
from rule_checks import SPACE, error, rng
from rule_programs import PROGRAMS, image, weights

from opadapt.ir.canonical import canonical
from opadapt.ir.program import Binding, Program
from opadapt.search.rewrite import apply, variants


def reduced(program: Program, binding: Binding) -> tuple[Program, Binding]:
    """The program after every exact rule, until none applies."""
    progress = True
    while progress:
        progress = False
        for rule in SPACE.exact().rules:
            for match, choice in variants(rule, program):
                program, binding = apply(rule, program, match, choice, binding, rng())
                progress = True
                break
    return program, binding


def ops(program: Program) -> list[str]:
    """The instructions that compute something."""
    return [s.op for s in program.body if s.op not in ("param", "reshape", "pad", "window")]


def test_a_repvgg_block_folds_into_one_convolution() -> None:
    program = PROGRAMS["repvgg_block"]
    binding = weights(program)
    folded, values = reduced(program, binding)
    assert ops(folded) == ["contract", "add", "relu"]
    assert sorted(v.shape for v in values.values()) == [(8,), (8, 8, 3, 3)]
    assert error(program, binding, folded, values) < 1e-5


def test_every_sum_of_branches_becomes_one_layer() -> None:
    program = PROGRAMS["branches"]
    binding = weights(program)
    folded, values = reduced(program, binding)
    assert ops(folded).count("contract") == 6
    assert ops(folded).count("add") == 6
    assert "mul" not in ops(folded) and "normalize" not in ops(folded)
    assert error(program, binding, folded, values) < 1e-4


def test_strided_branches_fold_too() -> None:
    b = image(8, 12)
    half = b.emit("subsample", b.emit("subsample", 0, axis=2, step=2), axis=3, step=2)
    program = canonical(b.build(b.emit("add", b.conv(0, "w1", 6, stride=2), b.pointwise(half, "w2", 6))))
    binding = weights(program)
    folded, values = reduced(program, binding)
    assert ops(folded) == ["contract"]
    assert error(program, binding, folded, values) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "pads", "applies"), [(3, (1, 1), True), (3, (0, 2), False), (2, (1, 0), False)]
)
def test_only_a_kernel_with_its_centre_at_the_position_takes_the_other_branches(
    kernel: int, pads: tuple[int, int], applies: bool
) -> None:
    b = image(4, 6)
    x = b.emit("pad", 0, pads=((0, 0), (0, 0), pads, pads), value=0.0)
    x = b.emit("window", x, axes=(2, 3), kernel=(kernel,) * 2, stride=(1, 1), dilation=(1, 1))
    x = b.emit("contract", x, b.param("w1", (4, 4, kernel, kernel)), einsum="nchwij,ocij->nohw")
    beside = b.pointwise(0, "w2", 4)
    for name, other in (("merge_parallel_pointwise", beside), ("merge_identity", 0)):
        program = canonical(b.build(b.emit("add", x, other)))
        found = list(variants(SPACE.rule(name), program))
        assert bool(found) == applies
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

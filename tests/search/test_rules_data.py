"""Rules whose initial values follow recorded inputs: which hidden channels stay, and what makes up for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from programs import block_candidate
from rule_checks import SPACE, error, first, squared_error
from rule_programs import PROGRAMS, Array, sample, weights

from opadapt.errors import ProgramError
from opadapt.ir.interpret import run
from opadapt.ir.program import Binding, Program
from opadapt.ir.text import parse_program
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.crossover import crossover
from opadapt.search.initial import FUNCTIONS
from opadapt.search.rewrite import variants
from opadapt.search.seen import Seen, ending_in
from opadapt.search.vary import mutate, rewrite, seeds

# rule, program, first layer, its bias, the axis of its outputs, second layer, the axis of its inputs
CUTS = [
    ("hidden_cut_conv_conv", "residual_block", "w1", "b1", 0, "w2", 1),
    ("hidden_cut_pointwise_conv", "bottleneck_block", "w1", "b1", 0, "w2", 1),
    ("hidden_cut_conv_pointwise", "bottleneck_block", "w2", "b2", 0, "w3", 1),
    ("hidden_cut_pointwise", "pointwise_pair", "w1", "b1", 0, "w2", 1),
    ("hidden_cut_dense", "perceptron", "w1", "w1_bias", 1, "w2", 0),
    ("hidden_cut_sequence", "feed_forward", "w1", "w1_bias", 1, "w2", 0),
]


def recorded(program: Program) -> list[Array]:
    """Inputs of other rows than those that judge: few of images, which have many positions, many of vectors."""
    return sample(program, batch=16 if program.inputs[0].rank == 4 else 1024, seed=5)


@pytest.mark.parametrize(("name", "program_name", "layer", "bias", "axis", "after", "read"), CUTS)
def test_channels_that_others_tell_are_made_up_for(
    name: str, program_name: str, layer: str, bias: str, axis: int, after: str, read: int
) -> None:
    """Every second channel is that before it once more, and read less: nothing of it is lost."""
    program = PROGRAMS[program_name]
    binding = weights(program)
    np.moveaxis(binding[layer], axis, 0)[1::2] = np.moveaxis(binding[layer], axis, 0)[::2]
    binding[bias][:] = 0  # so that no channel is much weaker than another
    np.moveaxis(binding[after], read, 0)[1::2] *= 0.05
    half = len(binding[bias]) // 2
    blind = first(SPACE.rule(name), program, binding, t=half)
    seen = first(SPACE.rule(name), program, binding, recorded(program), t=half)
    assert squared_error(program, binding, *seen) < 0.1 * squared_error(program, binding, *blind)
    assert error(program, binding, *seen) < 0.02


@pytest.mark.parametrize(
    ("name", "program_name"),
    [*((row[0], row[1]) for row in CUTS), ("hidden_cut_inverted", "inverted_residual")],
)
def test_random_channels_are_cut_with_less_error(name: str, program_name: str) -> None:
    program = PROGRAMS[program_name]
    binding = weights(program)
    blind, seen = (first(SPACE.rule(name), program, binding, samples) for samples in ((), recorded(program)))
    assert squared_error(program, binding, *seen) < squared_error(program, binding, *blind)


def test_a_channel_that_never_passes_its_activation_goes_first() -> None:
    """Its weights are the largest, and its bias keeps it below zero."""
    program = PROGRAMS["residual_block"]
    binding = weights(program)
    binding["w1"][3] *= 10
    binding["b1"][3] = -1000
    rule = SPACE.rule("hidden_cut_conv_conv")
    blind, seen = (first(rule, program, binding, s, t=12)[1] for s in ((), sample(program, batch=4, seed=5)))
    assert binding["b1"][3] in blind["bias"]
    assert binding["b1"][3] not in seen["bias"]


def test_least_squares_leaves_kept_channels_as_they_are() -> None:
    rng = np.random.default_rng(0)
    w, seen = rng.normal(size=(5, 6, 3, 3)), rng.normal(size=(4000, 6, 2, 2))
    seen[:, 4] = 2 * seen[:, 0] - seen[:, 2]
    seen[:, 5] = 0
    kept = np.array([0.0, 1.0, 2.0, 3.0])
    result = FUNCTIONS["refit"](rng, w, kept, 1, seen, 1)
    expected = w[:, :4].copy()
    expected[:, 0] += 2 * w[:, 4]
    expected[:, 2] -= w[:, 4]
    np.testing.assert_allclose(result, expected, atol=0.05)
    np.testing.assert_array_equal(FUNCTIONS["refit"](rng, w, kept, 1, None, 1), w[:, :4])
    nothing: Array = np.zeros_like(seen)
    np.testing.assert_array_equal(FUNCTIONS["refit"](rng, w, kept, 1, nothing, 1), w[:, :4])


@pytest.mark.parametrize(
    ("name", "program_name", "rank"),
    [
        ("low_rank_pointwise", "pointwise_pair", 4),
        ("low_rank_dense", "perceptron", 6),
        ("low_rank_sequence", "feed_forward", 6),
        ("low_rank_output", "residual_block", 4),
        ("low_rank_output_1d", "conv_1d", 3),
    ],
)
def test_low_rank_is_of_the_outputs_where_they_were_seen(name: str, program_name: str, rank: int) -> None:
    """Inputs that hardly leave a few directions; other rows judge."""
    program = PROGRAMS[program_name]
    binding = weights(program)
    axis = 1 if program_name != "feed_forward" else 2
    channels = program.inputs[0].at_batch(1)[axis]
    mixing = np.random.default_rng(0).normal(size=(channels, 3)) @ np.random.default_rng(1).normal(
        size=(3, channels)
    )
    mixing += 0.1 * np.eye(channels)

    def mixed(x: Array) -> Array:
        return np.moveaxis(np.moveaxis(x, axis, -1) @ mixing, -1, axis).astype(np.float32)

    def loss(result: tuple[Program, Binding]) -> float:
        inputs = [mixed(sample(program, batch=8, seed=9)[0])]
        before, after = run(program, inputs, binding), run(result[0], inputs, result[1])
        return float(np.square(after - before).sum() / np.square(before).sum())

    rule = SPACE.rule(name)
    blind = first(rule, program, binding, r=rank)
    seen = first(rule, program, binding, [mixed(recorded(program)[0])], r=rank)
    assert seen[0] == blind[0]
    assert loss(seen) < 0.9 * loss(blind)


def test_the_full_rank_of_outputs_is_the_layer() -> None:
    rng = np.random.default_rng(0)
    w, seen = rng.normal(size=(6, 5, 3, 3)), rng.normal(size=(20, 6, 4, 4))
    reduce, expand = FUNCTIONS["respond"](rng, w, "ocij->rcij,or", 6, seen, 1)
    np.testing.assert_allclose(np.einsum("rcij,or->ocij", reduce, expand), w, atol=1e-10)
    # five numbers read, six given: whatever was seen, the outputs have five directions
    reduce, expand = FUNCTIONS["respond"](rng, w[..., 0, 0].T, "co->cr,ro", 5, seen, 1)
    np.testing.assert_allclose(reduce @ expand, w[..., 0, 0].T, atol=1e-10)
    for rank in (0, 6):
        with pytest.raises(ProgramError, match="respond: rank"):
            FUNCTIONS["respond"](rng, w[..., 0, 0].T, "co->cr,ro", rank, seen, 1)


def test_a_layer_that_gives_more_than_it_reads_keeps_the_principal_directions_of_its_outputs() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(12, 5)), rng.normal(size=(4000, 5)) * [9, 5, 3, 1, 0.5]
    reduce, expand = FUNCTIONS["respond"](rng, w, "oc->rc,or", 2, x @ w.T, 1)
    directions = np.linalg.svd(w @ x.T, full_matrices=False)[0][:, :2]
    np.testing.assert_allclose(expand @ reduce, directions @ directions.T @ w, atol=0.02)


@pytest.mark.parametrize(("out", "inner"), [(24, 6), (6, 24)])
def test_ranks_and_members_share_what_is_dear(monkeypatch: pytest.MonkeyPatch, out: int, inner: int) -> None:
    """One decomposition for each member, of the smaller size of its layer, whatever the number of ranks."""
    sizes: list[tuple[int, ...]] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(matrix: Array, **named: Any) -> Any:
            sizes.append(matrix.shape)
            return function(matrix, **named)

        return call

    for name in ("eigh", "svd"):
        monkeypatch.setattr(np.linalg, name, counted(getattr(np.linalg, name)))
    rng = np.random.default_rng(out)
    members = [(rng.normal(size=(out, inner)), rng.normal(size=(50, inner))) for _ in range(6)]
    for rank in (3, 2, 1):
        for w, x in members:
            FUNCTIONS["respond"](rng, w, "oc->rc,or", rank, x @ w.T, 1)
    assert sizes == [(6, 6)] * 6
    sizes.clear()
    for rank in (3, 2, 1):
        for w, _ in members:
            FUNCTIONS["factor"](rng, w, "oc->rc,or", rank)
    assert len(sizes) == 6


def test_values_that_are_not_finite_refuse_the_rewrite() -> None:
    program = parse_program(
        "program(f32[N,2]) -> f32[N,2]\n"
        '%1 = param name="w1" shape=(2,4)\n'
        '%2 = contract %0 %1 einsum="nk,km->nm"\n'
        "%3 = exp %2\n"
        '%4 = param name="w2" shape=(4,2)\n'
        '%5 = contract %3 %4 einsum="nk,km->nm"\n'
        "return %5"
    )
    samples = [np.full((4, 2), 1e4, np.float32)]
    binding = {"w1": np.ones((2, 4), np.float32), "w2": np.ones((4, 2), np.float32)}
    with np.errstate(over="ignore"), pytest.raises(ProgramError, match="not finite on the samples"):
        first(SPACE.rule("hidden_cut_dense"), program, binding, samples)


def test_values_are_seen_once_for_all_rules_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = block_candidate(members=2)
    inputs = tuple((sample(bare.program, batch=2, seed=s)[0],) for s in range(2))
    ran: list[Program] = []

    def counted(program: Program, samples: tuple[Array, ...], binding: Binding) -> Array:
        ran.append(program)
        return run(program, samples, binding)

    monkeypatch.setattr("opadapt.search.seen.run", counted)
    made = [c.origin for c in seeds(replace(bare, samples=inputs), SPACE, 0)]
    assert sum("low_rank_output" in origin or "hidden_cut" in origin for origin in made) >= 7
    # both convolutions' outputs and the activation between them, for both members
    assert len(ran) == 6 and len(set(ran)) == 3


def test_only_what_a_value_depends_on_is_run() -> None:
    """The other branch has no weights here, and would not run."""
    program = parse_program(
        "program(f32[N,2]) -> f32[N,2]\n"
        '%1 = param name="a" shape=(2,2)\n'
        '%2 = contract %0 %1 einsum="nk,km->nm"\n'
        "%3 = tanh %2\n"
        "%4 = relu %0\n"
        '%5 = param name="b" shape=(2,2)\n'
        '%6 = contract %4 %5 einsum="nk,km->nm"\n'
        "%7 = add %3 %6\n"
        "return %7"
    )
    x, b = np.array([[1, -1], [2, 3]], np.float32), np.array([[1, 2], [3, 4]], np.float32)
    seen = Seen(Candidate(program, ({"b": b},), "original", ((x,),)))
    np.testing.assert_array_equal(seen(0, 6), np.maximum(x, 0) @ b)
    assert ending_in(program, 6).params == {"b": (2, 2)}
    np.testing.assert_array_equal(seen(0, 0), x)
    assert Seen(Candidate(program, ({"b": b},), "original"))(0, 6) is None


def test_samples_go_with_a_candidate_through_every_variation() -> None:
    bare = block_candidate(members=2)
    inputs = tuple((sample(bare.program, batch=4, seed=s)[0],) for s in range(2))
    original = replace(bare, samples=inputs)
    children = list(seeds(original, SPACE, 0))
    rng = np.random.default_rng(0)
    children += [mutate(original, SPACE, SearchConfig(rewrite=share), rng) for share in (0.0, 1.0)]
    children.append(crossover(original, original, rng))
    assert all(c.samples is inputs for c in children)
    rule = SPACE.rule("hidden_cut_conv_conv")
    match, choice = next(variants(rule, bare.program))
    ours, theirs = (rewrite(c, rule, match, choice, 0) for c in (original, bare))
    assert ours.digest == theirs.digest
    for mine, other in zip(ours.bindings, theirs.bindings, strict=True):
        assert not np.array_equal(mine["second"], other["second"])

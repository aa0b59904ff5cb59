"""Variation gives valid programs with fitting weights, and nothing but the rng decides which."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import block_candidate

from opadapt.errors import ProgramError, Refused
from opadapt.ir.interpret import run
from opadapt.ir.text import parse_program, print_program
from opadapt.search.candidate import Candidate, inherit, rebind
from opadapt.search.config import SearchConfig
from opadapt.search.crossover import crossover
from opadapt.search.edit import DoesNotApply
from opadapt.search.point import MUTATIONS
from opadapt.search.space import load_space
from opadapt.search.vary import CROSSOVER, mutate, seeds, vary, ways

ORIGINAL = block_candidate(members=2)
SPACE = load_space()
CONFIG = SearchConfig()
X = np.random.default_rng(1).standard_normal((2, 16, 32, 32)).astype(np.float32)


def assert_valid(candidate: Candidate) -> None:
    """Same signature, one fitting binding per member, and it runs."""
    assert candidate.program.signature == ORIGINAL.program.signature
    assert len(candidate.bindings) == len(ORIGINAL.bindings)
    for binding in candidate.bindings:
        assert {n: v.shape for n, v in binding.items()} == candidate.program.params
        assert all(v.dtype == np.float32 for v in binding.values())
    assert run(candidate.program, [X], candidate.bindings[0]).shape == X.shape


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_mutants_of_mutants_stay_valid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidate = ORIGINAL
    for _ in range(3):
        with contextlib.suppress(DoesNotApply):  # a mutation may leave the input alone, which few can change
            candidate = mutate(candidate, SPACE, CONFIG, rng)
    assert_valid(candidate)


def test_most_mutants_can_be_mutated_again() -> None:
    applied = 0
    for seed in range(20):
        rng, candidate = np.random.default_rng(seed), ORIGINAL
        for _ in range(3):
            with contextlib.suppress(DoesNotApply):
                candidate = mutate(candidate, SPACE, CONFIG, rng)
                applied += 1
    assert applied >= 50


def own_weights(candidate: Candidate, other: Candidate) -> set[bytes]:
    """The weights that a candidate has and the other has not."""
    mine, theirs = ({w.tobytes() for w in c.bindings[0].values()} for c in (candidate, other))
    return mine - theirs


def test_a_child_has_weights_of_both_parents() -> None:
    parents = list(seeds(ORIGINAL, SPACE, 0))
    made = mixed = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        first, second = (parents[int(i)] for i in rng.choice(len(parents), 2, replace=False))
        try:
            child = crossover(first, second, rng)
        except ProgramError:
            continue  # no stretches that differ
        assert_valid(child)
        made += 1
        weights = {w.tobytes() for w in child.bindings[0].values()}
        new = child.digest not in (first.digest, second.digest)
        mixed += bool(new and weights & own_weights(first, second) and weights & own_weights(second, first))
    assert made >= 20
    assert mixed >= 5


def test_a_rewrite_mutation_applies_any_rule_anywhere() -> None:
    config = SearchConfig(rewrite=1.0)
    made: defaultdict[str, set[str]] = defaultdict(set)
    for seed in range(50):
        child = mutate(ORIGINAL, SPACE, config, np.random.default_rng(seed))
        made[child.origin].add(child.digest)
    rules = {origin.removeprefix("original > ").split("(")[0] for origin in made}
    assert rules <= {rule.name for rule in SPACE.rules}
    assert len(rules) >= 10
    assert any(len(places) > 1 for places in made.values())  # one rule, with one choice, at several places


def test_a_point_mutation_is_named() -> None:
    config = SearchConfig(rewrite=0.0)
    made = [mutate(ORIGINAL, SPACE, config, np.random.default_rng(seed)).origin for seed in range(40)]
    names = {origin.removeprefix("original > ") for origin in made}
    assert names <= set(MUTATIONS)
    assert len(names) >= 6


def test_what_does_not_type_check_is_told_and_what_does_not_apply_is_not() -> None:
    told: list[ProgramError | Refused] = []
    for seed in range(60):
        mutate(ORIGINAL, SPACE, SearchConfig(rewrite=0.0), np.random.default_rng(seed), told.append)
    assert told
    assert not any(isinstance(error, DoesNotApply) for error in told)


def test_seeds_that_do_not_type_check_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> Candidate:
        raise ProgramError("sizes differ")

    monkeypatch.setattr("opadapt.search.vary.rewrite", fails)
    told: list[ProgramError | Refused] = []
    assert not list(seeds(ORIGINAL, SPACE, 0, told.append))
    assert {str(error) for error in told} == {"sizes differ"}


def test_a_mutation_that_never_fits_gives_up() -> None:
    nothing = replace(SPACE, rules=(), instructions=frozenset(), choices={})
    program = parse_program("program(f32[N,4]) -> f32[N,4]\n%1 = relu %0\nreturn %1")
    # one instruction, which no other may replace: it can be dropped, and no more
    left = mutate(Candidate(program, ({},), "original"), nothing, CONFIG, np.random.default_rng(0))
    assert left.program.body == ()
    with pytest.raises(DoesNotApply, match="no variation fits"):
        mutate(left, nothing, CONFIG, np.random.default_rng(0))


def test_every_rule_seed_is_valid_and_the_rules_are_many() -> None:
    made = list(seeds(ORIGINAL, SPACE, 0))
    assert len({c.origin.split(" > ")[1].split("(")[0] for c in made}) >= 15
    for candidate in made:
        assert_valid(candidate)


def test_same_rng_same_children() -> None:
    def children(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        parents = tuple(seeds(ORIGINAL, SPACE, 0))[:2]
        shares = ways(SPACE, CONFIG)
        return [print_program(vary((parents[0], parents[1]), SPACE, shares, rng).program) for _ in range(8)]

    assert children(5) == children(5)
    assert children(5) != children(6)


def test_the_ways_share_the_trials_as_the_settings_say() -> None:
    shares = ways(SPACE, SearchConfig(crossover=0.3, rewrite=0.5))
    assert shares[CROSSOVER] == 0.3
    for kind, count in (("rule ", len(SPACE.rules)), ("mutation ", len(MUTATIONS))):
        found = [share for way, share in shares.items() if way.startswith(kind)]
        assert found == pytest.approx([0.35 / count] * count)
    assert ways(replace(SPACE, rules=()), SearchConfig(crossover=0.0)).keys() == {
        CROSSOVER,
        *(f"mutation {name}" for name in MUTATIONS),
    }


def test_a_way_without_a_share_is_never_gone() -> None:
    parents = tuple(seeds(ORIGINAL, SPACE, 0))[:2]
    rng = np.random.default_rng(0)
    shares = dict.fromkeys(ways(SPACE, CONFIG), 0.0) | {"rule separable": 0.2, "mutation kernel": 0.2}
    made = {vary((parents[0], parents[1]), SPACE, shares, rng).by for _ in range(20)}
    assert made == {"rule separable", "mutation kernel"}


def test_inherit_keeps_the_centre_of_a_kernel_and_zeroes_around_it() -> None:
    old = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    rng = np.random.default_rng(0)
    assert inherit(old, (1, 1, 1, 1), rng).item() == 4
    grown = inherit(old, (1, 1, 5, 5), rng)
    assert np.array_equal(grown[..., 1:4, 1:4], old) and grown.sum() == old.sum()


def test_inherit_keeps_leading_channels() -> None:
    old = np.random.default_rng(0).standard_normal((8, 16, 3, 3)).astype(np.float32)
    cut = inherit(old, (4, 16, 3, 3), np.random.default_rng(0))
    assert np.array_equal(cut, old[:4])
    grown = inherit(old, (12, 16, 3, 3), np.random.default_rng(0))
    assert np.array_equal(grown[:8], old) and np.isfinite(grown).all()


def test_an_inserted_depthwise_convolution_changes_nothing_yet() -> None:
    before = run(ORIGINAL.program, [X], ORIGINAL.bindings[0])
    for seed in range(4):
        program = MUTATIONS["insert_depthwise"](ORIGINAL.program, np.random.default_rng(seed), SPACE)
        binding = rebind(program, ORIGINAL.bindings[0], np.random.default_rng(seed))
        assert len(binding) == len(ORIGINAL.bindings[0]) + 1
        np.testing.assert_allclose(run(program, [X], binding), before, atol=1e-5)


def test_fewer_groups_keep_the_function_and_more_the_weights_inside() -> None:
    old = np.random.default_rng(0).standard_normal((2, 4, 6, 3, 3)).astype(np.float32)
    rng = np.random.default_rng(1)
    dense = inherit(old, (1, 8, 12, 3, 3), rng)
    assert np.array_equal(dense[0, :4, :6], old[0]) and np.array_equal(dense[0, 4:, 6:], old[1])
    assert not dense[0, :4, 6:].any() and not dense[0, 4:, :6].any()
    narrow = inherit(old, (4, 2, 3, 3, 3), rng)
    assert np.array_equal(narrow[0], old[0, :2, :3]) and np.array_equal(narrow[3], old[1, 2:, 3:])
    assert np.array_equal(inherit(dense, (2, 4, 6, 3, 3), rng), old)

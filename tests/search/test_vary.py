"""Variation gives valid programs with fitting weights, and nothing but the rng decides which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import block_candidate

from opadapt.errors import ProgramError
from opadapt.ir.interpret import run
from opadapt.ir.text import print_program
from opadapt.search.candidate import Candidate, inherit, rebind
from opadapt.search.config import SearchConfig
from opadapt.search.point import MUTATIONS
from opadapt.search.space import load_space
from opadapt.search.vary import crossover, mutate, seeds, vary

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


@pytest.mark.parametrize("name", sorted(set(MUTATIONS) - {"groups"}))
def test_point_mutation_gives_valid_programs(name: str) -> None:
    made = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        try:
            program = MUTATIONS[name](ORIGINAL.program, rng, SPACE.instructions)
        except ProgramError:
            continue
        made += 1
        assert program.signature == ORIGINAL.program.signature
        assert run(program, [X], rebind(program, ORIGINAL.bindings[0], rng)).shape == X.shape
    assert made >= 10


def test_groups_doubles_or_halves_a_grouped_convolution() -> None:
    grouped = next(c for c in seeds(ORIGINAL, SPACE, 0) if "grouped_shuffle" in c.origin)
    counts = set()
    for seed in range(30):
        try:
            made = MUTATIONS["groups"](grouped.program, np.random.default_rng(seed), SPACE.instructions)
        except ProgramError:
            continue
        weights = [s.attr["shape"] for s in made.body if s.op == "param" and len(s.attr["shape"]) == 5]
        counts |= {shape[0] for shape in weights}
    before = next(
        s.attr["shape"][0] for s in grouped.program.body if s.op == "param" and len(s.attr["shape"]) == 5
    )
    assert 2 * before in counts


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_mutants_of_mutants_stay_valid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidate = ORIGINAL
    for _ in range(3):
        candidate = mutate(candidate, SPACE, CONFIG, rng)
    assert_valid(candidate)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_crossover_joins_a_prefix_and_a_suffix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (mutate(ORIGINAL, SPACE, CONFIG, rng) for _ in range(2))
    try:
        child = crossover(first, second, rng)
    except ProgramError:
        return  # no cut of equal type
    assert_valid(child)


def test_every_rule_seed_is_valid_and_the_rules_are_many() -> None:
    made = list(seeds(ORIGINAL, SPACE, 0))
    assert len({c.origin.split(" > ")[1].split("(")[0] for c in made}) >= 15
    for candidate in made:
        assert_valid(candidate)


def test_same_rng_same_children() -> None:
    def children(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        parents = tuple(seeds(ORIGINAL, SPACE, 0))[:2]
        return [print_program(vary((parents[0], parents[1]), SPACE, CONFIG, rng).program) for _ in range(8)]

    assert children(5) == children(5)
    assert children(5) != children(6)


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

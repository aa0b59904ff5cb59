"""The joint selection is exact: compared with trying everything."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opadapt.errors import Refused
from opadapt.search.select import Option, most_saving, saving_within, select


def options_of(seed: int) -> list[Option]:
    """Up to nine options on five nodes, some overlapping; microseconds, as real regions save."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(int(rng.integers(1, 10))):
        first = int(rng.integers(5))
        nodes = tuple(f"n{k}" for k in range(first, min(5, first + int(rng.integers(1, 4)))))
        made.append(Option(f"r{i}", nodes, float(rng.uniform(1e-6, 5e-5)), float(rng.uniform(0, 1)), f"k{i}"))
    return made


def legal(options: tuple[Option, ...]) -> bool:
    nodes = [n for o in options for n in o.nodes]
    return len(nodes) == len(set(nodes))


def everything(options: list[Option]) -> list[tuple[Option, ...]]:
    subsets = (itertools.combinations(options, k) for k in range(len(options) + 1))
    return [s for group in subsets for s in group if legal(s)]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 0.95), st.sampled_from([0.0, 0.3, 3.0]))
def test_least_damage_and_toll_among_all_subsets(seed: int, share: float, toll: float) -> None:
    options = options_of(seed)
    subsets = everything(options)
    most = max(sum(o.saved_s for o in s) for s in subsets)
    assert most_saving(options) == pytest.approx(most, rel=1e-6)
    needed = share * most
    best = min(sum(o.damage + toll for o in s) for s in subsets if sum(o.saved_s for o in s) >= needed)
    found = select(options, needed, toll)
    assert legal(tuple(found))
    assert sum(o.saved_s for o in found) >= needed * (1 - 1e-5)
    assert sum(o.damage + toll for o in found) == pytest.approx(best, rel=1e-4, abs=1e-6)


def together(options: tuple[Option, ...]) -> float:
    """The damage of a selection, with what pairs of it harm beyond the sum of both."""
    keys = {o.key for o in options}
    return sum(o.damage + sum(extra for key, extra in o.beside.items() if key in keys) for o in options)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_least_damage_where_damages_do_not_add_up(seed: int, share: float) -> None:
    """More or less together than each by itself, or not at all."""
    options, rng = options_of(seed), np.random.default_rng(seed)
    for i, j in itertools.combinations(range(len(options)), 2):
        if (kind := rng.uniform()) < 0.5:
            extra = float("inf") if kind < 0.1 else float(rng.uniform(-0.5, 2.0))
            beside = {**options[i].beside, options[j].key: extra, "of an option that is not there": 1.0}
            options[i] = replace(options[i], beside=beside)
    subsets = everything(options)
    needed = share * max(sum(o.saved_s for o in s) for s in subsets if np.isfinite(together(s)))
    best = min(together(s) for s in subsets if sum(o.saved_s for o in s) >= needed)
    found = tuple(select(options, needed))
    assert legal(found)
    assert sum(o.saved_s for o in found) >= needed * (1 - 1e-5)
    assert together(found) == pytest.approx(best, rel=1e-4, abs=1e-6)


def test_out_of_reach_is_refused_with_both_numbers() -> None:
    with pytest.raises(Refused) as refusal:
        select([Option("r", ("n",), 1e-3, 0.1, "k")], 2e-3)
    assert refusal.value.stage == "select"
    assert "1.000 ms" in refusal.value.reason and "2.000 ms" in refusal.value.reason


def test_options_that_save_nothing_or_destroy_everything_are_not_taken() -> None:
    bad = [Option("a", ("n",), -1e-3, 0.0, "a"), Option("b", ("m",), 1e-3, float("inf"), "b")]
    assert most_saving(bad) == 0.0
    with pytest.raises(Refused):
        select(bad, 1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 2))
def test_most_saving_within_a_damage_among_all_subsets(seed: int, damage: float) -> None:
    options = options_of(seed)
    best = max(
        sum(o.saved_s for o in s) for s in everything(options) if sum(o.damage for o in s) <= damage + 1e-9
    )
    assert saving_within(options, damage) == pytest.approx(best, rel=1e-6, abs=1e-12)

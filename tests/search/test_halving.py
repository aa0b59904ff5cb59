"""Who is trained further: properties of the choice for any scores."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opadapt.search.evolve import Scores
from opadapt.search.halving import better_half, rung_steps

few = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0])  # few values: ties are common
scores = st.builds(Scores, few, few)
generations = st.dictionaries(st.integers(0, 40), scores, max_size=25)


def beats(one: Scores, other: Scores) -> bool:
    pairs = [(one.latency_s, other.latency_s), (one.damage, other.damage)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@pytest.mark.parametrize(
    ("steps", "rungs", "expected"),
    [
        (120, 1, [120]),
        (120, 2, [30, 120]),
        (120, 3, [8, 30, 120]),
        (30, 2, [8, 30]),
        (3, 3, [1, 3]),
        (1, 2, [1]),
        (0, 3, [0]),
    ],
)
def test_each_rung_has_a_quarter_of_the_steps_of_the_next(
    steps: int, rungs: int, expected: list[int]
) -> None:
    assert rung_steps(steps, rungs) == expected


@given(generations)
def test_half_go_on_rounded_up_and_in_order(found: dict[int, Scores]) -> None:
    chosen = better_half(found)
    assert len(chosen) == (len(found) + 1) // 2
    assert chosen == sorted(set(chosen) & set(found))


@given(generations)
def test_nobody_goes_on_before_one_that_beats_him(found: dict[int, Scores]) -> None:
    chosen = set(better_half(found))
    for i in chosen:
        assert not any(beats(found[j], found[i]) for j in set(found) - chosen)


@given(generations.filter(len))
def test_the_least_damage_goes_on(found: dict[int, Scores]) -> None:
    least = min(one.damage for one in found.values())
    assert any(found[i].damage == least for i in better_half(found))


@given(generations, st.randoms(use_true_random=False))
def test_the_order_in_which_results_came_does_not_matter(found: dict[int, Scores], random) -> None:
    keys = list(found)
    random.shuffle(keys)
    assert better_half({i: found[i] for i in keys}) == better_half(found)


@given(generations.filter(lambda found: len(found) > 2))
def test_the_fastest_goes_on(found: dict[int, Scores]) -> None:
    least = min(one.latency_s for one in found.values())
    assert any(found[i].latency_s == least for i in better_half(found))


@pytest.mark.parametrize("count", range(1, 30))
def test_of_one_front_those_go_on_that_are_spread_over_it(count: int) -> None:
    chosen = better_half({i: Scores(0.1 * i, -float(i)) for i in range(count)})
    gaps = {b - a for a, b in itertools.pairwise(chosen)}
    assert chosen[-1] == count - 1 and (count < 3 or chosen[0] == 0)
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(generations)
def test_ranks_are_fronts_peeled_off_one_after_the_other(found: dict[int, Scores]) -> None:
    chosen, left = set(better_half(found)), dict(found)
    while left:
        front = {i for i in left if not any(beats(other, left[i]) for other in left.values())}
        later = set(left) - front
        assert front <= chosen or not later & chosen
        left = {i: left[i] for i in later}

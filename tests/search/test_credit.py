"""Credit for ways of variation: what improves the front is tried more often, and nothing is given up for good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opadapt.search.credit import Credit

SHARES = {"crossover": 0.3, "rule a": 0.5, "mutation b": 0.2, "mutation c": 0.0}
WAYS = list(SHARES)


def test_before_anything_is_known_the_shares_are_those_set() -> None:
    assert Credit(SHARES).shares() == pytest.approx(SHARES)


@given(st.lists(st.tuples(st.sampled_from(WAYS[:3]), st.booleans()), max_size=200))
def test_shares_sum_to_one_and_none_is_lost(trials: list[tuple[str, bool]]) -> None:
    credit = Credit(SHARES)
    for way, improved in trials:
        credit.record(way, improved)
    shares = credit.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["mutation c"] == 0
    assert all(shares[way] > 0 for way in WAYS[:3])


def test_a_way_that_improves_is_tried_more_often_than_one_that_does_not() -> None:
    credit = Credit({"rule a": 0.25, "rule b": 0.25, "rule c": 0.5})
    for _ in range(10):
        credit.record("rule a", True)
        credit.record("rule b", False)
    shares = credit.shares()
    assert shares["rule a"] > 4 * shares["rule b"]
    assert (
        shares["rule b"] < shares["rule c"] / 2 < shares["rule a"]
    )  # c, never tried, is thought of as the mean


def test_as_much_success_as_all_have_changes_nothing() -> None:
    credit = Credit(SHARES)
    for way in WAYS[:3]:
        for number in range(100):
            credit.record(way, number % 10 == 0)
    assert credit.shares() == pytest.approx(SHARES, abs=0.01)

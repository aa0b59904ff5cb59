"""Pairs of replacements whose damages do not add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from rows import group_of, offers_of, saving, write_row

from opadapt.model.graph import Model
from opadapt.steps.ahead import run
from opadapt.steps.context import Context
from opadapt.steps.harm import Harm, Parts
from opadapt.steps.pairs import corrected
from opadapt.steps.students import chosen_for

ALONE = {"a": 3.0, "b": 1.0, "c": 2.0}  # the damages that ``saving`` gives


class Told:
    """Damages of pairs by the names of their regions, the sum of both where nothing is said; what was asked for."""

    def __init__(self, model: Model, together: dict[str, float]) -> None:
        self.model, self.together = model, together
        self.asked: list[str] = []

    async def __call__(self, context: Context, changes: Sequence[Parts], keys: Sequence[str]) -> list[float]:
        assert len(set(keys)) == len(changes)
        names = ["".join(sorted(region.name for region in parts)) for parts in changes]
        self.asked += names
        return [self.together.get(pair, sum(ALONE[name] for name in pair)) for pair in names]


@pytest.fixture
def row(make_context, tmp_path):
    """A context that may ask for so many pairs."""

    def make(pairs: int) -> Context:
        return make_context(write_row(tmp_path / "row.onnx"), search={"pairs": pairs})

    return make


def choice(context: Context, together: dict[str, float], replacements: float = 1.9) -> tuple[str, list[str]]:
    """The names of what is chosen in the end, and the pairs that were asked for."""
    _, saved_s, offers = saving(context)
    harm, needed_s = Told(context.original, together), replacements * saved_s
    found = corrected(context, harm, offers, needed_s)  # type: ignore[arg-type]
    return "".join(sorted(o.member.region.name for o in chosen_for(found, needed_s))), harm.asked


def test_what_does_more_harm_together_is_not_taken_together(row) -> None:
    assert choice(row(9), {"bc": 8.0}) == ("ab", ["bc", "ab"])


def test_a_pair_that_does_not_run_is_never_taken(row) -> None:
    assert choice(row(9), {"bc": float("inf"), "ab": 90.0}) == ("ac", ["bc", "ab", "ac"])


def test_damages_that_add_up_change_nothing(row) -> None:
    assert choice(row(9), {}) == ("bc", ["bc"])
    assert choice(row(9), {"bc": 3.2}) == ("bc", ["bc"])  # within a tenth of 3


def test_the_closest_pairs_first_and_no_more_than_are_allowed(row) -> None:
    assert choice(row(9), {}, 2.9) == ("abc", ["ab", "bc", "ac"])
    assert choice(row(2), {}, 2.9)[1] == ["ab", "bc"]
    assert choice(row(0), {"bc": 8.0}) == ("bc", [])


def test_out_of_reach_is_left_to_whoever_selects(row) -> None:
    context = row(9)
    _, saved_s, offers = saving(context)
    assert corrected(context, Told(context.original, {}), offers, 4 * saved_s) == offers  # type: ignore[arg-type]


def test_what_a_pair_harms_beyond_the_sum_is_measured_in_the_whole_model(make_context) -> None:
    context = make_context(search={"pairs": 9, "probe_samples": 32})
    harm = Harm(context, context.dataset, context.original)
    one, other = list(offers_of(group_of(context.original, "block0.1")).values())[:2]
    sets = [
        {o.member.region: (o.candidate.program, o.trained.binding) for o in c}
        for c in ([one], [other], [one, other])
    ]
    *alone, both = run(harm(context, sets, ["one", "other", "both"]))
    offers = {}
    for offer, damage in zip((one, other), alone, strict=True):
        option = replace(offer.option, damage=damage)
        offers[option.key] = replace(offer, option=option)
    found = corrected(context, harm, offers, 2 * one.option.saved_s)
    (extra,) = [extra for offer in found.values() for extra in offer.option.beside.values()]
    assert extra == pytest.approx(both - sum(alone)) and abs(extra) > 0.1 * sum(alone)

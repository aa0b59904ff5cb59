"""What kept a run from its target, and what its models are made of."""

from __future__ import annotations

import numpy as np
import pytest
from rows import CHANNELS, group_of, offers_of, write_row

from opadapt.measure.timing import Estimate
from opadapt.report.data import Attempt
from opadapt.steps.assemble import Assembled
from opadapt.steps.attempt import Accepted
from opadapt.steps.context import Context
from opadapt.steps.history import History
from opadapt.steps.tuning import with_weights

LOST = Estimate(-3.1, -3.5, -2.7)


@pytest.fixture
def context(make_context, tmp_path) -> Context:
    return make_context(write_row(tmp_path / "row.onnx"))


def attempt(
    aim: float,
    speedup: float | None,
    accepted: bool,
    reason: str = "",
    difference: Estimate | None = LOST,
    number: int = 1,
) -> Attempt:
    return Attempt(
        round=number,
        attempt=1,
        aim_speedup=aim,
        replacements=1,
        speedup=speedup,
        difference=difference,
        accepted=accepted,
        reason=reason,
    )


@pytest.mark.parametrize(
    ("attempts", "bound"),
    [
        ([], "search: nothing was tried"),
        ([attempt(3.0, None, False, "all save 1 ms, 2 are needed")], "search: all save 1 ms, 2 are needed"),
        (
            [attempt(3.0, 3.02, False, "lost 3.1 points, 1 is allowed"), attempt(2.5, 2.51, True)],
            "tolerance: at 3.02x lost 3.1 points, 1 is allowed",
        ),
        ([attempt(3.0, 3.02, False, "the loss is nan", None)], "training: at 3.02x the loss is nan"),
        (
            [
                attempt(3.0, None, False, "too little"),
                attempt(2.0, 2.01, True),
                attempt(1.5, 1.6, False, "lost", number=2),
            ],
            "tolerance: at 1.60x over round 1 lost",
        ),
        (
            [attempt(3.0, 3.2, False, "lost"), attempt(2.0, 2.01, True), attempt(1.5, 1.4, True, number=2)],
            "search: no selection was faster than 1.40x",
        ),
        ([attempt(3.0, 2.8, True)], "search: no selection was faster than 2.80x"),
        ([attempt(3.0, 3.01, True)], "latency: 3.01x when it was selected, 2.90x as exported"),
    ],
)
def test_which_constraint_bound(attempts: list[Attempt], bound: str) -> None:
    assert History(attempts=attempts).bound(2.9) == bound


def test_the_next_fastest_takes_the_place_of_one_that_is_given_up(context: Context) -> None:
    offers = offers_of(group_of(context.original, "a"))

    def point(names: str, speedup: float) -> Accepted:
        head = {"head.w": np.full((CHANNELS, 4), speedup, np.float32)}
        return Accepted(with_weights(context.original, head), tuple(offers[n] for n in names), speedup, names)

    fast, middle, slow = point("abc", 2.0), point("ab", 1.5), point("a", 1.2)
    history = History(accepted=list(fast.offers), points=[slow, fast, middle])
    assert history.fall_back(fast.model) is middle.model
    assert (tuple(history.accepted), history.reason, history.changed) == (middle.offers, "ab", True)
    assert history.fall_back(middle.model) is slow.model
    assert history.fall_back(slow.model) is None


def test_a_model_of_a_later_round_has_the_replacements_of_those_before(context: Context) -> None:
    offers = offers_of(group_of(context.original, "a"))

    def accepted(names: str, speedup: float) -> Accepted:
        return Accepted(context.original, tuple(offers[n] for n in names), speedup, "")

    history = History()
    for points in ((accepted("ab", 1.5), accepted("a", 1.2)), (accepted("c", 1.1),)):
        history.add([], Assembled(points[0], (), (), "", points))
    replaced = ["".join(o.member.region.name for o in p.offers) for p in history.points]
    assert replaced == ["ab", "a", "abc"]
    assert [r.region for r in history.replacements] == ["a", "b", "c"]
    history.withdraw("no gain")
    assert not history.points and not history.replacements

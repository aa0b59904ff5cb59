"""Several selections, and which of them is trained to the end."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from types import SimpleNamespace

import numpy as np
import pytest
from rows import group_of, offers_of, student, write_row

from opadapt.errors import Refused
from opadapt.journal import Journal
from opadapt.model.graph import Model
from opadapt.search.config import SearchConfig
from opadapt.steps import heats
from opadapt.steps.context import Context
from opadapt.steps.heats import RATE, TOLL, contenders, winner
from opadapt.steps.students import Student
from opadapt.steps.tuning import WHOLE, Share, Tuned, prepared, weights, with_weights
from opadapt.train.finetune_config import EpochRecord


@pytest.fixture
def context(make_context, tmp_path) -> Context:
    return make_context(write_row(tmp_path / "row.onnx"), search={"heat_share": 0.1})


def made(context: Context, *selections: str) -> list[Student]:
    offers = offers_of(group_of(context.original, "a"))
    return [student(context.original, [offers[name] for name in names]) for names in selections]


@pytest.mark.parametrize(
    ("speedups", "count", "kept"),
    [
        ([2.0, 2.0, 2.0], 3, [0, 1, 2]),
        ([2.0, 2.0, 2.0], 2, [0, 1]),
        ([2.0, 2.0, 2.0], 1, [0]),
        ([2.0, 1.9, 2.1], 3, [0, 2]),  # a contender that is too slow is none
        ([1.9, 2.0, 2.0], 3, [0]),  # nothing reaches the goal: the fastest found is all there is
    ],
)
def test_selections_of_another_kind_that_reach_the_goal(
    context: Context, monkeypatch: pytest.MonkeyPatch, speedups: list[float], count: int, kept: list[int]
) -> None:
    students = [
        Student(s.offers, s.spliced, speed)
        for s, speed in zip(made(context, "a", "b", "ab"), speedups, strict=True)
    ]
    tolls: list[float] = []

    def calibrated(*arguments: object) -> Student:
        tolls.append(arguments[5] if len(arguments) > 5 else 0.0)  # type: ignore[arg-type]
        return students[len(tolls) - 1]

    monkeypatch.setattr(heats, "calibrated", calibrated)
    found = contenders(context, context.original, 1.0, {}, 2.0, count)
    assert [students.index(s) for s in found] == kept
    damage = students[0].offers[0].option.damage
    assert tolls == [0.0, damage, TOLL * damage][: len(tolls)]


def test_the_same_selection_twice_is_one_contender(context: Context, monkeypatch) -> None:
    one = made(context, "ac")[0]
    again = Student(tuple(reversed(one.offers)), one.spliced, one.speedup)
    answers = iter([one, again, one])
    monkeypatch.setattr(heats, "calibrated", lambda *arguments: next(answers))
    assert contenders(context, context.original, 1.0, {}, one.speedup, 3) == [one]


class Heat:
    """Fine-tuning that shifts every weight by its number and ends with a metric, or is refused."""

    def __init__(self, *metrics: float | None) -> None:
        self.metrics, self.tags, self.shares, self.found = metrics, [], [], []  # type: ignore[var-annotated]

    def __call__(
        self,
        context: Context,
        dataset: object,
        model: Model,
        tag: str,
        replaced: object,
        share: Share,
        found: Mapping[str, object],
    ) -> Tuned:
        self.tags.append(tag)
        self.shares.append(share)
        self.found.append(found)
        metric = self.metrics[len(self.tags) - 1]
        if metric is None:
            raise Refused("finetune", f"{tag} diverged")
        shifted = {n: v + len(self.tags) for n, v in weights(model.proto).items()}
        history = (EpochRecord(0, float("nan"), metric / 2, 0.0, 0.0), EpochRecord(1, 1.0, metric, 0.0, 1.0))
        return Tuned(with_weights(model, shifted), metric, history, {"threads": len(self.tags)})


@pytest.mark.parametrize(
    ("metrics", "best"), [((0.5, 0.7, 0.6), 1), ((0.7, 0.7), 0), ((None, 0.1), 1), ((nan, 0.1), 1)]
)
def test_the_best_goes_on_with_what_it_has_learned(
    context: Context, monkeypatch: pytest.MonkeyPatch, metrics: tuple[float | None, ...], best: int
) -> None:
    students = made(context, "a", "b", "ab")[: len(metrics)]
    heat = Heat(*metrics)
    monkeypatch.setattr(heats, "tune", heat)
    given = Share(settings=0.5, left=1.0)
    won = winner(context, SimpleNamespace(), students, "first", given)  # type: ignore[arg-type]
    chosen, start = won.student, won.start
    assert chosen is students[best] and heat.shares == [Share(0.05, 0.1)] * len(metrics)
    assert won.share == Share(pytest.approx(0.5 * (1 - 0.1 * len(metrics))), 1.0)  # type: ignore[arg-type]
    # what the first of them found to be fast is not tried out again
    assert heat.found[0] == {} and won.found == {"threads": len(metrics)}
    if metrics[0] is not None:
        assert heat.found[1] == {"threads": 1}
    assert heat.tags == [f"first-heat{n + 1}" for n in range(len(metrics))]
    before = weights(prepared(context, chosen.spliced.model).proto)
    for name, value in weights(start.proto).items():
        np.testing.assert_allclose(value, before[name] + best + 1, atol=1e-6)


def test_rates_are_compared_likewise_and_once(make_context, tmp_path, monkeypatch) -> None:
    """With every selection; a further attempt takes the rate that was found."""
    context = make_context(write_row(tmp_path / "row.onnx"), search={"heat_share": 0.1, "rates": [0.1, 0.01]})
    heat = Heat(0.5, 0.6, 0.8, 0.7, 0.3, 0.4)
    monkeypatch.setattr(heats, "tune", heat)
    students = made(context, "a", "b")
    won = winner(context, SimpleNamespace(), students, "first")  # type: ignore[arg-type]
    assert [found.get(RATE) for found in heat.found] == [0.1, 0.01, 0.1, 0.01]
    assert won.student is students[1] and won.found == {RATE: 0.1, "threads": 4}
    assert won.share.settings == pytest.approx(0.6)
    again = winner(context, SimpleNamespace(), students[:1], "second", found=won.found)  # type: ignore[arg-type]
    assert len(heat.tags) == 4 and again.found == won.found and again.share == WHOLE
    alone = winner(context, SimpleNamespace(), students[:1], "third", found={})  # type: ignore[arg-type]
    assert len(heat.tags) == 6 and alone.found[RATE] == 0.01


def test_where_none_can_be_trained_the_reason_is_raised(context: Context, monkeypatch) -> None:
    monkeypatch.setattr(heats, "tune", Heat(None, None))
    with pytest.raises(Refused) as refused:
        winner(context, SimpleNamespace(), made(context, "a", "b"), "first")  # type: ignore[arg-type]
    assert refused.value.reason == "first-heat2 diverged"


def test_one_alone_has_not_to_prove_itself(context: Context, monkeypatch) -> None:
    monkeypatch.setattr(heats, "tune", Heat())
    students = made(context, "ac")
    won = winner(context, SimpleNamespace(), students, "first")  # type: ignore[arg-type]
    assert won.student is students[0] and won.share == WHOLE
    assert won.start.digest == prepared(context, won.student.spliced.model).digest


def test_without_time_the_first_is_taken_and_again_when_resumed(make_context, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(heats, "tune", Heat())
    path = write_row(tmp_path / "row.onnx")
    for spent_s in (300.0, 0.0):  # 5 of 10 minutes are left, a tenth of which is half a minute
        monkeypatch.setattr(Journal, "spent_s", lambda journal, spent_s=spent_s: spent_s)
        context = make_context(path, search={"heat_share": 0.1}, budget_minutes=10)
        students = made(context, "a", "b")
        assert winner(context, SimpleNamespace(), students, "first").student is students[0]  # type: ignore[arg-type]


def test_selections_leave_time_for_the_best_of_them() -> None:
    with pytest.raises(ValueError, match="selections x rates x heat_share is 1:"):
        SearchConfig(selections=5, heat_share=0.2)
    assert SearchConfig(selections=1, heat_share=0.99).selections == 1
    with pytest.raises(ValueError, match=r"selections x rates x heat_share is 1\.2:"):
        SearchConfig(selections=2, rates=(0.1, 0.05, 0.02), heat_share=0.2)

"""Several models of different speed: what each aims at, which make a point, and what one leaves to the next."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from rows import CHANNELS, SIZE, group_of, offers_of, part, student, write_row

from opadapt.errors import Refused
from opadapt.journal import Journal
from opadapt.model.graph import Model
from opadapt.steps import attempt as attempting
from opadapt.steps import points
from opadapt.steps.attempt import Attempts
from opadapt.steps.context import Context
from opadapt.steps.heats import Winner
from opadapt.steps.points import aims, several
from opadapt.steps.students import Student
from opadapt.steps.tuning import Share, Tuned, weights, with_weights
from opadapt.train.accept import Verdict

X = np.random.default_rng(1).standard_normal((2, CHANNELS, SIZE, SIZE)).astype(np.float32)
ALL, TWO, ONE = "abc", "ab", "a"


@pytest.mark.parametrize(
    ("goal", "count", "wanted"),
    [
        (4.0, 3, [4.0, 3.0, 2.0]),
        (2.0, 1, [2.0]),
        (1.12, 3, [1.12, 1.08]),  # 1.04x is worth no attempt
        (1.04, 3, []),
    ],
)
def test_aims_go_down_in_equal_steps(goal: float, count: int, wanted: list[float]) -> None:
    assert aims(goal, count) == pytest.approx(wanted)


class Tuning:
    """In the place of fine-tuning and judging: every weight becomes another one, and a verdict comes from a list."""

    def __init__(self, *accepted: bool) -> None:
        self.accepted = list(accepted)
        self.tags: list[str] = []
        self.shares: list[Share] = []
        self.starts: list[Model] = []
        self.results: list[Model] = []

    def tune(
        self,
        context: Context,
        dataset: object,
        model: Model,
        tag: str,
        replaced: object,
        share: Share,
        found: object,
    ) -> Tuned:
        rng = np.random.default_rng(len(self.tags))
        values = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in weights(model.proto).items()}
        self.tags.append(tag)
        self.shares.append(share)
        self.starts.append(model)
        self.results.append(with_weights(model, values))
        return Tuned(self.results[-1], 0.5, ())

    def compare(self, *arguments: object) -> Verdict:
        accepted = self.accepted[len(self.tags) - 1]
        return Verdict(accepted, f"verdict {len(self.tags)}", "agreement", True, 9.0, 8.0, 1.0, 0.0, 2.0, 1.0)


def first(
    context: Context, dataset: object, students: list[Student], tag: str, share: Share, found: object
) -> Winner:
    """The student that is fine-tuned, and as what."""
    return Winner(students[0], students[0].spliced.model, share)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch):
    """Put a tuning in its place, and selections by the speed-up that is aimed at; the contenders asked for."""

    def place(context: Context, tuning: Tuning, **found: str | Refused) -> list[int]:
        offers, counts = offers_of(group_of(context.original, "a")), []

        def contenders(
            context: Context, model: Model, wall_s: float, _: object, goal: float, count: int
        ) -> list[Student]:
            counts.append(count)
            names = found[f"x{goal:.0f}"]
            if isinstance(names, Refused):
                raise names
            return [student(model, [offers[n] for n in one]) for one in names.split()[:count]]

        monkeypatch.setattr(points, "contenders", contenders)
        monkeypatch.setattr(attempting, "tune", tuning.tune)
        monkeypatch.setattr(attempting, "compare", tuning.compare)
        monkeypatch.setattr(attempting, "winner", first)
        return counts

    return place


@pytest.fixture
def attempts(make_context, tmp_path) -> Attempts:
    context = make_context(write_row(tmp_path / "row.onnx"), search={"points": 3})
    return Attempts(context, SimpleNamespace(validation=None), 0)  # type: ignore[arg-type]


def made(attempts: Attempts) -> list[set[str]]:
    """What the accepted models replace."""
    model = attempts.context.original
    return [{o.member.region.name for o in p.offers} for p in several(attempts, model, 1.0, {}, 4.0)]


def same(one: Model, other: Model, source: str, target: str) -> bool:
    return np.array_equal(part(one, source, target, X), part(other, source, target, X))


def test_each_goes_on_with_the_weights_of_the_one_before_be_it_refused_or_not(
    put, attempts: Attempts
) -> None:
    tuning = Tuning(False, True, True)
    put(attempts.context, tuning, x4=ALL, x3=TWO, x2=ONE)
    assert made(attempts) == [{"a", "b"}, {"a"}]
    assert [(a.aim_speedup, a.replacements, a.accepted) for a in attempts.made] == [
        (4.0, 3, False),
        (3.0, 2, True),
        (2.0, 1, True),
    ]
    assert tuning.tags == ["round0-attempt1", "round0-attempt2", "round0-attempt3"]
    for earlier, later in ((0, 1), (1, 2)):
        assert same(tuning.starts[later], tuning.results[earlier], "input", "a")
        assert np.array_equal(
            tuning.starts[later].initializers["head.w"], tuning.results[earlier].initializers["head.w"]
        )
    # b is the original's again in the last one
    assert same(tuning.starts[2], attempts.context.original, "a.relu", "b")


def test_all_get_the_same_share_of_the_settings_and_of_what_is_left(put, attempts: Attempts) -> None:
    tuning = Tuning(True, True, True)
    put(attempts.context, tuning, x4=ALL, x3=TWO, x2=ONE)
    assert len(made(attempts)) == 3
    assert tuning.shares == [Share(1 / 3, 1 / 3), Share(1 / 3, 1 / 2), Share(1 / 3, 1.0)]


def test_the_same_selection_makes_one_point_and_the_others_share_its_time(put, attempts: Attempts) -> None:
    tuning = Tuning(True, True)
    put(attempts.context, tuning, x4=ALL, x3=ALL, x2=ONE)
    assert made(attempts) == [{"a", "b", "c"}, {"a"}]
    assert tuning.shares == [Share(1 / 2, 1 / 2), Share(1 / 2, 1.0)]
    assert [a.attempt for a in attempts.made] == [1, 2]


def test_only_the_first_compares_selections_and_what_lost_is_no_point(put, make_context, tmp_path) -> None:
    context = make_context(write_row(tmp_path / "row.onnx"), search={"points": 3, "selections": 2})
    attempts = Attempts(context, SimpleNamespace(validation=None), 0)  # type: ignore[arg-type]
    counts = put(context, Tuning(True, True), x4="abc ab", x3="ab c", x2="a b")
    assert made(attempts) == [{"a", "b", "c"}, {"a"}]
    assert counts == [2, 1, 1]


def test_what_cannot_be_selected_or_trained_is_an_attempt_and_the_rest_goes_on(
    put, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = Tuning(False, True)
    put(attempts.context, tuning, x4=Refused("select", "out of reach"), x3=TWO, x2=ONE)
    real = tuning.tune

    def tune(*arguments: object) -> Tuned:
        result = real(*arguments)  # type: ignore[arg-type]
        if len(tuning.tags) == 1:
            raise Refused("finetune", "diverged")
        return result

    monkeypatch.setattr(attempting, "tune", tune)
    assert made(attempts) == [{"a"}]
    assert [(a.reason, a.speedup) for a in attempts.made] == [
        ("out of reach", None),
        ("diverged", 1.5),
        ("verdict 2", 1.5),
    ]
    # nothing is taken over from what could not be trained
    assert same(tuning.starts[1], attempts.context.original, "a.relu", "b")
    assert not same(tuning.starts[1], tuning.results[0], "input", "a")


def test_without_time_no_further_point(put, make_context, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = Tuning(True, True, True)
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 31.0 * len(tuning.tags))
    context = make_context(write_row(tmp_path / "row.onnx"), budget_minutes=1)
    put(context, tuning, x4=ALL, x3=TWO, x2=ONE)
    attempts = Attempts(context, SimpleNamespace(validation=None), 0)  # type: ignore[arg-type]
    assert made(attempts) == [{"a", "b", "c"}, {"a", "b"}]
    assert any("no time for another attempt" in w for w in context.warnings)

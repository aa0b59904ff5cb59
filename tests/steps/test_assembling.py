"""Attempts: how many, how ambitious, and what one leaves to the next."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from rows import CHANNELS, SIZE, group_of, offers_of, part, saving, student, write_row

from opadapt.errors import Refused
from opadapt.journal import Journal
from opadapt.model.graph import Model
from opadapt.steps import assemble as assembling
from opadapt.steps import attempt as attempting
from opadapt.steps import heats, students
from opadapt.steps.assemble import Assembled, assemble
from opadapt.steps.attempt import Accepted, _warm
from opadapt.steps.context import Context
from opadapt.steps.offer import Offer
from opadapt.steps.students import Student, calibrated, first_goal
from opadapt.steps.tuning import Share, Tuned, prepared, weights, with_weights
from opadapt.train.accept import Verdict
from opadapt.train.finetune_config import EpochRecord

X = np.random.default_rng(1).standard_normal((2, CHANNELS, SIZE, SIZE)).astype(np.float32)
ENDS = {"a": "input", "b": "a.relu", "c": "b.relu"}  # what each convolution makes, and what it reads


@pytest.fixture
def context(make_context, tmp_path) -> Context:
    return make_context(write_row(tmp_path / "row.onnx"))


def trained(model: Model) -> Model:
    """Other weights, as training would leave them."""
    rng = np.random.default_rng(2)
    values = weights(model.proto)
    return with_weights(
        model, {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in values.items()}
    )


def warmed(
    context: Context, model: Model, first: list[Offer], second: list[Offer]
) -> tuple[Model, Model, Model]:
    """What the first attempt was trained to, what the second starts with, and what it would start with alone."""
    before, now = student(model, first), student(model, second)
    after = trained(prepared(context, before.spliced.model))
    start = prepared(context, now.spliced.model)
    return after, _warm(start, now, before, after), start


def same(one: Model, other: Model, name: str) -> bool:
    return np.array_equal(part(one, ENDS[name], name, X), part(other, ENDS[name], name, X))


def test_a_refused_attempt_leaves_its_weights_to_the_next(context: Context) -> None:
    """The part for c, called otherwise than before, and b, which nothing replaces: with the biases that both were
    given for fine-tuning."""
    offers = offers_of(group_of(context.original, "a"))
    after, warm, start = warmed(context, context.original, [offers["a"], offers["c"]], [offers["c"]])
    for name in "bc":
        assert same(warm, after, name) and not same(warm, start, name)
    assert np.array_equal(warm.initializers["head.w"], after.initializers["head.w"])
    # a is the original's again: nothing was trained for it, its bias neither
    assert same(warm, context.original, "a")


def test_a_part_that_is_new_takes_nothing_from_what_stood_there(context: Context) -> None:
    offers = offers_of(group_of(context.original, "a"))
    after, warm, start = warmed(context, context.original, [offers["c"]], [offers["a"], offers["c"]])
    assert same(warm, after, "c") and same(warm, start, "a") and not same(warm, after, "a")


def test_the_same_selection_goes_on_exactly(context: Context) -> None:
    offers = offers_of(group_of(context.original, "a"))
    chosen = [offers["a"], offers["b"]]
    after, warm, _ = warmed(context, context.original, chosen, chosen)
    assert np.array_equal(part(warm, "input", "scores", X), part(after, "input", "scores", X))


def test_parts_of_earlier_rounds_keep_what_they_learned(context: Context) -> None:
    model = student(context.original, [offers_of(group_of(context.original, "a"))["b"]]).spliced.model
    offers = offers_of(group_of(model, "a"))
    assert set(offers) == {"a", "c"}
    after, warm, start = warmed(context, model, [offers["a"]], [offers["c"]])
    assert same(warm, after, "b") and not same(warm, start, "b")


def test_without_normalisation_no_bias_is_added(make_context, tmp_path) -> None:
    context = make_context(write_row(tmp_path / "row.onnx"), finetune={"batch_norm": False})
    assert prepared(context, context.original) is context.original


# how far, and how often


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fine-tuning that changes nothing and is never accepted; its tags."""
    tags: list[str] = []

    def tune(
        context: Context,
        dataset: object,
        model: Model,
        tag: str,
        replaced: object,
        share: Share,
        found: object,
    ) -> Tuned:
        tags.append(tag)
        return Tuned(model, 0.5, (EpochRecord(0, 0.0, 0.5, 0.0, 0.0),))

    verdict = Verdict(False, "too much is lost", "agreement", True, 100.0, 90.0, 10.0, 9.0, 11.0, 1.0)
    monkeypatch.setattr(attempting, "tune", tune)
    monkeypatch.setattr(heats, "tune", tune)
    monkeypatch.setattr(attempting, "compare", lambda *arguments: verdict)
    yield tags


def attempts(context: Context, savings: float = 2.9) -> Assembled:
    wall_s, saved_s, offers = saving(context)
    aim = wall_s / (wall_s - savings * saved_s)
    data = SimpleNamespace(validation=None)
    return assemble(context, data, context.original, wall_s, offers, aim, 0, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_attempts_than_allowed_each_less_ambitious(
    make_context, tmp_path, refusing: list[str], most: int
) -> None:
    found = attempts(make_context(write_row(tmp_path / "row.onnx"), search={"max_attempts": most}))
    assert found.accepted is None and len(found.attempts) == len(refusing) == most
    aims = [a.aim_speedup for a in found.attempts]
    assert aims == sorted(aims, reverse=True) and len(set(aims)) == most


def test_how_to_train_fastest_is_tried_out_once(
    make_context, tmp_path, refusing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[object] = []

    def tune(*arguments: object) -> Tuned:
        ways.append(arguments[-1])
        return Tuned(arguments[2], 0.5, (), {"threads": len(ways)})  # type: ignore[arg-type]

    monkeypatch.setattr(attempting, "tune", tune)
    attempts(make_context(write_row(tmp_path / "row.onnx"), search={"max_attempts": 2}))
    assert ways == [{}, {"threads": 1}]


def test_the_first_attempt_that_can_be_built_has_several_selections(
    make_context, tmp_path, refusing: list[str]
) -> None:
    """One that no selection reaches costs nothing; after one that was trained there is no time for a choice."""
    search = {"max_attempts": 3, "selections": 2}
    context = make_context(write_row(tmp_path / "row.onnx"), search=search)
    other = students.calibrated

    def two(*arguments: object) -> Student:
        """With a toll another selection than without."""
        found = other(*arguments)  # type: ignore[arg-type]
        return found if len(arguments) == 5 else Student(found.offers[:1], found.spliced, found.speedup)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heats, "calibrated", two)
        found = attempts(context, savings=3.5)
    assert [a.speedup is None for a in found.attempts] == [True, False, False]
    assert refusing == [
        "round0-attempt2-heat1",
        "round0-attempt2-heat2",
        "round0-attempt2",
        "round0-attempt3",
    ]


def test_without_time_no_second_attempt(
    make_context, tmp_path, refusing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 61.0 * len(refusing))
    context = make_context(write_row(tmp_path / "row.onnx"), budget_minutes=1)
    assert len(attempts(context).attempts) == 1
    assert any("no time for another attempt" in w for w in context.warnings)
    # a resumed run stops there, too, whatever its clock says
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 0.0)
    again = make_context(write_row(tmp_path / "row.onnx"), budget_minutes=1)
    assert len(attempts(again).attempts) == 1


def test_the_mildest_selection_that_reaches_the_goal(context: Context) -> None:
    wall_s, saved_s, offers = saving(context)
    found = calibrated(context, context.original, wall_s, offers, wall_s / (wall_s - 1.9 * saved_s))
    assert {o.member.region.name for o in found.offers} == {"b", "c"}
    assert found.speedup == pytest.approx(wall_s / (wall_s - 2 * saved_s), rel=1e-6)


def test_what_is_measured_corrects_what_was_claimed(context: Context) -> None:
    """Each replacement claims twice what it saves: one is chosen, measured, and found to be too little."""
    wall_s, saved_s, offers = saving(context, claimed=2.0)
    goal = wall_s / (wall_s - 1.9 * saved_s)
    found = calibrated(context, context.original, wall_s, offers, goal)
    assert len(found.offers) == 2 and found.speedup >= goal


def test_one_bad_measurement_does_not_decide(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replacements are enough; they are measured too slow, and all three too fast."""
    wall_s, saved_s, offers = saving(context)
    wrong = iter((0.85, 1.1))

    def speedup(context: Context, base: Model, changed: Model, before: int) -> float:
        assert before == len(measured)
        count = len(measured) + 2
        measured.append(count)
        return wall_s / (wall_s - next(wrong) * count * saved_s)

    measured: list[int] = []
    monkeypatch.setattr(students, "_speedup", speedup)
    found = calibrated(context, context.original, wall_s, offers, wall_s / (wall_s - 1.9 * saved_s))
    assert measured == [2, 3] and {o.member.region.name for o in found.offers} == {"b", "c"}
    assert found.speedup == pytest.approx(wall_s / (wall_s - 0.975 * 2 * saved_s))


def test_the_fastest_where_the_goal_is_not_reached_and_a_refusal_out_of_reach(context: Context) -> None:
    wall_s, saved_s, offers = saving(context, claimed=1.1)
    found = calibrated(context, context.original, wall_s, offers, wall_s / (wall_s - 3.2 * saved_s))
    assert len(found.offers) == 3
    with pytest.raises(Refused, match="the target needs"):
        calibrated(context, context.original, wall_s, offers, wall_s / (wall_s - 3.5 * saved_s))


@pytest.mark.parametrize(("recoverable", "replaced"), [(100.0, 3), (10.0, 2), (5.0, 1)])
def test_without_a_target_as_far_as_training_may_recover(
    make_context, tmp_path, monkeypatch: pytest.MonkeyPatch, recoverable: float, replaced: int
) -> None:
    """Every replacement loses four points before fine-tuning, one is allowed."""
    context = make_context(write_row(tmp_path / "row.onnx"), search={"recoverable": recoverable})
    wall_s, saved_s, offers = saving(context)
    screened: list[int] = []

    def compare(context: Context, dataset: object, model: Model, *rest: object) -> SimpleNamespace:
        screened.append(len({n.split("/")[0] for n in model.nodes if n.startswith("adapted_")}))
        return SimpleNamespace(loss=4.0 * screened[-1], allowed=1.0)

    monkeypatch.setattr(students, "judged", compare)
    reachable = wall_s / (wall_s - 3 * saved_s)
    data = SimpleNamespace(validation=None)
    goal = first_goal(context, data, context.original, wall_s, offers, reachable)  # type: ignore[arg-type]
    assert screened[-1] == replaced and screened == sorted(screened, reverse=True)
    assert 1 < goal < reachable


# one model or several


@pytest.mark.parametrize(
    ("target", "points", "several"), [(False, 3, True), (False, 1, False), (True, 3, False)]
)
def test_several_models_only_without_a_target(
    make_context, tmp_path, refusing: list[str], monkeypatch, target: bool, points: int, several: bool
) -> None:
    context = make_context(write_row(tmp_path / "row.onnx"), search={"points": points})
    wall_s, saved_s, offers = saving(context)
    goal = wall_s / (wall_s - 1.9 * saved_s)
    made = [Accepted(context.original, (), speedup, f"{speedup} holds") for speedup in (1.4, 1.6)]
    monkeypatch.setattr(assembling, "first_goal", lambda *arguments: goal)
    monkeypatch.setattr(assembling, "several", lambda *arguments: made)
    data, aim = SimpleNamespace(validation=None), goal if target else None
    found = assemble(context, data, context.original, wall_s, offers, aim, 0, None)  # type: ignore[arg-type]
    assert bool(refusing) is not several
    assert found.points == (tuple(made) if several else ())
    if several:  # the fastest, whatever was aimed at
        assert found.accepted is made[1] and found.reason == "1.6 holds"

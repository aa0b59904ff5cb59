"""The models of a run that made several: which are kept, under which names, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from rows import write_row

from opadapt.errors import ModelError
from opadapt.measure.timing import Estimate
from opadapt.report.data import AccuracyFacts, LatencyFacts, PointFacts, Scores
from opadapt.steps import front as fronts
from opadapt.steps.attempt import Accepted
from opadapt.steps.context import Context
from opadapt.steps.front import front
from opadapt.steps.history import History
from opadapt.steps.tuning import with_weights

NOISE = 0.01


@pytest.fixture
def context(make_context, tmp_path: Path) -> Context:
    return make_context(write_row(tmp_path / "row.onnx"))


def latency(speedup: float) -> LatencyFacts:
    def around(value: float) -> Estimate:
        return Estimate(value, value * 0.995, value * 1.005)

    return LatencyFacts(
        original_s=around(1e-3),
        adapted_s=around(1e-3 / speedup),
        speedup=around(speedup),
        noise_floor=NOISE,
    )


def facts(value: float, test: float | None = None, higher_is_better: bool = True) -> AccuracyFacts:
    """A metric of 90 that may become worse by one."""

    def scores(value: float) -> Scores:
        change = value - 90.0
        return Scores(samples=100, original=90.0, adapted=value, difference=Estimate(change, change, change))

    return AccuracyFacts(
        metric="top1",
        unit="%",
        higher_is_better=higher_is_better,
        tolerance=1.0,
        validation=scores(value),
        test=scores(value if test is None else test),
    )


Made = tuple[float, AccuracyFacts]
Kept = Callable[..., tuple[PointFacts, ...]]


@pytest.fixture
def kept(context: Context, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """The front of an adapted model and of others: for each its speed-up and what it is worth."""

    def run(*models: Made, state: object = None) -> tuple[PointFacts, ...]:
        made = [
            with_weights(context.original, {"head.w": np.full((16, 4), number, np.float32)})
            for number in range(len(models))
        ]
        history = History(points=[Accepted(model, (), 0.0, "") for model in made])
        (speedup, scores), *others = models
        measured = iter(others)
        judged = iter([one for one in others if latency(one[0]).is_gain])
        monkeypatch.setattr(
            fronts,
            "compare_files",
            lambda *arguments: SimpleNamespace(latency=latency(next(measured)[0]), state=state),
        )
        monkeypatch.setattr(fronts, "accuracy", lambda *arguments: next(judged)[1])
        return front(context, None, made[0], latency(speedup), scores, history)  # type: ignore[arg-type]

    return run


def names(points: tuple[PointFacts, ...]) -> list[str]:
    return [point.path for point in points]


def test_what_is_worth_it_is_kept_under_its_speed(context: Context, kept: Kept) -> None:
    points = kept((2.0, facts(89.1)), (1.25, facts(89.9)), (1.534, facts(89.5)))
    assert names(points) == ["adapted.onnx", "front/1.53x.onnx", "front/1.25x.onnx"]
    assert [p.speedup.value for p in points] == [2.0, 1.534, 1.25]
    assert [p.validation.adapted for p in points] == [89.1, 89.5, 89.9]
    for path, number in (("front/1.25x.onnx", 1), ("front/1.53x.onnx", 2)):
        weights = {i.name: i for i in onnx.load(context.folder / path).graph.initializer}
        assert set(onnx.numpy_helper.to_array(weights["head.w"]).ravel()) == {number}
    assert context.warnings == []


def test_no_gain_and_what_another_beats_are_left_out(context: Context, kept: Kept) -> None:
    points = kept(
        (2.0, facts(89.5)), (1.5, facts(89.5)), (1.4, facts(89.2)), (1.3, facts(89.8)), (1.01, facts(90.0))
    )
    assert names(points) == ["adapted.onnx", "front/1.30x.onnx"]
    assert [f.name for f in (context.folder / "front").iterdir()] == ["1.30x.onnx"]
    assert [w.split(":")[0] for w in sorted(context.warnings)] == [
        "a model of 1.01x is left out",
        "a model of 1.40x is left out",
        "a model of 1.50x is left out",
    ]
    assert sum("beyond the noise" in w for w in context.warnings) == 1


def test_a_smaller_error_is_better(kept: Kept) -> None:
    better, worse = facts(90.1, higher_is_better=False), facts(90.8, higher_is_better=False)
    assert names(kept((2.0, worse), (1.5, better))) == ["adapted.onnx", "front/1.50x.onnx"]
    assert names(kept((2.0, better), (1.5, worse))) == ["adapted.onnx"]


def test_equal_speeds_have_names_of_their_own(context: Context, kept: Kept) -> None:
    points = kept((2.0, facts(89.1)), (1.531, facts(89.9)), (1.534, facts(89.5)))
    assert names(points)[1:] == ["front/1.53x.onnx", "front/1.53x-2.onnx"]
    assert [p.speedup.value for p in points[1:]] == [1.534, 1.531]
    assert all((context.folder / name).is_file() for name in names(points)[1:])


def test_the_adapted_model_stays_but_it_is_said_when_another_beats_it(context: Context, kept: Kept) -> None:
    points = kept((1.5, facts(89.1)), (1.52, facts(89.5)))
    assert names(points) == ["front/1.52x.onnx", "adapted.onnx"]
    assert len(context.warnings) == 1 and "no slower than adapted.onnx" in context.warnings[0]


def test_what_an_interrupted_session_left_goes(context: Context, kept: Kept) -> None:
    (context.folder / "front").mkdir()
    stale, own = (context.folder / "front" / name for name in ("9.99x.onnx", "9.99x-int8.onnx"))
    stale.touch()
    own.touch()  # the user's
    assert names(kept((2.0, facts(89.1)), (1.5, facts(89.9)))) == ["adapted.onnx", "front/1.50x.onnx"]
    assert not stale.exists() and own.exists()


def test_a_model_that_cannot_be_exported_is_left_out(
    context: Context, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise ModelError("operator AveragePool has no form at opset 17")

    monkeypatch.setattr(fronts, "export", fails)
    assert names(kept((2.0, facts(89.1)), (1.5, facts(89.9)))) == ["adapted.onnx"]
    assert context.warnings == [
        "model 1 of the front is left out: operator AveragePool has no form at opset 17"
    ]


def test_a_hot_device_is_told_of(context: Context, kept: Kept) -> None:
    hot = SimpleNamespace(too_hot=True, waited_s=60.0)
    kept((2.0, facts(89.1)), (1.5, facts(89.9)), state=hot)
    assert len(context.warnings) == 1 and "too hot" in context.warnings[0]


def test_a_faster_model_that_is_worse_is_told_of(context: Context, kept: Kept) -> None:
    assert names(kept((1.5, facts(89.5)), (1.52, facts(89.1)))) == ["front/1.52x.onnx", "adapted.onnx"]
    assert context.warnings == ["a model in front/ is no slower than adapted.onnx"]


def test_test_data_that_contradicts_names_the_file(context: Context, kept: Kept) -> None:
    kept((2.0, facts(89.1, test=80.0)), (1.5, facts(89.9, test=88.0)))
    assert len(context.warnings) == 1  # the adapted model's own is said by who has judged it
    assert "acceptance of front/1.50x.onnx" in context.warnings[0] and "-2.00" in context.warnings[0]


def test_a_run_that_made_one_model_has_no_front(context: Context) -> None:
    found = front(context, None, context.original, latency(2.0), facts(89.5), History())  # type: ignore[arg-type]
    assert found == () and not (context.folder / "front").exists()

"""Fine-tuning and judging through the journal: what was paid for is not paid for again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from two_outputs import experiment_on, opened, write_model

from opadapt import journal as journal_module
from opadapt.errors import Refused
from opadapt.journal import Journal
from opadapt.model.graph import Model
from opadapt.steps import tuning
from opadapt.steps.context import Context
from opadapt.steps.tuning import compare, tune, weights, with_weights
from opadapt.train.accept import Tolerance, Verdict
from opadapt.train.data import Dataset
from opadapt.train.finetune_config import FinetuneProgress


@pytest.fixture
def experiment(tmp_path: Path):
    return experiment_on(write_model(tmp_path / "m.onnx"))


def data(context: Context) -> Dataset:
    assert context.dataset is not None
    return context.dataset


def changed(model: Model, factor: float) -> Model:
    return with_weights(model, {"head.w": weights(model.proto)["head.w"] * np.float32(factor)})


def test_a_refused_fine_tuning_is_refused_again_without_training(
    experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refuse(*arguments: Any, **others: Any) -> None:
        calls.append(1)
        raise Refused("finetune", "the loss is not finite even at a rate of 0.1")

    monkeypatch.setattr(tuning, "finetune", refuse)
    for _ in range(3):
        with opened(experiment) as context:
            with pytest.raises(Refused) as caught:
                tune(context, data(context), context.original, "round0-attempt1")
            assert caught.value.stage == "finetune"
            assert caught.value.reason == "the loss is not finite even at a rate of 0.1"
    assert len(calls) == 1


def test_training_before_a_kill_counts(experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    clock = SimpleNamespace(time=lambda: now, monotonic=lambda: now)
    monkeypatch.setattr(journal_module, "time", clock)

    def train(
        student: Any, teacher: Any, dataset: Any, config: Any, folder: Any, show: Any, **other: Any
    ) -> None:
        nonlocal now
        for step in range(300):
            now += 1
            show(FinetuneProgress(0, step, 1.0, 0.1, step / 300, float(step), ()))
        raise SystemExit  # as good as a kill, for the journal is not closed below

    monkeypatch.setattr(tuning, "finetune", train)
    monkeypatch.setattr(Journal, "close", lambda self: None)
    with pytest.raises(SystemExit), opened(experiment) as context:
        tune(context, data(context), context.original, "round0-attempt1")
    now += 5000
    assert 295 <= Journal(experiment.model.parent / "run").spent_s() <= 300


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = tuning.predict

    def predict(*arguments: Any, **others: Any) -> Any:
        calls.append(1)
        return real(*arguments, **others)

    monkeypatch.setattr(tuning, "predict", predict)
    return calls


def test_the_original_is_predicted_once_and_no_verdict_twice(
    experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counting(monkeypatch)

    def judge(context: Context, factors: tuple[float, ...]) -> list[Verdict]:
        models = [changed(context.original, factor) for factor in factors]
        return [compare(context, data(context), m, data(context).validation, "validation") for m in models]

    with opened(experiment) as context:
        first = judge(context, (0.5, -1.0))
        assert len(calls) == 3  # two models and the original
        assert judge(context, (0.5, -1.0)) == first
        assert len(calls) == 3
        compare(context, data(context), changed(context.original, 0.5), data(context).test, "test")
        assert len(calls) == 5
    assert first[0] != first[1]
    with opened(experiment) as context:
        assert judge(context, (0.5, -1.0)) == first
    assert len(calls) == 5


def test_a_verdict_on_outputs_that_are_not_finite_comes_back_as_it_was(experiment) -> None:
    found = []
    for _ in range(2):
        with opened(experiment) as context:
            model = changed(context.original, float("nan"))
            found.append(compare(context, data(context), model, data(context).validation, "validation"))
    assert not found[0].accepted and np.isnan(found[0].loss)
    assert repr(found[0]) == repr(found[1])
    assert [type(getattr(v, f.name)) for v in found[:1] for f in dataclasses.fields(Verdict)] == [
        type(getattr(v, f.name)) for v in found[1:] for f in dataclasses.fields(Verdict)
    ]


def test_another_tolerance_is_judged_anew(experiment) -> None:
    with opened(experiment) as context:
        verdicts = []
        for allowed in (0.0, 100.0):
            context.experiment = experiment.model_copy(update={"tolerance": Tolerance(points=allowed)})
            model = changed(context.original, -1.0)
            verdicts.append(compare(context, data(context), model, data(context).validation, "validation"))
    assert [v.accepted for v in verdicts] == [False, True]

"""A run without a target makes several models of different speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from fleets import begun_again, choices
from tiny import write_experiment

from opadapt.adapt import adapt
from opadapt.experiment import create_run, load_experiment, open_run
from opadapt.journal import Journal
from opadapt.model.load import load
from opadapt.report.data import Report, read_json
from opadapt.report.progress import Silent
from opadapt.steps import front, tuning
from opadapt.train.data import load_data
from opadapt.yamlfile import Override


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whatever is trained is accepted."""
    return write_experiment(tmp_path_factory.mktemp("several"), target="null", points=100.0)


@pytest.fixture(scope="module")
def story(experiment: Path) -> tuple[Report, Path]:
    made, folder = create_run(load_experiment(experiment))
    return adapt(made, folder, Silent()), folder


@pytest.mark.slow
def test_models_of_different_speed_the_fastest_is_the_adapted_one(story: tuple[Report, Path]) -> None:
    report, folder = story
    assert report.verdict.target is None and report.verdict.adapted
    assert len(report.points) >= 2
    assert report.points[0].path == "adapted.onnx"
    assert report.points[0].speedup == report.latency.speedup
    speeds = [p.speedup.value for p in report.points]
    worth = [p.validation.adapted for p in report.points]
    assert speeds == sorted(speeds, reverse=True) and worth == sorted(worth)
    assert len(set(speeds)) == len(set(worth)) == len(report.points)
    assert {p.name for p in (folder / "front").iterdir()} == {
        p.path.split("/")[-1] for p in report.points[1:]
    }
    assert read_json(folder / "report.json") == report


def test_the_files_are_what_the_report_says_of_them(story: tuple[Report, Path]) -> None:
    report, folder = story
    experiment = load_experiment(folder / "experiment.yaml")
    assert experiment.data is not None
    x = load_data(experiment.data, load(folder / "original.onnx", {})).validation.inputs["input"]

    def classes(name: str) -> np.ndarray:
        return ort.InferenceSession(str(folder / name)).run(None, {"input": x})[0].argmax(axis=1)

    original = classes("original.onnx")
    for point in report.points:
        agreed = 100 * np.mean(classes(point.path) == original)
        assert point.validation.adapted == pytest.approx(agreed, abs=1e-4)
        assert point.path == "adapted.onnx" or f"/{point.speedup.value:.2f}x" in point.path


def test_each_attempt_is_milder_and_the_epochs_are_shared(story: tuple[Report, Path]) -> None:
    report, folder = story
    aims = [a.aim_speedup for a in report.attempts]
    assert len(aims) >= 2 and aims == sorted(aims, reverse=True) and all(a.accepted for a in report.attempts)
    made = [(a.replacements, a.speedup) for a in report.attempts]
    assert len(set(made)) == len(made)
    # three epochs are asked for, and each row has the start beside its epochs
    rows = [row for _, row in Journal(folder).results("finetune")]
    assert sum(len(row["history"]) - 1 for row in rows) <= 3


def interrupt(monkeypatch: pytest.MonkeyPatch, place: object, name: str, call: int) -> None:
    """Ctrl-C at the given call of a function."""
    real: Callable[..., object] = getattr(place, name)
    calls: list[int] = []

    def function(*arguments: object, **more: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(place, name, function)


@pytest.mark.slow
def test_an_interrupted_run_comes_to_the_same_models(
    experiment: Path, story: tuple[Report, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the second fine-tuning, and between the files of the front. What the search needs is taken over."""
    other = load_experiment(experiment, [Override(("name",), "interrupted", "--name")])
    other, folder = create_run(other)
    for place, name, call in (
        (tuning, "finetune", 2),
        (front, "compare_files", 1),
        (front, "write_atomic", 1),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, place, name, call)
            adapt(open_run(folder), folder, Silent())
    report = adapt(open_run(folder), folder, Silent())
    assert choices(report) == choices(story[0])
    assert begun_again(folder) == 0
    for point in report.points:
        assert (folder / point.path).read_bytes() == (story[1] / point.path).read_bytes()

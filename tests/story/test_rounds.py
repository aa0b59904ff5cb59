"""The search repeated on what it has adapted already: what a second round changes, keeps and is judged against."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tiny import write_experiment

from opadapt.adapt import adapt
from opadapt.experiment import create_run, load_experiment
from opadapt.journal import Journal
from opadapt.model.load import load
from opadapt.report.data import Report
from opadapt.report.progress import Silent
from opadapt.train.data import load_data


def run(folder: Path, **changes: object) -> tuple[Report, Path]:
    """Two rounds with a short search, of which the first must leave something to the second: one group each, of
    two nodes at most. Whatever is trained is accepted."""
    experiment = load_experiment(write_experiment(folder, target="9x", points=100.0))
    search = {"rounds": 2, "max_region_nodes": 2, "population": 4, "generations": 0, "finalists": 2}
    experiment = experiment.model_copy(
        update={"search": experiment.search.model_copy(update=search), **changes}
    )
    experiment, made = create_run(experiment)
    return adapt(experiment, made, Silent()), made


@pytest.mark.slow
def test_a_second_round_is_judged_against_the_original(tmp_path: Path) -> None:
    report, folder = run(tmp_path)
    accepted = [a for a in report.attempts if a.accepted]
    assert [a.round for a in accepted] == [1, 2]
    # it builds on the first: nodes that only that one made are in the end result, or were replaced again
    assert report.replacements and report.latency.speedup.value > accepted[0].speedup
    experiment = load_experiment(folder / "experiment.yaml")
    assert experiment.data is not None
    x = load_data(experiment.data, load(folder / "original.onnx", {})).validation.inputs["input"]
    classes = [
        ort.InferenceSession(str(folder / name)).run(None, {"input": x})[0].argmax(axis=1)
        for name in ("original.onnx", "adapted.onnx")
    ]
    change = 100 * (np.mean(classes[0] == classes[1]) - 1)
    assert accepted[1].difference is not None and report.accuracy is not None
    assert accepted[1].difference.value == pytest.approx(change, abs=1e-4)
    assert report.accuracy.validation.difference.value == pytest.approx(change, abs=1e-4)
    # another model: what the first round timed and trained is not taken for the second's
    rows = [row for _, row in Journal(folder).results("profile")]
    assert len({row["wall"]["value"] for row in rows}) >= 3


@pytest.mark.slow
def test_without_time_no_second_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still until the first round has ended."""
    spent = {"s": 0.0}

    def measure(*arguments: object) -> object:
        if arguments[2] == "round0":
            spent["s"] = 3600.0
        return measured(*arguments)  # type: ignore[arg-type]

    story = importlib.import_module("opadapt.adapt")
    measured = story.measure
    monkeypatch.setattr(story, "measure", measure)
    monkeypatch.setattr(Journal, "spent_s", lambda journal: spent["s"])
    report, _ = run(tmp_path, budget_minutes=30.0)
    assert {a.round for a in report.attempts} == {1} and report.verdict.adapted
    assert any("another round" in w for w in report.warnings)

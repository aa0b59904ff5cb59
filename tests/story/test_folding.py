"""A folding that goes wrong changes no outputs: the model stays unfolded, and the report says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
from tiny import SIZE, write_model

from opadapt.adapt import adapt
from opadapt.experiment import Experiment, create_run, load_experiment
from opadapt.model import fold
from opadapt.model.load import load
from opadapt.model.workbench import Bench
from opadapt.report.progress import Silent
from opadapt.steps import students
from opadapt.steps.baseline import measure
from opadapt.steps.conclude import conclude
from opadapt.steps.context import open_context
from opadapt.steps.history import History


@pytest.fixture(autouse=True)
def wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of folding that drops what it should not: every Relu of a tensor that nothing else reads."""

    def drop(bench: Bench, node: onnx.NodeProto) -> bool:
        before = bench.sole_producer(node.input[0])
        if before is None:
            return False
        bench.take_output(before, node)
        return True

    monkeypatch.setitem(fold._RULES, "Relu", (drop,))


@pytest.fixture
def experiment(tmp_path: Path) -> tuple[Experiment, Path]:
    """A run without data on the null device, begun."""
    path = tmp_path / "exact.yaml"
    model = write_model(tmp_path / "tiny.onnx")
    path.write_text(f"model: {model}\nruns: {tmp_path / 'runs'}\ndevice: 'null'\n")
    return create_run(load_experiment(path))


def outputs(path: Path) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((3, 1, SIZE, SIZE)).astype(np.float32)
    return ort.InferenceSession(str(path)).run(None, {"input": x})[0]


def test_the_exact_story_stays_exact(experiment: tuple[Experiment, Path]) -> None:
    report = adapt(*experiment, Silent())
    assert any("original model is not folded" in text for text in report.warnings)
    folder = experiment[1]
    original, adapted = outputs(folder / "original.onnx"), outputs(folder / "adapted.onnx")
    assert np.abs(original - adapted).max() <= 1e-4 * np.abs(original).max()


def test_what_is_exported_is_what_was_accepted(
    experiment: tuple[Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "BLOCKS", 1)
    path = write_model(tmp_path / "accepted.onnx")
    with open_context(*experiment, Silent()) as context:
        baseline = measure(context, context.original, "original")
        report = conclude(context, baseline, load(path), History(folded=1))
    assert report.verdict.adapted
    assert any("adapted model is not folded" in text for text in report.warnings)
    accepted, adapted = outputs(path), outputs(experiment[1] / "adapted.onnx")
    assert np.abs(accepted - adapted).max() <= 1e-4 * np.abs(accepted).max()


def test_a_student_is_timed_as_it_would_be_exported(experiment: tuple[Experiment, Path]) -> None:
    with open_context(*experiment, Silent()) as context:
        assert students._speedup(context, context.original, context.original) == 1.0
        assert any("student is not folded" in text for text in context.warnings)

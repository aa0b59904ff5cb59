"""Models of several outputs: all that hold floats count as damage, and a run says what its metric does not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from two_outputs import experiment_on, opened, write_model

from opadapt.model.regions import expand_region, regions
from opadapt.steps.ahead import run
from opadapt.steps.harm import Harm
from opadapt.train.metrics import MetricConfig


def test_damage_counts_every_output_of_floats(tmp_path: Path) -> None:
    with opened(experiment_on(write_model(tmp_path / "m.onnx"))) as context:
        assert context.dataset is not None
        harm = Harm(context, context.dataset, context.original)
        region = next(r for r in regions(context.original) if r.nodes == ("side",))
        expanded = expand_region(context.original, region)
        silent = {name: np.zeros_like(value) for name, value in expanded.binding.items()}
        parts = [{region: (expanded.program, binding)} for binding in (expanded.binding, silent)]
        same, without = run(harm(context, parts, ["same", "without"]))
    assert same == pytest.approx(0, abs=1e-6)
    assert without >= 0.99  # the squared error over the variance


def test_only_the_first_output_is_read_as_class_scores(tmp_path: Path) -> None:
    with opened(experiment_on(write_model(tmp_path / "m.onnx"))) as context:
        assert context.dataset is not None
        assert Harm(context, context.dataset, context.original).kinds == {
            "logits": "logits",
            "side": "values",
        }


def test_what_the_metric_does_not_see_is_said_once(tmp_path: Path) -> None:
    with opened(experiment_on(write_model(tmp_path / "m.onnx"))) as context:
        (warning,) = (text for text in context.warnings if "metric" in text)
    assert "'logits' alone" in warning and "'index', 'side'" in warning


def test_nothing_is_said_of_one_output(tmp_path: Path) -> None:
    with opened(experiment_on(write_model(tmp_path / "m.onnx", ["logits"]))) as context:
        assert not context.warnings


def test_a_metric_of_values_reads_the_first_output_as_values(tmp_path: Path) -> None:
    experiment = experiment_on(write_model(tmp_path / "m.onnx"))
    values = experiment.model_copy(update={"metric": MetricConfig(name="deviation")})
    with opened(values) as context:
        assert context.dataset is not None
        assert set(Harm(context, context.dataset, context.original).kinds.values()) == {"values"}

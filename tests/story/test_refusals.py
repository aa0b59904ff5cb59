"""Bad input at the command line: a clear error, exit code 2, no traceback, no run folder left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny import SIZE, write_experiment, write_model
from typer.testing import CliRunner

from opadapt.cli import app

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 1, SIZE, SIZE)).astype(np.float32)
Y = RNG.integers(0, 4, 60)


def refused(*arguments: str) -> str:
    """The message of a call that must be refused."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def run_with(folder: Path, **arrays: np.ndarray) -> str:
    """Refused: the tiny model with these arrays as data."""
    model = write_model(folder / "tiny.onnx")
    np.savez(folder / "data.npz", **arrays)
    experiment = folder / "e.yaml"
    experiment.write_text(f'model: {model}\nruns: {folder / "runs"}\ndevice: "null"\n')
    message = refused("run", "-c", str(experiment), "--data", str(folder / "data.npz"))
    runs = folder / "runs"
    assert not runs.exists() or not list(runs.iterdir())
    return message


def test_label_out_of_range(tmp_path: Path) -> None:
    message = run_with(tmp_path, x=X, y=np.where(np.arange(60) == 17, 9, Y))
    assert "9" in message and "0 to 3" in message


def test_shape_that_does_not_match(tmp_path: Path) -> None:
    message = run_with(tmp_path, x=X[..., :5], y=Y)
    assert f"1x{SIZE}x{SIZE}" in message and f"1x{SIZE}x5" in message


def test_counts_differ(tmp_path: Path) -> None:
    message = run_with(tmp_path, x=X, y=Y[:-1])
    assert "60" in message and "59" in message


def test_not_a_number(tmp_path: Path) -> None:
    x = X.copy()
    x[3, 0, 2, 1] = np.nan
    assert "finite" in run_with(tmp_path, x=x, y=Y)


def test_metric_that_needs_labels(tmp_path: Path) -> None:
    assert "labels" in run_with(tmp_path, x=X)


def test_fractions_as_class_labels(tmp_path: Path) -> None:
    message = run_with(tmp_path, x=X, y=Y + 0.5)
    assert "class numbers" in message and "mae" in message


def test_unsupported_operator(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], name="f", domain="com.example")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports), tmp_path / "custom.onnx")
    message = refused("run", "--device", "null", str(tmp_path / "custom.onnx"))
    assert "Frobnicate" in message and "com.example" in message


def test_truncated_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.onnx")
    model.write_bytes(model.read_bytes()[:700])
    assert "tiny.onnx" in refused("run", "--device", "null", str(model))


def test_unknown_key_names_the_place(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    path.write_text(path.read_text() + "budget_minuts: 3\n")
    line = len(path.read_text().splitlines())
    message = refused("run", "-c", str(path))
    assert f"{path.name}:{line}:1" in message and "budget_minutes" in message


@pytest.mark.parametrize("name", ["absent.npz", "absent"])
def test_missing_data(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "tiny.onnx")
    assert name in refused("run", "--device", "null", "--data", str(tmp_path / name), str(model))

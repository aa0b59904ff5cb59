"""Faults of the machine end the run and are not put down to a candidate; a candidate's own faults are results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from two_outputs import IMAGE, write_model

from opadapt.errors import DeviceError, RunError
from opadapt.steps import workers
from opadapt.steps.workers import DamageTask, DistilTask, run_damage, run_distil
from opadapt.train import distil as distil_module
from opadapt.train import evaluate
from opadapt.train.distil import DistilConfig
from opadapt.train.evaluate import run_batched

COUNT = 12


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[DistilTask, DamageTask]:
    """Both kinds of work on one model, whole."""
    model = write_model(tmp_path / "m.onnx", ["logits", "side"])
    proto = onnx.load(model)
    x = np.random.default_rng(0).normal(size=(COUNT, *IMAGE)).astype(np.float32)
    arrays = {"image": x, **run_batched(proto, {"image": x}, threads=1)}
    paths = {name: tmp_path / f"{name}.npy" for name in arrays}
    for name, array in arrays.items():
        np.save(paths[name], array)
    region = write_model(tmp_path / "region.onnx", ["logits"]).read_bytes()
    return (
        DistilTask(region, (paths["image"],), paths["logits"], DistilConfig(steps=2, batch=4), 0),
        DamageTask(
            model.read_bytes(),
            {"image": paths["image"]},
            {"logits": paths["logits"], "side": paths["side"]},
            {"logits": "logits", "side": "values"},
        ),
    )


def test_both_work_where_nothing_is_wrong(tasks: tuple[DistilTask, DamageTask]) -> None:
    distilled, harmed = run_distil(tasks[0]), run_damage(tasks[1])
    assert distilled.student is not None and not distilled.refused
    assert harmed.value == pytest.approx(0, abs=1e-6)


def test_a_lock_that_is_not_let_go_of_ends_the_run(
    tasks: tuple[DistilTask, DamageTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Held:
        @contextlib.contextmanager
        def busy(self) -> Iterator[None]:
            raise DeviceError("another opadapt on this machine did not pause")
            yield

    monkeypatch.setattr(workers, "measuring_lock", Held)
    for run, task in zip((run_distil, run_damage), tasks, strict=True):
        with pytest.raises(DeviceError, match="did not pause"):
            run(task)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["image.npy", "logits.npy"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_recorded_array_that_is_gone_or_cut_ends_the_run(
    tasks: tuple[DistilTask, DamageTask], tmp_path: Path, name: str, cut: bool
) -> None:
    path = tmp_path / name
    if cut:
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    for run, task in zip((run_distil, run_damage), tasks, strict=True):
        with pytest.raises(RunError, match=name):
            run(task)  # type: ignore[operator]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_memory_that_runs_out_ends_the_run(
    tasks: tuple[DistilTask, DamageTask], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **others: object) -> None:
        raise error

    monkeypatch.setattr(distil_module, "build", fail)
    monkeypatch.setattr(evaluate.ort, "InferenceSession", fail)
    for run, task in zip((run_distil, run_damage), tasks, strict=True):
        with pytest.raises(RunError, match="memory ran out"):
            run(task)  # type: ignore[operator]


@pytest.mark.parametrize("error", [RuntimeError(""), ValueError("Expected more than 1 value per channel")])
def test_what_torch_refuses_is_a_result(
    tasks: tuple[DistilTask, DamageTask], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **others: object) -> None:
        raise error

    monkeypatch.setattr(distil_module, "build", fail)
    result = run_distil(tasks[0])
    assert result.student is None
    assert result.refused == f"torch: {str(error) or 'RuntimeError'}"


def test_a_model_that_does_not_load_is_as_damaged_as_can_be(
    tasks: tuple[DistilTask, DamageTask],
) -> None:
    proto = onnx.load_from_string(tasks[1].model)
    proto.graph.node[0].op_type = "Frobnicate"
    broken = DamageTask(proto.SerializeToString(), tasks[1].inputs, tasks[1].references, tasks[1].kinds)
    assert run_damage(broken).value == np.inf

"""Whose fault it is: a region that torch refuses is turned down, memory that runs out ends the run."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tiny_models import classifier, model_of

from opadapt.errors import DataError, Refused, RunError
from opadapt.train import distil as distil_module
from opadapt.train import evaluate
from opadapt.train.capture import capture
from opadapt.train.distil import DistilConfig, distil
from opadapt.train.evaluate import run_batched
from opadapt.train.memory import ran_out

IMAGES = np.zeros((4, 1, 6, 6), np.float32)
NO_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1"),
    RuntimeError("std::bad_alloc"),
]


def raising(error: Exception):
    def call(*arguments, **others):
        raise error

    return call


def distilled():
    return distil(classifier(0), [IMAGES], np.zeros((4, 3), np.float32), DistilConfig(steps=1), seed=0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("mat1 and mat2 shapes cannot be multiplied\nat line 3"),
            "shapes cannot be multiplied$",
        ),
        (ValueError("Expected more than 1 value per channel when training"), "more than 1 value"),
        (IndexError("Dimension out of range"), "out of range"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_what_torch_refuses_is_the_regions_fault(monkeypatch, error, reason):
    monkeypatch.setattr(distil_module, "build", raising(error))
    with pytest.raises(Refused, match=reason) as caught:
        distilled()
    assert caught.value.stage == "distil"


@pytest.mark.parametrize("error", NO_MEMORY)
def test_memory_that_runs_out_is_not(monkeypatch, error):
    monkeypatch.setattr(distil_module, "build", raising(error))
    with pytest.raises(RunError, match="memory ran out"):
        distilled()
    monkeypatch.setattr(evaluate.ort, "InferenceSession", raising(error))
    with pytest.raises(RunError, match="memory ran out"):
        run_batched(classifier(0), {"image": IMAGES})


def test_other_errors_do_not_speak_of_memory():
    assert not ran_out(RuntimeError("Could not find an implementation for Conv(11)"))


def test_capture_says_that_a_model_does_not_run_on_its_feeds():
    with pytest.raises(DataError, match="cannot run"):
        capture(classifier(0), ["r"], [{"image": IMAGES[..., :4]}])


def test_a_batch_that_an_input_does_not_take_is_an_error_of_capture():
    nodes = [helper.make_node("Add", ["a", "b"], ["y"], "add")]
    proto = model_of(nodes, {"a": ("N", 4), "b": (1, 4)}, {"y": ("N", 4)}, {})
    feeds = {"a": np.ones((3, 4), np.float32), "b": np.ones((3, 4), np.float32)}
    with pytest.raises(DataError, match="cannot run"):
        capture(proto, ["y"], [feeds])

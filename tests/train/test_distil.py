from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_models import model_of

from opadapt.errors import DataError, Refused
from opadapt.train.distil import DistilConfig, distil
from opadapt.train.evaluate import run_batched


def convolution(seed: int, bias: float = 0.0, norm: bool = False) -> onnx.ModelProto:
    """x0 [N,2,5,5] -> 3x3 convolution (-> batch norm whose statistics are far off) -> y [N,3,5,5]."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(0, 0.3, (3, 2, 3, 3)).astype(np.float32), "b": np.full(3, bias, np.float32)}
    nodes = [helper.make_node("Conv", ["x0", "w", "b"], ["c" if norm else "y"], "conv", pads=[1] * 4)]
    if norm:
        for name, value in (("scale", 1.0), ("shift", 0.0), ("mean", 50.0), ("var", 1e-3)):
            weights[name] = np.full(3, value, np.float32)
        nodes.append(
            helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"], "bn")
        )
    return model_of(nodes, {"x0": ("N", 2, 5, 5)}, {"y": ("N", 3, 5, 5)}, weights)


def nmse(proto, x, target) -> float:
    made = run_batched(proto, {"x0": x}, threads=1)["y"].astype(np.float64)
    centre = target.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    return float(np.square(made - target).sum() / np.square(target - centre).sum())


X = np.random.default_rng(0).normal(size=(256, 2, 5, 5)).astype(np.float32)
TARGET = run_batched(convolution(1, bias=2.0), {"x0": X}, threads=1)["y"]
CONFIG = DistilConfig(steps=150, batch=32, learning_rate=0.1)


@pytest.mark.parametrize("loss", ["global", "channel"])
def test_a_region_of_the_same_form_is_recovered(loss):
    config = CONFIG.model_copy(update={"loss": loss})
    result = distil(convolution(2), [X], TARGET, config, seed=0)
    assert result.start_nmse > 0.5
    assert result.nmse < 1e-3
    assert result.steps == 150
    assert nmse(result.proto, X, TARGET) == pytest.approx(
        result.nmse, rel=0.5
    )  # held-back rows stand for all


def test_the_start_error_is_that_of_the_given_weights():
    config = DistilConfig(steps=0, held_back_fraction=0.9)
    result = distil(convolution(2), [X], TARGET, config, seed=0)
    assert result.nmse == result.start_nmse
    assert result.nmse == pytest.approx(nmse(convolution(2), X, TARGET), rel=0.05)


def test_perfect_weights_are_not_made_worse():
    result = distil(convolution(1, bias=2.0), [X], TARGET, CONFIG, seed=0)
    assert result.nmse <= result.start_nmse < 1e-10
    assert nmse(result.proto, X, TARGET) < 1e-9


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_steps_have_a_schedule_too(steps):
    result = distil(convolution(2), [X], TARGET, CONFIG.model_copy(update={"steps": steps}), seed=0)
    assert result.steps == steps and result.nmse <= result.start_nmse


def test_the_same_seed_gives_the_same_weights():
    config = CONFIG.model_copy(update={"steps": 10})
    first, second, other = (distil(convolution(2), [X], TARGET, config, seed=s) for s in (3, 3, 4))
    assert first.proto.SerializeToString() == second.proto.SerializeToString()
    assert first.proto.SerializeToString() != other.proto.SerializeToString()


def test_batch_statistics_are_estimated_before_and_after():
    """Statistics of 50 and 1e-3 would give an NMSE of millions."""
    result = distil(convolution(2, norm=True), [X], TARGET, CONFIG, seed=0)
    assert result.start_nmse < 10
    assert result.nmse < 0.02
    assert nmse(result.proto, X, TARGET) < 0.03
    weights = {i.name: numpy_helper.to_array(i) for i in result.proto.graph.initializer}
    assert np.abs(weights["mean"]).max() < 5


def run_in_worker(folder: str) -> tuple[bytes, float]:
    x, target = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("x", "target"))
    result = distil(convolution(2), [x], target, CONFIG.model_copy(update={"steps": 5}), seed=0, threads=1)
    return result.proto.SerializeToString(), result.nmse


def test_spawned_workers_on_memory_maps_reach_the_same_weights(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "target.npy", TARGET)
    here = run_in_worker(str(tmp_path))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(run_in_worker, str(tmp_path)).result(timeout=60) == here


def test_activations_that_do_not_go_together_are_refused():
    with pytest.raises(DataError, match="do not go together"):
        distil(convolution(2), [X[:10]], TARGET, CONFIG, seed=0)


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(Refused, match="distil"):
        distil(convolution(2), [X], TARGET * np.float32(np.nan), CONFIG, seed=0)


def test_an_operator_that_cannot_be_trained_is_refused():
    nodes = [helper.make_node("NonZero", ["x0"], ["i"]), helper.make_node("Cast", ["i"], ["y"], to=1)]
    proto = model_of(nodes, {"x0": ("N", 4)}, {"y": (2, "M")}, {})
    with pytest.raises(Refused, match="NonZero"):
        distil(proto, [X[:, 0, 0, :4]], TARGET, CONFIG, seed=0)

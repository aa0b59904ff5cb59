from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from tiny_models import classifier, image_dataset
from torch import nn

from opadapt.steps.workers import Workers
from opadapt.train.batches import Batch
from opadapt.train.finetune import FinetuneConfig, finetune
from opadapt.train.replicas import Replicas
from opadapt.train.speed import Execution, candidates, cores


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def execution(replicas: int) -> Execution:
    return Execution("cpu", 1, False, False, replicas)


def batch_of(x, labels=None) -> Batch:
    return Batch([x], labels, torch.arange(len(x)), 0)


def squared(module: nn.Module, batch: Batch):
    return (module(batch.inputs[0]) - batch.labels).square().mean()


@pytest.mark.parametrize("samples", [8, 7, 3])
@pytest.mark.parametrize("parts", [2, 3])
def test_gradients_are_those_of_the_whole_batch(samples, parts):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x, y = torch.randn(samples, 3, 8, 8), torch.randn(samples, 5)
    with Replicas(module, execution(1)) as whole:
        value = whole.backward(squared, batch_of(x, y))
    wanted = [w.grad.clone() for w in module.parameters()]
    with Replicas(module, execution(parts)) as replicas:
        assert replicas.backward(squared, batch_of(x, y)) == pytest.approx(value, rel=1e-5)
        for weight, gradient in zip(module.parameters(), wanted, strict=True):
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)
        # what an optimiser does to the module's weights is seen by all replicas, and old gradients are forgotten
        with torch.no_grad():
            for weight in module.parameters():
                weight.zero_()
        assert replicas.backward(squared, batch_of(x, y)) == pytest.approx(float(y.square().mean()), rel=1e-5)


def test_a_weight_that_only_one_replica_uses_has_a_gradient():
    module = nn.ParameterDict({"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))})

    def loss(own, batch):
        return own["a" if float(batch.inputs[0][0]) > 0 else "b"].sum()

    with Replicas(module, execution(2)) as replicas:
        replicas.backward(loss, batch_of(torch.tensor([1.0, -1.0])))
    assert [float(w.grad) for w in module.values()] == [0.5, 0.5]


def test_statistics_are_those_of_the_first_part():
    module = nn.BatchNorm1d(1, momentum=1.0)
    x = torch.tensor([[1.0], [3.0], [100.0], [300.0]])
    with Replicas(module, execution(2)) as replicas:
        replicas.backward(lambda own, batch: own(batch.inputs[0]).sum(), batch_of(x))
    assert float(module.running_mean) == 2.0


def test_an_error_of_a_part_reaches_the_caller():
    def loss(module, batch):
        raise RuntimeError("out of memory")

    with (
        Replicas(nn.Linear(1, 1), execution(2)) as replicas,
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        replicas.backward(loss, batch_of(torch.ones(2, 1)))


def test_executions_with_replicas():
    ways = {(c.threads, c.replicas) for c in candidates("float32", None, replicas=2, batch=64)}
    assert {parts for _, parts in ways} == {2}
    assert {(c.threads, c.replicas) for c in candidates("float32", 6, replicas=3, batch=64)} == {(2, 3)}
    assert {c.replicas for c in candidates("float32", 6, batch=64)} == {1}
    assert {c.replicas for c in candidates("float32", 4, replicas=4, batch=2)} == {2}
    assert {c.replicas for c in candidates("float32", None, batch=8)} == {1}  # too few samples to be cut


def test_a_system_that_does_not_tell_its_cores_offers_all_of_them(monkeypatch):
    """macOS has no sched_getaffinity, and its torch no oneDNN."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert cores() == 6
    found = candidates("auto", None, batch=64)
    assert max(c.threads for c in found) == 6 and not any(c.bfloat16 for c in found)
    assert Workers(0).count == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_fine_tuning_with_replicas_learns_and_repeats_itself(tmp_path):
    config = FinetuneConfig(
        epochs=8, batch=32, learning_rate=0.05, threads=2, replicas=2, layout="contiguous"
    )
    data = image_dataset(400, None)
    results = []
    for name in "ab":
        (tmp_path / name).mkdir()
        results.append(finetune(classifier(1), classifier(0), data, config, tmp_path / name, seed=3))
    first, second = results
    assert first.execution.replicas == 2
    assert first.metric < 0.7 * first.history[0].metric  # deviation: less is better
    for a, b in zip(first.proto.graph.initializer, second.proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))

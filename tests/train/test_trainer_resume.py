"""Rate cuts, resuming and the ends of a fine-tuning: the same weights, whatever interrupted it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tiny_models import classifier, image_dataset, model_of

from opadapt.train import choice as choice_module
from opadapt.train import trainer as trainer_module
from opadapt.train.data import Dataset, Split
from opadapt.train.finetune import FinetuneConfig, finetune
from opadapt.train.finetune_config import FinetuneResult, learning_rate
from opadapt.train.metrics import MetricConfig, make_metric
from opadapt.train.norms import with_norms
from opadapt.train.preprocess import AugmentConfig, Preprocess, PreprocessConfig, resolve
from opadapt.train.trainer import Trainer

DATA = image_dataset(400, None)
STEPS = 7  # an epoch: 240 training images, 32 a step
EXACT = FinetuneConfig(
    epochs=3, batch=32, learning_rate=0.05, threads=1, layout="contiguous", precision="float32"
)


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def trained(folder: Path, config: FinetuneConfig, after: int | None = None) -> FinetuneResult:
    """Fine-tuned in ``folder``; with ``after`` stopped after so many steps."""
    folder.mkdir(exist_ok=True)
    asked = itertools.count()
    stop = None if after is None else lambda: next(asked) >= after
    return finetune(classifier(1), classifier(0), DATA, config, folder, None, stop, seed=5)


def weights_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}


def assert_same(found: FinetuneResult, wanted: FinetuneResult) -> None:
    assert found.steps == wanted.steps
    for field in ("epoch", "metric", "learning_rate"):
        assert [getattr(r, field) for r in found.history] == [getattr(r, field) for r in wanted.history]
    assert [r.loss for r in found.history[1:]] == [r.loss for r in wanted.history[1:]]
    for name, value in weights_of(wanted.proto).items():
        np.testing.assert_array_equal(weights_of(found.proto)[name], value)


def spoil(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """At the full rate, the step of this number leaves nothing but NaN behind."""
    real = Trainer._train_step

    def step(self, replicas):
        if self.step != number or self.rate_cuts:
            return real(self, replicas)
        for values in (self.student.state_dict(), self.average or {}, *self.optimizer.state.values()):
            for value in values.values():
                value.fill_(math.nan)
        return math.nan

    monkeypatch.setattr(Trainer, "_train_step", step)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_cut_goes_back_to_the_start_of_the_epoch(tmp_path, monkeypatch, ema):
    config = EXACT.model_copy(update={"ema_decay": ema})
    results = []
    for number in (STEPS + 1, STEPS + 5):
        with monkeypatch.context() as patch:
            spoil(patch, number)
            results.append(trained(tmp_path / str(number), config))
    assert_same(*results)
    rates = [record.learning_rate for record in results[0].history]
    assert rates[1] == pytest.approx(learning_rate(config, 1 / 3))
    assert rates[2] == pytest.approx(learning_rate(config, 2 / 3) / 4)
    assert all(np.isfinite(value).all() for value in weights_of(results[0].proto).values())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_cut_after_resuming_inside_an_epoch_goes_back_as_far(tmp_path, monkeypatch, ema):
    config = EXACT.model_copy(update={"ema_decay": ema})
    spoil(monkeypatch, STEPS + 3)
    whole = trained(tmp_path / "whole", config)
    assert trained(tmp_path / "parts", config, after=STEPS + 2).steps == STEPS + 2
    assert_same(trained(tmp_path / "parts", config), whole)


@pytest.mark.parametrize(("replicas", "teacher_epochs"), [(1, None), (2, 2), (2, 1)])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_resuming_with_added_norms_an_average_and_replicas(tmp_path, replicas, teacher_epochs, ema):
    assert with_norms(classifier(1))[1]
    config = EXACT.model_copy(
        update={"ema_decay": ema, "replicas": replicas, "teacher_epochs": teacher_epochs}
    )
    whole = trained(tmp_path / "whole", config)
    trained(tmp_path / "parts", config, after=3)
    trained(tmp_path / "parts", config, after=7)
    assert_same(trained(tmp_path / "parts", config), whole)
    assert whole.execution.replicas == replicas


def test_an_average_that_forgets_at_once_is_the_weights_themselves(tmp_path):
    """What is folded away is the averaged normalisation, with the averaged statistics."""
    plain = trained(tmp_path / "plain", EXACT)
    averaged = trained(tmp_path / "averaged", EXACT.model_copy(update={"ema_decay": 1e-6}))
    for name, value in weights_of(plain.proto).items():
        np.testing.assert_allclose(weights_of(averaged.proto)[name], value, rtol=1e-3, atol=1e-4)
    kept = trained(tmp_path / "kept", EXACT.model_copy(update={"ema_decay": 0.99}))
    moved = [np.abs(weights_of(kept.proto)[n] - v).max() for n, v in weights_of(plain.proto).items()]
    assert max(moved) > 1e-3


def test_an_epoch_that_the_minutes_cut_is_closed_once(tmp_path, monkeypatch):
    """Called again after the end, as after a kill before the result was recorded: nothing is added."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(trainer_module, "time", clock)  # every look at it takes a second
    config = EXACT.model_copy(update={"epochs": None, "minutes": 10.5 / 60})
    first = trained(tmp_path, config)
    assert first.steps % STEPS != 0 and first.steps > STEPS
    assert [record.epoch for record in first.history] == [0, 1, 2]
    assert first.history[-1].loss > 0
    assert_same(trained(tmp_path, config), first)


@pytest.mark.parametrize(
    ("batch", "replicas", "normed"),
    [(16, None, True), (15, None, False), (32, 2, True), (31, 2, False), (32, 3, False), (2, 4, False)],
)
def test_batches_too_small_for_statistics_are_not_normalised(tmp_path, batch, replicas, normed):
    config = EXACT.model_copy(update={"epochs": 0, "batch": batch, "replicas": replicas})
    metric = make_metric(MetricConfig(name="deviation"))
    made = Trainer(classifier(1), classifier(0), DATA, config, metric, 0.0, tmp_path, "mark", 0, None)
    assert bool(made.norms) is normed


def test_a_batch_of_one_trains_a_convolution_on_single_pixels(tmp_path):
    rng = np.random.default_rng(0)
    made = {
        "w": rng.normal(size=(4, 3, 1, 1)).astype("f"),
        "b": np.zeros(4, np.float32),
        "head": rng.normal(size=(4, 2)).astype("f"),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("Flatten", ["c"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "head"], ["y"], "product"),
    ]
    proto = model_of(nodes, {"x": ("N", 3, 1, 1)}, {"y": ("N", 2)}, made)
    x = rng.normal(size=(30, 3, 1, 1)).astype("f")
    steps = {"x": resolve(PreprocessConfig(), "x", x.shape[1:], x.shape[1:], "float32")}
    splits = [Split({"x": x[i : i + 10]}) for i in (0, 10, 20)]
    data = Dataset(*splits, Preprocess(steps), AugmentConfig(), "none")
    config = EXACT.model_copy(update={"epochs": 1, "batch": 1})
    assert finetune(proto, proto, data, config, tmp_path).steps == 10


def test_validation_uses_the_threads_of_all_replicas(tmp_path, monkeypatch):
    seen = []
    real = choice_module.predict

    def predict(*arguments, threads, **others):
        seen.append(threads)
        return real(*arguments, threads=threads, **others)

    monkeypatch.setattr(choice_module, "predict", predict)
    result = trained(tmp_path, EXACT.model_copy(update={"epochs": 1, "threads": 2, "replicas": 2}))
    assert (result.execution.threads, result.execution.replicas) == (1, 2)
    assert set(seen) == {2}


def test_the_statistics_at_the_end_are_of_many_batches(tmp_path):
    """Those that run along are of the last few, here of the last: brighter or darker images than all of them."""
    bright = np.random.default_rng(0).integers(0, 256, len(DATA.train), dtype=np.uint8)
    train = Split({"image": np.tile(bright[:, None, None], (1, 6, 6))})
    config = EXACT.model_copy(update={"batch": 8, "learning_rate": 1e-9, "batch_norm": False})
    student = classifier(1, norm=True)
    (node,) = (n for n in student.graph.node if n.op_type == "BatchNormalization")
    node.attribute.append(helper.make_attribute("momentum", 0.0))
    finetune(student, classifier(0), replace(DATA, train=train), config, tmp_path, seed=5)
    weights = {name: torch.from_numpy(value.copy()) for name, value in weights_of(student).items()}
    images = DATA.preprocess({"image": torch.from_numpy(train.inputs["image"])})["image"]
    made = torch.nn.functional.conv2d(images, weights["conv.w"], weights["conv.b"], padding=1)
    wanted, deviation = made.mean((0, 2, 3)), made.std((0, 2, 3))
    found = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["now"]["student"]["s_bn_mean"]
    assert ((found - wanted).abs() / deviation).max() < 0.05

from __future__ import annotations

import math
import os
import signal

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from tiny_models import classifier, image_dataset, regressor
from torch import nn

from opadapt.errors import ConfigError, DataError, Refused, RunError
from opadapt.model.graph import Model
from opadapt.torchgraph.ops.normalization import BatchNorm
from opadapt.train.data import Dataset, Split
from opadapt.train.evaluate import predict
from opadapt.train.finetune import FinetuneConfig, finetune
from opadapt.train.finetune_config import learning_rate
from opadapt.train.loss import Head, Loss, alike, heads_of
from opadapt.train.metrics import Metric, MetricConfig, make_metric
from opadapt.train.preprocess import AugmentConfig, Preprocess, PreprocessConfig, resolve

AGREEMENT = make_metric(MetricConfig(name="agreement"))
FAST = FinetuneConfig(epochs=4, batch=32, learning_rate=0.05, threads=1)


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def weights_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}


def labelled() -> Dataset:
    """400 images whose labels are the teacher's classes."""
    plain = image_dataset(400, None)
    images = np.concatenate([s.inputs["image"] for s in (plain.train, plain.validation, plain.test)])
    scores = predict(classifier(0), Split({"image": images}), plain.preprocess, threads=1)
    return image_dataset(400, scores.argmax(axis=1))


@pytest.mark.parametrize("softmax", [False, True])
def test_the_student_learns_the_teacher(tmp_path, softmax):
    teacher, student = classifier(0, softmax=softmax), classifier(1, softmax=softmax)
    config = FAST.model_copy(update={"epochs": 8})
    result = finetune(student, teacher, labelled(), config, tmp_path, seed=0)
    assert result.history[0].metric < 0.6
    assert result.metric > result.history[0].metric + 0.2
    assert result.metric == result.history[result.chosen_epoch].metric
    assert [r.epoch for r in result.history] == list(range(9))
    assert result.epochs == 8
    assert all(math.isfinite(r.loss) for r in result.history[1:])


def test_without_labels_and_with_agreement(tmp_path):
    data = image_dataset(400, None)
    config = FAST.model_copy(update={"epochs": 12})
    result = finetune(classifier(1), classifier(0), data, config, tmp_path, metric=AGREEMENT)
    assert result.metric > result.history[0].metric + 0.15


def test_values_of_several_inputs(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(300, 4)).astype("f"), "b": rng.normal(size=(300, 2)).astype("f")}
    steps = {
        name: resolve(PreprocessConfig(), name, x.shape[1:], x.shape[1:], "float32")
        for name, x in arrays.items()
    }
    splits = [Split({n: x[i : i + 100] for n, x in arrays.items()}) for i in (0, 100, 200)]
    data = Dataset(*splits, Preprocess(steps), AugmentConfig(), "none")
    config = FinetuneConfig(epochs=40, batch=25, learning_rate=0.05, optimizer="adamw", threads=1)
    result = finetune(regressor(1), regressor(0), data, config, tmp_path)
    assert result.history[0].metric > 0.5  # deviation: NMSE against the teacher
    assert result.metric < 0.1


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [3, 7, 11])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_resumed_run_reaches_the_same_weights(tmp_path, after, ema):
    """7 steps an epoch: stopped inside an epoch, at its end, and inside a later one."""
    config = FAST.model_copy(update={"epochs": 2, "ema_decay": ema})
    data = labelled()
    data = Dataset(
        data.train, data.validation, data.test, data.preprocess,
        AugmentConfig(crop_padding_pixels=1, flip_horizontal=True), "classes",
    )  # fmt: skip
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole = finetune(classifier(1, norm=True), classifier(0), data, config, folders[0], seed=5)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    part = finetune(classifier(1, norm=True), classifier(0), data, config, folders[1], None, stop, seed=5)
    assert part.steps == after
    rest = finetune(classifier(1, norm=True), classifier(0), data, config, folders[1], seed=5)
    assert rest.steps == whole.steps == 14
    assert [r.metric for r in rest.history] == [r.metric for r in whole.history]
    assert [r.loss for r in rest.history[1:]] == [r.loss for r in whole.history[1:]]
    for name, value in weights_of(whole.proto).items():
        np.testing.assert_array_equal(weights_of(rest.proto)[name], value)


def test_a_finished_run_returns_at_once(tmp_path):
    first = finetune(classifier(1), classifier(0), labelled(), FAST, tmp_path)
    again = finetune(classifier(1), classifier(0), labelled(), FAST, tmp_path)
    assert again.history[1:] == first.history[1:]
    assert again.seconds == first.seconds
    assert again.proto.SerializeToString() == first.proto.SerializeToString()


@pytest.mark.parametrize("last", [False, True])
def test_interrupt_is_taken_between_steps_and_resumed(tmp_path, last):
    data = labelled()
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole = finetune(classifier(1), classifier(0), data, FAST, folders[0])
    asked = 0

    def press() -> bool:
        nonlocal asked
        asked += 1
        if asked == (whole.steps if last else 10):
            os.kill(os.getpid(), signal.SIGINT)
        return False

    with pytest.raises(KeyboardInterrupt):
        finetune(classifier(1), classifier(0), data, FAST, folders[1], None, press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = finetune(classifier(1), classifier(0), data, FAST, folders[1])
    assert [r.metric for r in rest.history] == [r.metric for r in whole.history]
    for name, value in weights_of(whole.proto).items():
        np.testing.assert_array_equal(weights_of(rest.proto)[name], value)


def test_progress_is_reported_and_grows(tmp_path):
    seen = []
    finetune(classifier(1), classifier(0), labelled(), FAST, tmp_path, seen.append)
    assert [p.epoch for p in seen][-1] == 4
    assert seen[-1].done == 1.0
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    data = labelled()
    finetune(classifier(1), classifier(0), data, FAST, tmp_path)
    with pytest.raises(RunError, match="another fine-tuning"):
        finetune(classifier(1), classifier(0), data, FAST.model_copy(update={"epochs": 9}), tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(RunError, match="cannot read the checkpoint"):
        finetune(classifier(1), classifier(0), data, FAST, tmp_path)


def test_batch_statistics_are_estimated_at_the_start(tmp_path):
    config = FAST.model_copy(update={"epochs": 0})
    result = finetune(classifier(1, norm=True), classifier(0), labelled(), config, tmp_path)
    assert result.steps == 0
    made, given = weights_of(result.proto), weights_of(classifier(1, norm=True))
    assert (np.abs(made["bn.mean"]) < 3).all()  # 5 was given
    np.testing.assert_array_equal(made["conv.w"], given["conv.w"])


def test_the_time_budget_ends_it(tmp_path):
    warm = tmp_path / "warm"  # torch's first steps take seconds
    warm.mkdir()
    finetune(classifier(1), classifier(0), labelled(), FAST, warm)
    config = FAST.model_copy(update={"epochs": None, "minutes": 1.5 / 60})
    result = finetune(classifier(1), classifier(0), labelled(), config, tmp_path)
    assert 1.5 <= result.seconds < 8
    assert result.steps > 5


def test_a_diverging_rate_is_cut(tmp_path):
    config = FAST.model_copy(update={"learning_rate": 1e18, "gradient_norm": None})
    with pytest.raises(Refused, match="not finite"):
        finetune(classifier(1), classifier(0), labelled(), config, tmp_path)


def test_ctrl_c_in_the_step_that_is_refused_is_not_lost(tmp_path):
    config = FAST.model_copy(update={"learning_rate": 1e18, "gradient_norm": None})
    asked, last = 0, -1

    def press() -> bool:
        nonlocal asked
        asked += 1
        if asked == last:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    for name in ("counted", "pressed"):
        (tmp_path / name).mkdir()
    with pytest.raises(Refused):
        finetune(classifier(1), classifier(0), labelled(), config, tmp_path / "counted", None, press)
    asked, last = 0, asked
    with pytest.raises(KeyboardInterrupt):
        finetune(classifier(1), classifier(0), labelled(), config, tmp_path / "pressed", None, press)


def test_features_are_compared(tmp_path):
    config = FAST.model_copy(update={"features": ("r",), "teacher_weight": 0.0, "label_weight": 0.0})
    result = finetune(classifier(1), classifier(0), labelled(), config, tmp_path)
    assert result.history[-1].loss < 0.7 * result.history[1].loss
    with pytest.raises(ConfigError, match="no tensor 'q'"):
        finetune(
            classifier(1), classifier(0), labelled(), config.model_copy(update={"features": ("q",)}), tmp_path
        )


def test_features_weigh_as_much_as_asked(tmp_path):
    losses = []
    for weight in (1.0, 3.0):
        config = FAST.model_copy(
            update={"epochs": 1, "learning_rate": 1e-9, "features": ("r",), "feature_weight": weight}
            | {"teacher_weight": 0.0, "label_weight": 0.0}
        )
        folder = tmp_path / str(weight)
        folder.mkdir()
        losses.append(finetune(classifier(1), classifier(0), labelled(), config, folder).history[1].loss)
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-4)


class Last:
    """A metric by which every epoch is better than the one before: the last one is kept."""

    def __init__(self) -> None:
        self.value = 0.0

    def __call__(self, outputs: np.ndarray, target: np.ndarray) -> float:
        self.value += 1.0
        return self.value


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_decay_and_biases_do_not(tmp_path, decay):
    """The student is the teacher: no gradient moves it."""
    config = FAST.model_copy(update={"epochs": 1, "batch_norm": False, "weight_decay": decay})
    model = classifier(0)
    bias = next(i for i in model.graph.initializer if i.name == "head.b")
    bias.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "head.b"))
    metric = Metric("last", True, False, 1.0, Last(), None)
    result = finetune(model, model, image_dataset(400, None), config, tmp_path, metric=metric)
    before, after = weights_of(model), weights_of(result.proto)
    left = {n: np.linalg.norm(after[n]) / np.linalg.norm(before[n]) for n in ("conv.w", "head.w", "head.b")}
    assert left["head.b"] == pytest.approx(1.0, abs=2e-3)
    for name in ("conv.w", "head.w"):
        assert (0.8 < left[name] < 0.99) if decay else left[name] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("wanted", [True, False])
def test_normalisation_is_put_in_only_where_asked(tmp_path, wanted):
    seen = set()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, arguments, output: seen.add(isinstance(module, BatchNorm))
    )
    try:
        config = FAST.model_copy(update={"epochs": 1, "batch_norm": wanted})
        finetune(classifier(1), classifier(0), labelled(), config, tmp_path)
    finally:
        hook.remove()
    assert (True in seen) is wanted


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(Refused, match="fixed"):
        finetune(classifier(1, batch=4), classifier(0), labelled(), FAST, tmp_path)
    unlabelled = image_dataset(50, None)
    with pytest.raises(DataError, match="needs labels"):
        config = FAST.model_copy(update={"label_weight": 0.5})
        finetune(classifier(1), classifier(0), unlabelled, config, tmp_path)
    for fields in ({"epochs": None}, {"teacher_weight": 0.0, "label_weight": 0.0}):
        with pytest.raises(ValidationError):
            FinetuneConfig(**fields)


def test_softmax_outputs_are_trained_before_the_softmax():
    assert heads_of(classifier(0, softmax=True), classes=False) == [Head("z", "scores", "Softmax")]
    assert heads_of(classifier(0), classes=True) == [Head("out", "scores")]
    assert heads_of(classifier(0), classes=False) == [Head("out", "values")]


def test_the_loss_is_the_weighted_sum():
    rng = np.random.default_rng(0)
    s, t, f, g = (torch.from_numpy(rng.normal(size=(8, 3))) for _ in range(4))
    labels = torch.from_numpy(rng.integers(0, 3, 8))
    loss = Loss([Head("z", "scores")], [Head("z", "scores")], 2.0, 0.7, 0.3, 0.5)
    p, q = torch.softmax(t / 2, 1), torch.softmax(s / 2, 1)
    expected = 0.7 * 4 * (p * (p / q).log()).sum(1).mean()
    expected += 0.3 * -torch.log_softmax(s, 1)[range(8), labels].mean()
    expected += 0.5 * (f - g).square().mean() / g.var(unbiased=False)
    assert float(loss([s, f], [t, g], labels)) == pytest.approx(float(expected), rel=1e-9)
    assert float(
        Loss([Head("z", "scores")], [Head("z", "scores")], 2.0, 1.0, 0.0, 0.0)([t], [t], None)
    ) == pytest.approx(0, abs=1e-12)


def test_probabilities_that_are_not_made_by_a_softmax_are_compared_as_probabilities():
    """A student whose last region was replaced may make its probabilities in another way than the original."""
    originals = heads_of(classifier(0, softmax=True), classes=True)
    heads = alike(heads_of(classifier(0), classes=True), originals)
    assert heads == [Head("out", "probabilities")]
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.normal(size=(8, 3)) * 3), torch.from_numpy(rng.integers(0, 3, 8))
    plain = Loss(originals, originals, 2.0, 1.0, 0.5, 0.0)
    mixed = Loss(heads, originals, 2.0, 1.0, 0.5, 0.0)
    found = float(mixed([torch.softmax(logits, 1)], [logits], labels))
    assert found == pytest.approx(float(plain([logits], [logits], labels)), rel=1e-9)
    assert alike(originals, originals) == originals


def test_the_rate_warms_up_and_falls_to_zero():
    config = FinetuneConfig(learning_rate=0.1, warmup_fraction=0.2)
    rates = [learning_rate(config, d) for d in np.linspace(0, 1, 11)]
    assert rates[2] == pytest.approx(0.1)
    assert rates[1] == pytest.approx(0.05)
    assert 0 < rates[0] < 0.01
    assert rates[6] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0)


def test_a_real_network_recovers_from_a_disturbed_branch(tmp_path, shared_models, shared_data):
    """MLPerf Tiny's keyword spotter with one convolution drawn anew, on 500 windows."""
    from opadapt.model.load import load
    from opadapt.train.data import DataConfig, load_data

    model: Model = load(shared_models / "mlperf_tiny_kws_dscnn.onnx")
    data = load_data(DataConfig(path=str(shared_data / "kws_500.npz")), model)
    broken = onnx.ModelProto()
    broken.CopyFrom(model.proto)
    target = [i for i in broken.graph.initializer if len(i.dims) == 4 and i.dims[2] == 1][1]
    value = numpy_helper.to_array(target)
    noise = np.random.default_rng(0).permutation(value.reshape(-1)).reshape(value.shape)
    target.CopyFrom(numpy_helper.from_array(noise, target.name))
    config = FinetuneConfig(epochs=4, batch=32, learning_rate=0.05, threads=1)
    result = finetune(broken, model.proto, data, config, tmp_path, metric=AGREEMENT)
    assert result.history[0].metric < 0.6
    assert result.metric > result.history[0].metric + 0.2

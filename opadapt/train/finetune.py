"""Fine-tuning of the whole assembled model, with the original as teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx

from opadapt.errors import ConfigError, DataError, Refused
from opadapt.train.checkpoint import load_checkpoint
from opadapt.train.data import Dataset
from opadapt.train.finetune_config import EpochRecord, FinetuneConfig, FinetuneProgress, FinetuneResult
from opadapt.train.interrupt import deferred_interrupt
from opadapt.train.metrics import Metric, MetricConfig, make_metric
from opadapt.train.signature import free_batch, inputs_of
from opadapt.train.speed import settings_put_back
from opadapt.train.trainer import Trainer

__all__ = ["EpochRecord", "FinetuneConfig", "FinetuneProgress", "FinetuneResult", "finetune"]


@settings_put_back()
def finetune(
    student: onnx.ModelProto,
    teacher: onnx.ModelProto,
    dataset: Dataset,
    config: FinetuneConfig,
    folder: Path,
    on_progress: Callable[[FinetuneProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    metric: Metric | None = None,
    seed: int = 0,
) -> FinetuneResult:
    """Train all weights of ``student`` towards ``teacher`` on the training split.

    Both see the same augmented batch; after ``teacher_epochs`` the student sees those batches' samples again, with what
    the teacher said about them. After each epoch the validation metric is computed (default: top1 with class labels,
    deviation otherwise), and a checkpoint written into ``folder``, which exists; a call with the same arguments goes
    on from it and reaches the same weights. Returned is the last epoch's model, unless that of the best epoch is
    better beyond noise. ``should_stop`` is asked between steps: then the best model so far is returned, and the
    checkpoint allows to go on. Ctrl-C is taken between steps: checkpoint, then KeyboardInterrupt.

    Raises Refused for an operator that cannot be trained, a fixed batch, or a loss that stays not finite;
    DataError or ConfigError for labels or features that do not fit; RunError for a folder that holds another
    training or cannot be written.
    """
    for name, proto in (("model", student), ("original", teacher)):
        if not free_batch(proto):
            raise Refused("finetune", f"the batch of the {name} is fixed; load it with batch N to train it")
    if list(inputs_of(student)) != list(inputs_of(teacher)):
        raise Refused("finetune", "the model and the original have different inputs")
    _check_features(config, student, teacher)
    weight = _label_weight(config, dataset)
    name = "top1" if dataset.label_kind == "classes" else "deviation"
    chosen = metric or make_metric(MetricConfig(name=name))
    mark = _fingerprint(student, teacher, dataset, config, chosen, seed)
    state = load_checkpoint(folder / "checkpoint.pt", mark)
    trainer = Trainer(student, teacher, dataset, config, chosen, weight, folder, mark, seed, state)
    with deferred_interrupt() as interrupted:
        trainer.run(on_progress or (lambda progress: None), should_stop or (lambda: False), interrupted)
    return trainer.result()


def _label_weight(config: FinetuneConfig, dataset: Dataset) -> float:
    if config.label_weight is None:
        return 0.1 if dataset.label_kind == "classes" else 0.0
    if config.label_weight and dataset.label_kind == "none":
        raise DataError("finetune.label_weight needs labels", expected="labels in the data", found="none")
    return config.label_weight


def _fingerprint(
    student: onnx.ModelProto,
    teacher: onnx.ModelProto,
    dataset: Dataset,
    config: FinetuneConfig,
    metric: Metric,
    seed: int,
) -> str:
    digest = hashlib.sha256()
    for proto in (student, teacher):
        digest.update(proto.SerializeToString(deterministic=True))
    sizes = (len(dataset.train), len(dataset.validation))
    for part in (config.model_dump_json(), dataset.preprocess, dataset.augment, sizes, metric.name, seed):
        digest.update(repr(part).encode())
    for array in dataset.train.inputs.values():  # a sample of it: the data may be large
        digest.update(array[:: max(1, len(array) // 64)].tobytes())
    return digest.hexdigest()


def _check_features(config: FinetuneConfig, student: onnx.ModelProto, teacher: onnx.ModelProto) -> None:
    """Raise ConfigError for a feature tensor that one of the models lacks."""
    for proto in (student, teacher):
        made = {name for node in proto.graph.node for name in node.output}
        if missing := [name for name in config.features or () if name not in made]:
            raise ConfigError(
                f"finetune.features: no tensor '{missing[0]}' in one of the models",
                expected="names of activations that both models have",
                found=", ".join(missing),
            )

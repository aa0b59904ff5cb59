"""Fine-tune an assembled model with the original as teacher, and judge it against the original."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from opadapt.errors import Refused, RunError, first_line
from opadapt.journal import content_key
from opadapt.measure.lock import measuring_lock
from opadapt.model.graph import Model
from opadapt.model.save import flush_denormals
from opadapt.report.data import TrainingPoint
from opadapt.steps.context import Context
from opadapt.train.accept import Verdict
from opadapt.train.accept import judge as accept
from opadapt.train.data import Dataset, Split
from opadapt.train.evaluate import predict
from opadapt.train.finetune import finetune
from opadapt.train.finetune_config import EpochRecord, FinetuneConfig, FinetuneProgress, FinetuneResult
from opadapt.train.metrics import Metric, make_metric
from opadapt.train.norms import with_biases
from opadapt.train.recorded import RECORD
from opadapt.train.speed import Execution

FEATURES = 9
RESERVED_MINUTES = 1.0  # of the budget, for export, measuring and the report


@dataclass(frozen=True)
class Share:
    """How much one fine-tuning may take: of the epochs and minutes that are set, and of what the budget leaves."""

    settings: float = 1.0
    left: float = 1.0

    def part(self, share: float) -> Share:
        """A share of this share."""
        return Share(self.settings * share, self.left * share)


WHOLE = Share()


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model, its validation metric (not in points), its training curve, and the way of execution that was
    fastest, as settings."""

    model: Model
    value: float
    history: tuple[EpochRecord, ...]
    execution: Mapping[str, Any] | None = None


def metric_of(context: Context) -> Metric:
    """The experiment's metric."""
    return make_metric(context.experiment.metric)


def weights(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Float initializers by name."""
    arrays = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    return {name: value for name, value in arrays.items() if value.dtype == np.float32}


def with_weights(model: Model, values: dict[str, NDArray[Any]]) -> Model:
    """The model with the float initializers of the same name and shape replaced."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for initializer in proto.graph.initializer:
        new = values.get(initializer.name)
        if new is not None and tuple(initializer.dims) == new.shape:
            initializer.CopyFrom(numpy_helper.from_array(new, initializer.name))
    return model.with_proto(proto)


def borders(original: Model, student: Model, replaced: Sequence[str]) -> tuple[str, ...]:
    """Outputs of replaced parts that both models have, at most FEATURES, evenly over the depth, the last included.

    Intermediate targets make up for few epochs (FitNets, arXiv 1412.6550).
    """
    heads = {o.name for o in original.proto.graph.output}
    common = {n for node in original.proto.graph.node for n in node.output} & set(replaced) - heads
    found = [n for node in student.proto.graph.node for n in node.output if n in common]
    count = min(FEATURES, len(found))
    return tuple(found[len(found) - 1 - (count - 1 - i) * len(found) // count] for i in range(count))


def prepared(context: Context, student: Model) -> Model:
    """The student as fine-tuning takes it: normalisations fold into biases, so every convolution has one."""
    if not context.experiment.finetune.batch_norm:
        return student
    return student.with_proto(with_biases(student.proto))


def tune(
    context: Context,
    dataset: Dataset,
    student: Model,
    tag: str,
    replaced: Sequence[str] = (),
    share: Share = WHOLE,
    found: Mapping[str, Any] | None = None,
) -> Tuned:
    """Whole-model distillation; finished ones are read from the journal, begun ones go on from their checkpoint.

    ``student``: as ``prepared`` gives it. ``replaced``: the outputs of the replaced regions. ``found``: settings that
    were found before: the way that was fastest, which spares the trial, and the rate. Raises Refused where it cannot be
    trained; that is read from the journal, too.
    """
    config = _within_budget(context, tag, share)
    config = config.model_copy(update=dict(found or {}))
    if config.features is None:
        config = config.model_copy(update={"features": borders(context.original, student, replaced)})
    digest = hashlib.sha256(student.proto.SerializeToString(deterministic=True)).hexdigest()
    key = content_key("finetune-2", digest, config.model_dump(), context.experiment.seed)
    folder = context.folder / "training" / f"{tag}-{digest[:8]}"
    row = context.journal.find("finetune", key)
    if row is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {folder}", found=first_line(error)) from error
        context.journal.start("finetune", key)
        began = time.monotonic()
        try:
            result = _train(context, dataset, student, config, folder, tag)
        except Refused as refused:
            row, seconds = {"stage": refused.stage, "refused": refused.reason}, time.monotonic() - began
        else:
            row, seconds = _row(context, result), result.seconds  # those before a kill, too
        context.journal.finish("finetune", key, row, seconds)
        (folder / RECORD).unlink(missing_ok=True)
    if "refused" in row:
        raise Refused(row["stage"], row["refused"])
    model = with_weights(student, context.journal.load_arrays(row["weights"]))
    history = tuple(
        EpochRecord(**r | {"loss": float("nan") if r["loss"] is None else r["loss"]}) for r in row["history"]
    )
    value = float("nan") if row["metric"] is None else row["metric"]
    return Tuned(flush_denormals(model), value, history, row.get("execution"))


def _row(context: Context, result: FinetuneResult) -> dict[str, Any]:
    return {
        "weights": context.journal.save_arrays(weights(result.proto)),
        "history": [vars(record) | {"loss": _number(record.loss)} for record in result.history],
        "chosen_epoch": result.chosen_epoch,
        "metric": _number(result.metric),
        "execution": _settings(result.execution),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _within_budget(context: Context, tag: str, share: Share) -> FinetuneConfig:
    """The settings cut to a share, and their minutes to what the budget leaves; decided once, so that a
    resumed run trains the same."""
    config = _part(context.experiment.finetune, share.settings)
    left = context.left_minutes()
    if left is None:
        return config
    row = context.journal.once(
        "plan", tag, lambda: {"minutes": max(left - RESERVED_MINUTES, 1.0) * share.left}
    )
    limits = [m for m in (config.minutes, row["minutes"]) if m is not None]
    return config.model_copy(update={"minutes": min(limits)})


def _part(config: FinetuneConfig, part: float) -> FinetuneConfig:
    """The settings with a part of their minutes and of their epochs, those with the teacher among them: one at least,
    rounded down, so that equal parts together have no more than all."""
    part_up = part + 1e-9  # three times a third is one
    epochs, taught = (n and max(1, math.floor(n * part_up)) for n in (config.epochs, config.teacher_epochs))
    minutes = config.minutes and config.minutes * part
    return config.model_copy(update={"epochs": epochs, "teacher_epochs": taught, "minutes": minutes})


def _settings(execution: Execution) -> dict[str, Any]:
    """The settings of a fine-tuning that goes this way without a trial."""
    return {
        "threads": execution.threads * execution.replicas,
        "replicas": execution.replicas,
        "layout": "channels_last" if execution.channels_last else "contiguous",
        "precision": "bfloat16" if execution.bfloat16 else "float32",
    }


def _train(
    context: Context, dataset: Dataset, student: Model, config: FinetuneConfig, folder: Path, tag: str
) -> FinetuneResult:
    metric = metric_of(context)
    context.progress.stage(f"try out threads and layouts to fine-tune with ({tag})")
    chunk, begun = contextlib.ExitStack(), False

    def show(progress: FinetuneProgress) -> None:
        nonlocal begun
        if not begun:
            context.progress.stage(f"fine-tune ({tag})", 1000)
            begun = True
        context.journal.alive()
        # between two chunks whoever wants to measure on this machine goes first
        chunk.close()
        chunk.enter_context(measuring_lock().busy())
        last = progress.history[-1] if progress.history else None
        measured = "" if last is None else f", {metric.name} {metric.in_points(last.metric):.2f}"
        context.progress.advance(
            int(1000 * min(progress.done, 1.0)), f"epoch {progress.epoch}, loss {progress.loss:.4f}{measured}"
        )

    with chunk:
        chunk.enter_context(measuring_lock().busy())
        return finetune(
            student.proto,
            context.original.proto,
            dataset,
            config,
            folder,
            show,
            metric=metric,
            seed=context.seed("finetune", tag),
        )


def compare(context: Context, dataset: Dataset, model: Model, split: Split, name: str) -> Verdict:
    """``judged``, through the journal."""
    settings = context.experiment
    parts = (name, settings.tolerance.model_dump(), settings.metric.model_dump(), settings.seed)
    key = content_key(model.digest, *parts)
    # Python's JSON keeps every float as it is, NaN included
    row = context.journal.once("verdict", key, lambda: vars(judged(context, dataset, model, split, name)))
    return Verdict(**row)


def judged(context: Context, dataset: Dataset, model: Model, split: Split, name: str) -> Verdict:
    """The model against the original on one split (paired bootstrap); on validation data that the original was
    trained on, against the reference that the tolerance names."""
    tolerance = context.experiment.tolerance
    with measuring_lock().busy():
        if name not in context.original_outputs:
            context.original_outputs[name] = predict(context.original.proto, split, dataset.preprocess)
        outputs = predict(model.proto, split, dataset.preprocess)
    return accept(
        metric_of(context),
        outputs,
        context.original_outputs[name],
        split.labels,
        tolerance,
        context.rng("bootstrap", name),
        tolerance.reference_points if name == "validation" else None,
        split.groups if several_groups(split) else None,
    )


def several_groups(split: Split) -> bool:
    """Whether an interval can be had from groups: from one alone nothing is known about others."""
    return split.groups is not None and len(np.unique(split.groups)) > 1


def points(tuned: Tuned, attempt: int, metric: Metric) -> list[TrainingPoint]:
    """The training curve for the report."""
    return [
        TrainingPoint(
            attempt=attempt,
            epoch=float(r.epoch),
            loss=r.loss,
            metric=metric.in_points(r.metric) if np.isfinite(r.metric) else None,
        )
        for r in tuned.history
        if np.isfinite(r.loss)
    ]

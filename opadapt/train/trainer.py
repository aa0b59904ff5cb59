"""The fine-tuning loop. Everything random is a function of the seed and the step, so a resumed run repeats itself."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from opadapt.errors import DataError, Refused
from opadapt.torchgraph import build, parameter_names, statistics_names, write_back
from opadapt.train.batches import Batch, Batches
from opadapt.train.capture import with_outputs
from opadapt.train.checkpoint import save_checkpoint
from opadapt.train.choice import Choice
from opadapt.train.data import Dataset
from opadapt.train.finetune_config import (
    EpochRecord,
    FinetuneConfig,
    FinetuneProgress,
    FinetuneResult,
    learning_rate,
)
from opadapt.train.loss import Loss, alike, heads_of
from opadapt.train.metrics import Metric
from opadapt.train.norms import calibrate, folded, with_norms
from opadapt.train.recorded import RECORD, Recorded, fits
from opadapt.train.replicas import Replicas
from opadapt.train.signature import float_outputs, inputs_of, output_of
from opadapt.train.speed import LEAST_PART, Execution, candidates
from opadapt.train.statistics import estimate_statistics
from opadapt.train.teacher import Teacher
from opadapt.train.trial import fastest_step

_REPORT_EVERY_S = 1.0
_SAVE_EVERY_S = 60.0
_STATISTICS_BATCHES = 16
_LAST_STATISTICS_BATCHES = 64
_RATE_CUTS = 4  # how often a diverged epoch is repeated at a quarter of the rate


class Trainer:
    """One fine-tuning, fresh or from a checkpoint's state."""

    def __init__(
        self,
        student: onnx.ModelProto,
        teacher: onnx.ModelProto,
        dataset: Dataset,
        config: FinetuneConfig,
        metric: Metric,
        label_weight: float,
        folder: Path,
        fingerprint: str,
        seed: int,
        state: dict[str, Any] | None,
    ) -> None:
        self.proto, self.original, self.data, self.config = student, teacher, dataset, config
        self.choice = Choice(metric, teacher, dataset, folder)
        self.folder, self.fingerprint, self.seed = folder, fingerprint, seed
        self.names = list(inputs_of(student))
        originals = heads_of(teacher, dataset.label_kind == "classes")
        heads = alike(heads_of(student, dataset.label_kind == "classes"), originals)
        self.loss = Loss(
            heads, originals, config.temperature, config.teacher_weight, label_weight, config.feature_weight
        )
        self.batch = min(config.batch, len(dataset.train))
        # by itself the trial cuts a batch into parts that are large enough only
        fair = self.batch // (config.replicas or 1) >= LEAST_PART
        self._shapes = [output_of(teacher, name).shape for name in float_outputs(teacher)]
        views = self._views()
        self.batches = Batches(dataset, self.names, self.batch, views, seed)
        self.steps_per_epoch = self.batches.per_epoch
        self.normed, self.norms = (
            with_norms(student, self._sizes()) if config.batch_norm and fair else (student, [])
        )
        features = config.features or ()
        self.student = build(with_outputs(self.normed, [*(h.tensor for h in heads), *features]))
        self.teacher = Teacher(teacher, [*(h.tensor for h in originals), *features])
        if not parameter_names(self.student):
            raise Refused("finetune", "the model has no weights to train")
        self.recorded: Recorded | None = None
        self.step, self.elapsed_s, self.rate_cuts, self.loss_sum = 0, 0.0, 0, 0.0
        self.started = time.perf_counter()
        self.history: list[EpochRecord] = []
        self._check_labels()
        if state is None:
            self._begin()
        else:
            self._restore(state)
        if views is not None:
            self.recorded = Recorded(folder / RECORD, views, len(dataset.train), self._shapes)

    def _sizes(self) -> dict[str, float]:
        """The root mean squares of the inputs, over a batch."""
        pairs = zip(self.names, self.batches(0).inputs, strict=True)
        return {name: float(x.double().square().mean().sqrt()) for name, x in pairs if x.is_floating_point()}

    def _views(self) -> int | None:
        """Views of each sample, where the teacher's outputs for them are recorded; None where it always runs."""
        epochs, total = self.config.teacher_epochs, self.config.epochs
        # without the outputs features alone teach, and those are not recorded
        worth = epochs is not None and self.config.teacher_weight > 0 and (total is None or total > epochs)
        return epochs if worth and fits(epochs or 0, len(self.data.train), self._shapes) else None

    def _check_labels(self) -> None:
        labels = self.data.train.labels
        if self.loss.label_weight and self.loss.heads[0].form == "values":
            shape = tuple(self._forward(self.student, self.batches(0, 1).inputs)[0].shape[1:])
            if labels is None or math.prod(shape) != math.prod(labels.shape[1:]):
                raise DataError(
                    "finetune.label_weight: the labels do not have the form of the output",
                    expected="x".join(map(str, shape)),
                    found="none" if labels is None else "x".join(map(str, labels.shape[1:])) or "one number",
                    do="set finetune.label_weight to 0: the teacher's outputs teach alone",
                )

    def _begin(self) -> None:
        config = self.config
        options = candidates(config.precision, config.threads, config.layout, config.replicas, self.batch)
        self.execution = fastest_step(
            options,
            self.student,
            Teacher(self.original, self.teacher.tensors),
            self._loss,
            lambda: self.batches(0),
            math.inf if config.epochs is None else config.epochs * self.steps_per_epoch,
        )
        self.execution.apply(self.student)
        self.teacher.apply(self.execution)
        batches = range(min(_STATISTICS_BATCHES, self.steps_per_epoch))
        calibrate(self.student, self.norms, batches, self._try)
        if set(statistics_names(self.student)) - {
            n for norm in self.norms for n in (norm.mean, norm.variance)
        }:
            estimate_statistics(self.student, batches, self._try)
        self.optimizer = self._make_optimizer()
        self.average = self._weights() if self.config.ema_decay else None
        self._close_epoch(float("nan"))

    def _restore(self, state: dict[str, Any]) -> None:
        self.execution = Execution(**state["execution"])
        self.execution.apply(self.student)
        self.teacher.apply(self.execution)
        self.optimizer = self._make_optimizer()
        self._go_to(state["now"])
        self.safe = copy.deepcopy(state["safe"] or state["now"])
        self.elapsed_s, self.rate_cuts = state["elapsed_s"], state["rate_cuts"]
        self.started = time.perf_counter() - self.elapsed_s
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.choice.epoch, self.choice.value = state["chosen"]

    def _make_optimizer(self) -> torch.optim.Optimizer:
        weights = list(self.student.parameters())
        groups = [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": self.config.weight_decay},
            {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        if self.config.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.config.learning_rate)
        return torch.optim.SGD(groups, lr=self.config.learning_rate, momentum=0.9, nesterov=True)

    def _forward(self, module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Heads, then features, float32."""
        result = module(*inputs)
        return [t.float() for t in (result if isinstance(result, tuple) else (result,))]

    def _try(self, step: int) -> object:
        """The student on the inputs of one step."""
        return self._forward(self.student, [self.execution.layout(x) for x in self.batches(step).inputs])

    def _loss(
        self,
        execution: Execution,
        teacher: Teacher,
        module: nn.Module,
        batch: Batch,
    ) -> Tensor:
        wanted = self._wanted(teacher, batch)
        labels = None if batch.labels is None else batch.labels.to(execution.device)
        with execution.autocast():
            made = self._forward(module, [execution.layout(x) for x in batch.inputs])
        return self.loss(made[: len(wanted)], wanted, labels)

    def _wanted(self, teacher: Teacher, batch: Batch) -> list[Tensor]:
        """The teacher's heads, and its features while it runs."""
        if self.recorded is None:
            return teacher(batch.inputs)
        runs = self.step // self.steps_per_epoch < (self.batches.views or 0)
        wanted = self.recorded.teach(teacher, batch, runs)
        return [y.to(self.execution.device) for y in wanted]

    # The loop

    def run(
        self,
        on_progress: Callable[[FinetuneProgress], None],
        should_stop: Callable[[], bool],
        interrupted: Callable[[], bool],
    ) -> None:
        """Train until the budget is used up or somebody stops it; a checkpoint is written either way."""
        with Replicas(self.student, self.execution) as replicas:
            self._steps(replicas, on_progress, should_stop, interrupted)
        # the minutes ran out inside an epoch, which no call before this one has closed
        if self._done() >= 1.0 and self.history[-1].epoch < self._epoch():
            self._close_epoch(self.loss_sum / (self.step % self.steps_per_epoch))
        else:
            self._save()

    def _steps(
        self,
        replicas: Replicas,
        on_progress: Callable[[FinetuneProgress], None],
        should_stop: Callable[[], bool],
        interrupted: Callable[[], bool],
    ) -> None:
        reported = saved = self.elapsed_s
        while self._done() < 1.0:
            if interrupted():
                self._save()
                raise KeyboardInterrupt
            if should_stop():
                break
            loss = self._train_step(replicas)
            self.elapsed_s = time.perf_counter() - self.started
            if not math.isfinite(loss):
                self._cut_rate()
            elif self.step % self.steps_per_epoch == 0:
                self._close_epoch(self.loss_sum / self.steps_per_epoch)
                on_progress(self._progress(loss))
            elif self.elapsed_s - reported >= _REPORT_EVERY_S:
                on_progress(self._progress(loss))
                reported = self.elapsed_s
                if self.elapsed_s - saved >= _SAVE_EVERY_S:
                    self._save()
                    saved = self.elapsed_s

    def _train_step(self, replicas: Replicas) -> float:
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = partial(self._loss, self.execution, self.teacher)
        value = replicas.backward(loss, self.batches(self.step))
        limit = self.config.gradient_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.student.parameters(), limit))
        if not math.isfinite(value) or not math.isfinite(norm):
            return float("nan")
        self.optimizer.step()
        self.step += 1
        self.loss_sum += value
        self._update_average()
        return value

    def _done(self) -> float:
        """The share of the budget used up."""
        config = self.config
        shares = [0.0]
        if config.epochs is not None:
            total = config.epochs * self.steps_per_epoch
            shares.append(self.step / total if total else 1.0)
        if config.minutes is not None:
            shares.append(self.elapsed_s / (60 * config.minutes))
        return max(shares)

    def _rate(self) -> float:
        return learning_rate(self.config, self._done()) * 0.25**self.rate_cuts

    def _cut_rate(self) -> None:
        """After a step that was not finite: back to the start of the epoch, at a quarter of the rate."""
        if self.rate_cuts == _RATE_CUTS:
            raise Refused("finetune", f"the loss is not finite even at a rate of {self._rate():.2g}")
        self._go_to(self.safe)
        self.rate_cuts += 1

    def _update_average(self) -> None:
        if self.average is None or self.config.ema_decay is None:
            return
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.student.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)

    # Epochs and checkpoints

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    def _current(self) -> onnx.ModelProto:
        own = self._weights() if self.average is not None else None
        if self.average is not None:
            self.student.load_state_dict(self.average)
        if self._done() >= 1.0:
            # what accumulated while training is of the last few batches: too few for an export
            steps = range(self.step, self.step + _LAST_STATISTICS_BATCHES)
            estimate_statistics(self.student, steps, self._try)
        now = folded(write_back(self.student, self.normed), self.norms, self.proto)
        if own is not None:
            self.student.load_state_dict(own)
        return now

    def _close_epoch(self, loss: float) -> None:
        """Measure, keep the better model and write a checkpoint."""
        threads = self.execution.threads * self.execution.replicas
        value = self.choice.offer(self._current(), self._epoch(), threads, last=self._done() >= 1.0)
        self.loss_sum = 0.0
        self.elapsed_s = time.perf_counter() - self.started
        self.history.append(EpochRecord(self._epoch(), loss, value, self._rate(), self.elapsed_s))
        self.safe = copy.deepcopy(self._now())
        self._save()

    def _epoch(self) -> int:
        """Epochs begun."""
        return -(-self.step // self.steps_per_epoch)

    def _now(self) -> dict[str, Any]:
        """What a step changes."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "loss_sum": self.loss_sum,
        }

    def _go_to(self, state: dict[str, Any]) -> None:
        """Go on from what ``_now`` gave, which stays as it is."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        average, device = state["average"], self.execution.device
        self.average = None if average is None else {n: v.to(device, copy=True) for n, v in average.items()}
        self.step, self.loss_sum = state["step"], state["loss_sum"]

    def _save(self) -> None:
        """Write a checkpoint; inside an epoch with its start, where a step that is not finite leads back to."""
        state = {
            "now": self._now(),
            "safe": None if self.step == self.safe["step"] else self.safe,
            "elapsed_s": self.elapsed_s,
            "rate_cuts": self.rate_cuts,
            "history": [asdict(record) for record in self.history],
            "chosen": (self.choice.epoch, self.choice.value),
            "execution": self.execution.as_dict(),
            "fingerprint": self.fingerprint,
        }
        save_checkpoint(self.folder / "checkpoint.pt", state)

    def _progress(self, loss: float) -> FinetuneProgress:
        epoch = self.step // self.steps_per_epoch
        history = tuple(self.history)
        return FinetuneProgress(epoch, self.step, loss, self._rate(), self._done(), self.elapsed_s, history)

    def result(self) -> FinetuneResult:
        chosen = self.choice
        assert chosen.epoch is not None  # epoch 0 is always offered
        epochs = self.step // self.steps_per_epoch
        history = tuple(self.history)
        return FinetuneResult(
            chosen.proto(),
            history,
            chosen.epoch,
            chosen.value,
            epochs,
            self.step,
            self.elapsed_s,
            self.execution,
        )

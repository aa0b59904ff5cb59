"""What fine-tuning is asked to do, and what it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import onnx
from pydantic import BaseModel, ConfigDict, Field, model_validator

from opadapt.train.speed import LEAST_PART, Execution, Layout, Precision


class FinetuneConfig(BaseModel):
    """How the whole model is fine-tuned. The first budget that is used up ends it; the schedule fits the budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int | None = Field(10, ge=0, description="passes over the training data")
    minutes: float | None = Field(None, gt=0, description="wall time, evaluation included")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd: Nesterov momentum 0.9")
    learning_rate: float = Field(0.05, gt=0, description="largest rate, reached after the warm-up")
    warmup_fraction: float = Field(0.03, ge=0, lt=1, description="share of the budget with a rising rate")
    weight_decay: float = Field(1e-4, ge=0, description="of weights with two axes or more")
    batch: int = Field(128, ge=1, description="samples per step")
    temperature: float = Field(4.0, gt=0, description="of the teacher's class scores")
    teacher_weight: float = Field(1.0, ge=0, description="of the distance to the teacher's outputs")
    label_weight: float | None = Field(
        None, ge=0, description="of the loss against the labels; default: 0.1 for class labels, 0 otherwise"
    )
    feature_weight: float = Field(1.0, ge=0, description="of the distance between features, each")
    features: tuple[str, ...] | None = Field(
        None, description="tensors of both models that are kept alike; default: outputs of replaced parts"
    )
    teacher_epochs: int | None = Field(
        None,
        ge=1,
        description="epochs in which the original runs beside the student; those after them show the same augmented "
        "samples again, in another order, with its recorded outputs and without features. null: it always runs, as it "
        "does where its outputs are no target or are too large to be recorded",
    )
    batch_norm: bool = Field(
        True,
        description="normalise the outputs of convolutions while training (folded into them afterwards): bears larger "
        f"learning rates. Not done where a replica's part of the batch has fewer than {LEAST_PART} samples: too few "
        "for statistics",
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="average the weights, and keep the average")
    gradient_norm: float | None = Field(1.0, gt=0, description="largest norm of a step's gradient; null: any")
    precision: Precision = Field(
        "auto", description="auto: bfloat16 where the hardware has it and a short trial finds it faster"
    )
    layout: Layout = Field(
        "auto",
        description="memory layout of images; auto: by a short trial. With precision, threads and layout all fixed "
        "the same seed trains the same weights to the bit",
    )
    threads: int | None = Field(None, ge=1, description="default: all cores or one, by a short trial")
    replicas: int | None = Field(
        None,
        ge=1,
        description="parts that a batch is cut into, computed side by side on a CPU; default: by a short trial, 1 "
        "where threads are given",
    )

    @model_validator(mode="after")
    def _some_budget(self) -> Self:
        if self.epochs is None and self.minutes is None:
            raise ValueError("give epochs, minutes or both")
        if not (self.teacher_weight or self.label_weight or (self.features and self.feature_weight)):
            raise ValueError("teacher_weight, label_weight and features are all 0: nothing to learn")
        return self


@dataclass(frozen=True)
class EpochRecord:
    """The state after an epoch (0: before the first). ``loss`` is the epoch's mean, NaN for epoch 0."""

    epoch: int
    loss: float
    metric: float
    learning_rate: float
    elapsed_s: float


@dataclass(frozen=True)
class FinetuneProgress:
    """Where fine-tuning stands; ``done`` is the share of the budget used up."""

    epoch: int
    step: int
    loss: float
    learning_rate: float
    done: float
    elapsed_s: float
    history: tuple[EpochRecord, ...]


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """The model of the ``chosen_epoch`` with its validation metric (not in points), and how it came about."""

    proto: onnx.ModelProto
    history: tuple[EpochRecord, ...]
    chosen_epoch: int
    metric: float
    epochs: int
    steps: int
    seconds: float
    execution: Execution


def learning_rate(config: FinetuneConfig, done: float) -> float:
    """Linear warm-up, then half a cosine to 0 (arXiv 1608.03983), at a share ``done`` of the budget."""
    if done < config.warmup_fraction:
        # The first step moves already: a rate of exactly 0 would waste it.
        return config.learning_rate * max(done / config.warmup_fraction, 0.01)
    rest = (done - config.warmup_fraction) / (1 - config.warmup_fraction)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))

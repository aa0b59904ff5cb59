"""Quality of a model's outputs: torchmetrics where it has the metric, agreement with the original, entry points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from opadapt.errors import ConfigError, DataError
from opadapt.train.entry import is_entry_point, load_entry_point

Array = NDArray[Any]
# (outputs, labels) or, where labels are not needed, (outputs, the original's outputs) -> value, or one per sample
Score = Callable[[Array, Array], Any]


class BinsConfig(BaseModel):
    """Outputs are scores of bins of a value: the highest bin k is read as first + k * step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: float = Field(description="value of bin 0, in the unit of the labels")
    step: float = Field(description="difference between neighbouring bins, in the unit of the labels")


class MetricConfig(BaseModel):
    """Which number says how good a model is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        "top1",
        description="top1, topk, f1 (macro), mae, mse; without labels: agreement (same class as the original), "
        "deviation (NMSE against the original); or an entry point function(outputs, labels) -> number or one per "
        "sample",
    )
    k: int = Field(5, ge=1, description="of topk")
    bins: BinsConfig | None = Field(None, description="of mae and mse: read the output as scores of bins")
    higher_is_better: bool = Field(True, description="of an entry point")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in ROWS and not is_entry_point(self.name):
            raise ValueError(f"name must be one of {', '.join(ROWS)}, or module:function")
        return self


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric ready to use.

    ``points`` turns its value into the unit of tolerances and reports: 100 for accuracies (percentage
    points), 1 for errors. ``per_sample`` gives one score a sample whose mean is the value, where the metric
    has that form.
    """

    name: str
    higher_is_better: bool
    needs_labels: bool
    points: float
    score: Score
    per_sample: Callable[[Array, Array], NDArray[np.float64]] | None

    def target(self, labels: Array | None, original: Array) -> Array:
        """What outputs are compared with: labels, or the original model's outputs. Raises DataError."""
        if not self.needs_labels:
            return original
        if labels is None:
            raise DataError(
                f"metric {self.name} needs labels",
                expected="labels in the data",
                found="none",
                do="set metric.name to agreement or deviation, or add labels",
            )
        return labels

    def __call__(self, outputs: Array, target: Array) -> float:
        """The value (not in points). Raises DataError where outputs and target do not go together."""
        if len(outputs) != len(target):
            raise DataError(
                f"metric {self.name}: counts differ",
                expected=f"{len(target)} rows of output, one per sample",
                found=str(len(outputs)),
            )
        return float(self.score(outputs, target))

    def in_points(self, value: float) -> float:
        return value * self.points


def make_metric(config: MetricConfig) -> Metric:
    """The metric of a config. Raises ConfigError for an entry point that cannot be imported."""
    if config.name in ROWS:
        return ROWS[config.name](config)
    function = load_entry_point(config.name)

    def score(outputs: Array, target: Array) -> float:
        return float(np.mean(_entry_value(config.name, function, outputs, target)))

    return Metric(config.name, config.higher_is_better, True, 1.0, score, _entry_per_sample(config, function))


def _entry_value(name: str, function: Callable[..., Any], outputs: Array, target: Array) -> Array:
    value = np.asarray(function(outputs, target), dtype=np.float64)
    if value.size not in (1, len(outputs)) or not np.isfinite(value).all():
        raise ConfigError(
            f"metric {name} returned something else",
            expected="one finite number, or one per sample",
            found=f"shape {value.shape}",
        )
    return value


def _entry_per_sample(
    config: MetricConfig, function: Callable[..., Any]
) -> Callable[[Array, Array], NDArray[np.float64]]:
    def per_sample(outputs: Array, target: Array) -> NDArray[np.float64]:
        return _entry_value(config.name, function, outputs, target).reshape(-1)

    return per_sample


def _tensors(outputs: Array, target: Array) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.ascontiguousarray(outputs)), torch.from_numpy(np.ascontiguousarray(target))


def _classes(outputs: Array) -> int:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise DataError(
            "the metric needs class scores",
            expected="outputs [samples, classes]",
            found=str(outputs.shape),
            do="choose mae, mse, deviation or an entry point in metric.name",
        )
    return int(outputs.shape[1])


def _classified(outputs: Array, target: Array) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores, class numbers and how many classes there are. Raises DataError for labels that are values."""
    classes = _classes(outputs)
    if target.ndim != 1 or target.dtype.kind not in "iu":
        raise DataError(
            "the metric needs class numbers as labels",
            expected="one integer per sample",
            found=f"{target.dtype} [{', '.join(('samples', *map(str, target.shape[1:])))}]",
            do=_remedy(target),
        )
    x, y = _tensors(outputs, target)
    return x, y, classes


def _remedy(labels: Array) -> str:
    """What to do with labels that are no class numbers."""
    if labels.ndim == 1 and np.array_equal(labels, np.rint(labels)):
        return "set data.label_kind: classes, if these whole numbers are classes"
    other = "for other labels choose mae, mse, deviation or an entry point in metric.name"
    return other if labels.ndim == 1 else f"give one class number per sample; {other}"


def _accuracy(k: int) -> Score:
    def score(outputs: Array, target: Array) -> Any:
        x, y, classes = _classified(outputs, target)
        if k > classes:
            raise ConfigError("metric.k is too large", expected=f"at most {classes}", found=str(k))
        return multiclass_accuracy(x, y, num_classes=classes, top_k=k, average="micro")

    return score


def _in_top(k: int) -> Callable[[Array, Array], NDArray[np.float64]]:
    def per_sample(outputs: Array, target: Array) -> NDArray[np.float64]:
        if k == 1:
            return np.asarray(outputs.argmax(axis=1) == target, np.float64)
        x, y = _tensors(outputs, target)
        return np.asarray((x.topk(k, dim=1).indices == y[:, None]).any(dim=1).numpy(), np.float64)

    return per_sample


def _f1(outputs: Array, target: Array) -> Any:
    x, y, classes = _classified(outputs, target)
    return multiclass_f1_score(x, y, num_classes=classes, average="macro")


def _error(
    config: MetricConfig, function: Callable[..., Any], per_sample: Callable[[Array], Array]
) -> Metric:
    def read(outputs: Array, target: Array) -> tuple[Array, Array]:
        if config.bins is not None:
            _classes(outputs)
            outputs = (config.bins.first + config.bins.step * outputs.argmax(axis=1)).astype(np.float32)
        if outputs.size != target.size:
            raise DataError(
                f"metric {config.name}: outputs and labels have different shapes",
                expected=str(target.shape),
                found=str(outputs.shape),
                do="set metric.bins, or use an entry point",
            )
        return outputs.reshape(target.shape), target

    def score(outputs: Array, target: Array) -> Any:
        x, y = _tensors(*read(outputs, target.astype(np.float32)))
        return function(x, y)

    def samples(outputs: Array, target: Array) -> NDArray[np.float64]:
        x, y = read(outputs, target)
        errors = per_sample(x.astype(np.float64) - y)
        return np.asarray(errors.reshape(len(y), -1).mean(axis=1))

    return Metric(config.name, False, True, 1.0, score, samples)


def _agreement(outputs: Array, original: Array) -> NDArray[np.float64]:
    if outputs.shape[-1] < 2:
        raise DataError(
            "agreement needs class scores", expected="two classes at least", found=str(outputs.shape),
            do="set metric.name to deviation",
        )  # fmt: skip
    same = outputs.argmax(axis=-1) == original.argmax(axis=-1)
    return np.asarray(same.reshape(len(same), -1).mean(axis=1))


def _deviation(outputs: Array, original: Array) -> NDArray[np.float64]:
    spread = max(float(np.var(original.astype(np.float64))), 1e-12)
    squared = (outputs.astype(np.float64) - original) ** 2
    return np.asarray(squared.reshape(len(squared), -1).mean(axis=1) / spread)


def _mean(per_sample: Callable[[Array, Array], NDArray[np.float64]]) -> Score:
    return lambda outputs, target: per_sample(outputs, target).mean()


ROWS: Mapping[str, Callable[[MetricConfig], Metric]] = MappingProxyType(
    {
        "top1": lambda c: Metric("top1", True, True, 100.0, _accuracy(1), _in_top(1)),
        "topk": lambda c: Metric(f"top{c.k}", True, True, 100.0, _accuracy(c.k), _in_top(c.k)),
        "f1": lambda c: Metric("f1", True, True, 100.0, _f1, None),
        "mae": lambda c: _error(c, mean_absolute_error, np.abs),
        "mse": lambda c: _error(c, mean_squared_error, np.square),
        "agreement": lambda c: Metric("agreement", True, False, 100.0, _mean(_agreement), _agreement),
        "deviation": lambda c: Metric("deviation", False, False, 1.0, _mean(_deviation), _deviation),
    }
)

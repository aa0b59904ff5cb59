"""Is a candidate within tolerance of the original? A paired bootstrap, so that equal errors cancel.

Paired percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13. Samples
of one group, such as a subject, depend on each other: whole groups are drawn then (Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from opadapt.train.metrics import Metric

_CHUNK_ELEMENTS = 2_000_000  # resampled scores held at once
_SLACK = 1e-6  # metrics are float32: a loss equal to the tolerance must not be refused for its rounding


class Tolerance(BaseModel):
    """How much worse than the original a model may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: float | None = Field(
        None, ge=0, description="allowed loss in points of the metric (percentage points for accuracies)"
    )
    relative_percent: float | None = Field(
        None,
        ge=0,
        description="allowed loss in percent of the original's value; with points, the smaller counts",
    )
    reference_points: float | None = Field(
        None,
        description="the original's metric on data it was not trained on (its model card says it), in points; "
        "needed where the validation data was part of its training data, which it knows by heart: the loss is then "
        "counted from here, not from the original's value on the validation data",
    )
    decide_on: Literal["estimate", "interval"] = Field(
        "estimate",
        description="the measured loss, or the upper end of its interval, must be within tolerance",
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="of the interval")
    resamples: int = Field(2000, ge=100, description="of the paired bootstrap")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.points is None and self.relative_percent is None:
            raise ValueError("give points, relative_percent or both")
        return self

    def allowed(self, original_points: float) -> float:
        """The allowed loss in points."""
        limits = [] if self.points is None else [self.points]
        if self.relative_percent is not None:
            limits.append(abs(original_points) * self.relative_percent / 100)
        return min(limits)


@dataclass(frozen=True)
class Verdict:
    """Accepted or not, and why. All numbers in points; a positive loss means worse than the original."""

    accepted: bool
    reason: str
    metric: str
    higher_is_better: bool
    original: float
    candidate: float
    loss: float
    low: float
    high: float
    allowed: float


def judge(
    metric: Metric,
    candidate: NDArray[Any],
    original: NDArray[Any],
    labels: NDArray[Any] | None,
    tolerance: Tolerance,
    rng: np.random.Generator,
    reference_points: float | None = None,
    groups: NDArray[Any] | None = None,
) -> Verdict:
    """Compare the outputs of two models on the same samples.

    ``candidate`` and ``original`` are outputs [samples, ...]; ``groups``: the group of each sample, where they do not
    stand each for itself. With ``reference_points`` the loss is counted from
    there, and its interval is that of the candidate alone. Raises DataError where the metric cannot be
    computed.
    """
    target = metric.target(labels, original)
    if not np.isfinite(candidate).all():
        value = metric.in_points(metric(original, target))
        nan = float("nan")
        reason = "the candidate's outputs are not finite"
        return Verdict(
            False,
            reason,
            metric.name,
            metric.higher_is_better,
            value,
            nan,
            nan,
            nan,
            nan,
            tolerance.allowed(value),
        )
    sign = 1.0 if metric.higher_is_better else -1.0
    before, after = metric.in_points(metric(original, target)), metric.in_points(metric(candidate, target))
    if reference_points is None:
        drawn = resample(metric, original, candidate, target, tolerance.resamples, rng, groups)
        differences, source = sign * metric.points * drawn, ""
    else:
        drawn = resample_one(metric, candidate, target, tolerance.resamples, rng, groups)
        before, source = reference_points, " by reference"
        differences = sign * (before - metric.points * drawn)
    loss, allowed = sign * (before - after), tolerance.allowed(before)
    tail = (1 - tolerance.confidence) / 2
    low, high = (float(q) for q in np.quantile(differences, (tail, 1 - tail)))
    decisive = loss if tolerance.decide_on == "estimate" else high
    accepted = decisive <= allowed + _SLACK * max(1.0, abs(before))
    what = "loss" if tolerance.decide_on == "estimate" else "upper end of the loss"
    reason = (
        f"{what} of {decisive:.3g} points is {'within' if accepted else 'over'} the allowed {allowed:.3g} "
        f"({metric.name} {before:.4g}{source} -> {after:.4g}, {tolerance.confidence:.0%} interval of the loss "
        f"{low:.3g} to {high:.3g})"
    )
    return Verdict(
        accepted, reason, metric.name, metric.higher_is_better, before, after, loss, low, high, allowed
    )


def resample(
    metric: Metric,
    first: NDArray[Any],
    second: NDArray[Any],
    target: NDArray[Any],
    resamples: int,
    rng: np.random.Generator,
    groups: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """``metric(first) - metric(second)`` on ``resamples`` draws of the samples, or of their groups, with replacement,
    the same for both.

    Vectorised over per-sample scores; a metric without them (F1) is computed anew for every draw.
    """
    count = len(target)
    if metric.per_sample is not None:
        difference = metric.per_sample(first, target) - metric.per_sample(second, target)
        if len(difference) == count:
            return _resample_mean(difference, resamples, rng, groups)
    draws = _draws(count, resamples, rng, groups)
    return np.array([metric(first[d], target[d]) - metric(second[d], target[d]) for d in draws])


def resample_one(
    metric: Metric,
    outputs: NDArray[Any],
    target: NDArray[Any],
    resamples: int,
    rng: np.random.Generator,
    groups: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """``metric(outputs)`` on ``resamples`` draws of the samples, or of their groups, with replacement."""
    count = len(target)
    if metric.per_sample is not None and len(scores := metric.per_sample(outputs, target)) == count:
        return _resample_mean(scores, resamples, rng, groups)
    draws = _draws(count, resamples, rng, groups)
    return np.array([metric(outputs[d], target[d]) for d in draws])


def _numbered(count: int, groups: NDArray[Any] | None) -> NDArray[np.intp]:
    """The number of each sample's group; its own without groups."""
    return np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()


def _draws(
    count: int, resamples: int, rng: np.random.Generator, groups: NDArray[Any] | None
) -> Iterator[NDArray[np.intp]]:
    """Samples [about count] of each draw."""
    if groups is None:
        yield from (rng.integers(0, count, count) for _ in range(resamples))
        return
    numbers = _numbered(count, groups)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    for _ in range(resamples):
        yield np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])


def _resample_mean(
    scores: NDArray[np.float64], resamples: int, rng: np.random.Generator, groups: NDArray[Any] | None
) -> NDArray[np.float64]:
    numbers = _numbered(len(scores), groups)
    sums, counts = np.bincount(numbers, scores), np.bincount(numbers)
    chunk = max(1, _CHUNK_ELEMENTS // len(sums))
    parts = []
    for start in range(0, resamples, chunk):
        draws = rng.integers(0, len(sums), (min(chunk, resamples - start), len(sums)))
        parts.append(sums[draws].sum(axis=1) / counts[draws].sum(axis=1))
    return np.concatenate(parts)

"""Which epoch's model a fine-tuning hands out.

While it trains, the best by the validation metric. At the end of its schedule the last one, whose rate has come down
to nothing, unless the best is better beyond noise: the largest of several noisy readings is too high, and where the
original knows the validation data by heart, their order says little (Cawley and Talbot, JMLR 11, 2010).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from opadapt.train.accept import resample
from opadapt.train.checkpoint import write_bytes
from opadapt.train.data import Dataset
from opadapt.train.evaluate import predict
from opadapt.train.metrics import Metric

_RESAMPLES = 1000
_CONFIDENCE = 0.95


class Choice:
    """The model chosen so far, in ``folder``; ``epoch`` and ``value`` are its own (None and NaN before the first)."""

    def __init__(self, metric: Metric, original: onnx.ModelProto, data: Dataset, folder: Path) -> None:
        self.metric, self.original, self.data = metric, original, data
        self.file = folder / "best.onnx"
        self.epoch: int | None = None
        self.value = math.nan
        self._target: NDArray[Any] | None = None

    def offer(self, proto: onnx.ModelProto, epoch: int, threads: int, *, last: bool) -> float:
        """The model's value on the validation data (not in points; NaN where its outputs are not finite). It is chosen
        if it is better than the one before, or the ``last`` of its schedule and not worse beyond noise."""
        outputs, target = self._outputs(proto, threads), self._wanted(threads)
        value = self.metric(outputs, target) if np.isfinite(outputs).all() else math.nan
        better = self.epoch is None or self._better(value, self.value)
        if better or (last and not self._worse(outputs, target, threads)):
            write_bytes(self.file, proto.SerializeToString())
            self.epoch, self.value = epoch, value
        return value

    def proto(self) -> onnx.ModelProto:
        return onnx.load(self.file)

    def _outputs(self, proto: onnx.ModelProto, threads: int) -> NDArray[Any]:
        return predict(proto, self.data.validation, self.data.preprocess, threads=threads)

    def _wanted(self, threads: int) -> NDArray[Any]:
        if self._target is None:
            labels = self.data.validation.labels
            original = np.empty(0) if self.metric.needs_labels else self._outputs(self.original, threads)
            self._target = self.metric.target(labels, original)
        return self._target

    def _better(self, value: float, than: float) -> bool:
        if math.isnan(than):
            return not math.isnan(value)
        return value > than if self.metric.higher_is_better else value < than

    def _worse(self, outputs: NDArray[Any], target: NDArray[Any], threads: int) -> bool:
        """Worse than the chosen model by more than chance: the paired interval of the difference leaves out 0."""
        if not np.isfinite(outputs).all():
            return True
        chosen = self._outputs(self.proto(), threads)
        rng, groups = np.random.default_rng(0), self.data.validation.groups
        losses = resample(self.metric, chosen, outputs, target, _RESAMPLES, rng, groups)
        losses = losses if self.metric.higher_is_better else -losses
        return float(np.quantile(losses, (1 - _CONFIDENCE) / 2)) > 0

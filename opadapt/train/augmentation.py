"""Which augmentations a task allows: those that the original itself bears, as far as the tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx
import torch
from torch import Tensor

from opadapt.train.accept import Tolerance
from opadapt.train.data import Dataset, Split
from opadapt.train.evaluate import predict
from opadapt.train.metrics import Metric
from opadapt.train.preprocess import AugmentConfig, Layout, augment

MOST_SAMPLES = 1024
LEAST_SIDE_PIXELS = 16  # smaller arrays are tables rather than images

# tried in this order, by the images' shorter side in pixels; an eighth is the usual 4 of 32 (arXiv 1512.03385)
CANDIDATES: Mapping[str, Callable[[int], int | bool]] = MappingProxyType(
    {"flip_horizontal": lambda side: True, "crop_padding_pixels": lambda side: side // 8}
)


def borne(
    original: onnx.ModelProto, dataset: Dataset, metric: Metric, tolerance: Tolerance, seed: int
) -> AugmentConfig:
    """The augmentations under which the original stays within ``tolerance`` of itself, each beside those before it.

    Judged on at most ``MOST_SAMPLES`` of the validation data, evenly over it; none where the samples are no images.
    Raises as ``predict`` and the metric do.
    """
    found = AugmentConfig()
    side = shorter_side(dataset)
    if side is None:
        return found
    count = len(dataset.validation)
    split = dataset.validation.take(np.linspace(0, count - 1, min(count, MOST_SAMPLES)).astype(np.int64))
    plain = predict(original, split, dataset.preprocess)
    target = metric.target(split.labels, plain)
    before = metric.in_points(metric(plain, target))
    sign = 1 if metric.higher_is_better else -1
    for name, setting in CANDIDATES.items():
        tried = found.model_copy(update={name: setting(side)})
        outputs = predict(original, changed(dataset, split, tried, seed), dataset.preprocess)
        after = metric.in_points(metric(outputs, target))
        if sign * (before - after) <= tolerance.allowed(before):
            found = tried
    return found


def shorter_side(dataset: Dataset) -> int | None:
    """Of the smallest images among the inputs, in pixels; None where an input is no image."""
    sides = []
    for name, array in dataset.train.inputs.items():
        axes = _image_axes(dataset.preprocess.inputs[name].layout, array.ndim)
        if axes is None:
            return None
        sides += [array.shape[axis] for axis in axes]
    return min(sides) if min(sides) >= LEAST_SIDE_PIXELS else None


def _image_axes(layout: Layout, axes: int) -> tuple[int, int] | None:
    """Rows and columns of a batch of raw images; None of what is none."""
    if layout == "as_is":
        return (2, 3) if axes == 4 else None
    return 1, 2


def changed(dataset: Dataset, split: Split, config: AugmentConfig, seed: int) -> Split:
    """The split, its images augmented once."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(0, high, (len(split), 1), generator=generator)

    return replace(
        split,
        inputs={
            name: augment(
                torch.from_numpy(np.ascontiguousarray(array)),
                dataset.preprocess.inputs[name].layout,
                config,
                draw,
            ).numpy()
            for name, array in split.inputs.items()
        },
    )

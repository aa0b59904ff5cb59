"""Augmentations are found from what the original bears: mirror images, shifts, both, or none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from tiny_models import model_of

from opadapt.train.accept import Tolerance
from opadapt.train.augmentation import LEAST_SIDE_PIXELS, MOST_SAMPLES, borne, changed, shorter_side
from opadapt.train.data import Dataset, Split
from opadapt.train.evaluate import predict
from opadapt.train.metrics import MetricConfig, make_metric
from opadapt.train.preprocess import AugmentConfig, Preprocess, PreprocessConfig, resolve

SIDE = 16
FLIP, CROP = AugmentConfig(flip_horizontal=True), AugmentConfig(crop_padding_pixels=SIDE // 8)
BOTH = AugmentConfig(flip_horizontal=True, crop_padding_pixels=SIDE // 8)
POINT = Tolerance(points=1.0)


def half(axis: int, margin: int = 0, side: int = SIDE) -> NDArray[np.float32]:
    """A template: +1 in the first half of an axis and -1 in the second; nothing within a margin of the middle."""
    line = np.where(np.arange(side) < side // 2, 1.0, -1.0)
    line[side // 2 - margin : side // 2 + margin] = 0
    return np.broadcast_to(line[:, None] if axis == 0 else line, (side, side)).astype(np.float32)


def detector(template: NDArray[np.float32]) -> onnx.ModelProto:
    """1 x side x side image -> scores of two classes: how alike it is to the template, and to its negative."""
    side, column = len(template), template.reshape(-1, 1)
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w"], ["out"], "head"),
    ]
    weights = {"w": np.concatenate([column, -column], 1)}
    return model_of(nodes, {"image": ("N", 1, side, side)}, {"out": ("N", 2)}, weights)


def images_of(template: NDArray[np.float32], count: int, layout: str = "NHW") -> Dataset:
    """Images alike to the template (class 0) or to its negative (class 1), and as many for validation and test."""
    side, labels = len(template), np.arange(count) % 2
    raw = np.where(labels[:, None, None] == 0, template, -template).astype(np.float32)
    raw = {"NHW": raw, "NHWC": raw[..., None], "as_is": raw[:, None]}[layout]
    split = Split({"image": raw}, labels.astype(np.int64))
    step = resolve(PreprocessConfig(layout=layout), "image", raw.shape[1:], (1, side, side), "float32")
    return Dataset(split, split, split, Preprocess({"image": step}), AugmentConfig(), "classes")


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "as_is"])
@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (half(0, margin=2), BOTH),  # above against below: neither mirrored nor shifted images change it
        (half(1, margin=2), CROP),  # left against right
    ],
)
def test_what_the_original_bears_is_found(
    template: NDArray[np.float32], wanted: AugmentConfig, layout: str
) -> None:
    data = images_of(template, 64, layout)
    assert borne(detector(template), data, make_metric(MetricConfig()), POINT, 0) == wanted


def test_shifts_that_blind_the_original_are_left_out() -> None:
    """A checkerboard: moved by one pixel it is its own negative; mirrored, with an odd middle, it is itself."""
    side = 17
    board = np.where(np.indices((side, side)).sum(0) % 2, 1.0, -1.0).astype(np.float32)
    data = images_of(board, 64)
    assert borne(detector(board), data, make_metric(MetricConfig()), POINT, 0) == FLIP


def test_the_tolerance_decides() -> None:
    template = half(1, margin=2)
    metric, data = make_metric(MetricConfig()), images_of(template, 64)
    assert borne(detector(template), data, metric, Tolerance(points=100.0), 0) == BOTH


def test_without_labels_the_original_is_compared_with_itself() -> None:
    template = half(1, margin=2)
    data = images_of(template, 64)
    data = replace(data, validation=replace(data.validation, labels=None), label_kind="none")
    metric = make_metric(MetricConfig(name="agreement"))
    assert borne(detector(template), data, metric, POINT, 0) == CROP


def test_an_error_may_not_grow() -> None:
    """Values instead of classes, the lower error the better: a shift moves some of the image out of sight."""
    template = half(0, margin=2)
    data = images_of(template, 64)
    scores = predict(detector(template), data.validation, data.preprocess)
    data = replace(data, validation=replace(data.validation, labels=scores), label_kind="values")
    metric = make_metric(MetricConfig(name="mae"))
    assert borne(detector(template), data, metric, Tolerance(points=1e-3), 0) == FLIP


@pytest.mark.parametrize("side", [LEAST_SIDE_PIXELS - 1, LEAST_SIDE_PIXELS])
def test_small_tables_are_no_images(side: int) -> None:
    template = half(0, side=side)
    assert shorter_side(images_of(template, 4)) == (side if side >= LEAST_SIDE_PIXELS else None)


def test_vectors_are_no_images() -> None:
    table = np.zeros((8, 40), np.float32)
    step = resolve(PreprocessConfig(), "x", (40,), (40,), "float32")
    split = Split({"x": table})
    data = Dataset(split, split, split, Preprocess({"x": step}), AugmentConfig(), "none")
    assert shorter_side(data) is None
    template = half(0)
    assert borne(detector(template), data, make_metric(MetricConfig()), POINT, 0) == AugmentConfig()


def test_samples_are_taken_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data in the order of its classes the first samples would be of one class."""
    template = half(0, margin=2)
    data = images_of(template, MOST_SAMPLES + 200)
    order = np.argsort(data.validation.labels, kind="stable")
    data = replace(data, validation=data.validation.take(order))
    seen: list[NDArray[np.int64]] = []

    def noting(dataset: Dataset, split: Split, config: AugmentConfig, seed: int) -> Split:
        assert split.labels is not None
        seen.append(split.labels)
        return changed(dataset, split, config, seed)

    monkeypatch.setattr("opadapt.train.augmentation.changed", noting)
    borne(detector(template), data, make_metric(MetricConfig()), POINT, 0)
    for labels in seen:
        assert len(labels) == MOST_SAMPLES and abs(labels.mean() - 0.5) < 0.01
    assert len(seen) == 2

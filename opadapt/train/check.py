"""Checks of samples and labels against the model; every refusal is a DataError that says where."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opadapt.errors import DataError
from opadapt.train.signature import Port

LabelKind = Literal["classes", "values", "none"]
_CHUNK = 4096  # samples looked at together, to bound the memory


def check_finite(array: NDArray[Any], where: str) -> None:
    """Raise DataError at the first sample with a NaN or an infinity."""
    if array.dtype.kind != "f":
        return
    for start in range(0, len(array), _CHUNK):
        part = array[start : start + _CHUNK]
        good = np.isfinite(part).reshape(len(part), -1).all(axis=1)
        if not good.all():
            raise DataError(
                f"{where} holds a NaN or an infinity",
                expected="finite numbers",
                found=f"sample {start + int(np.argmin(good))}",
                do="remove or repair the sample",
            )


def class_column(labels: NDArray[Any], output: Port) -> NDArray[Any]:
    """Integers of shape [N, 1], as Keras keeps class numbers, as [N] for a model that returns a vector."""
    column = labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "iub"
    return labels[:, 0] if column and _is_vector(output) else labels


def _is_vector(output: Port) -> bool:
    return len(output.shape) == 1 and output.shape[0] is not None and output.shape[0] > 1


def label_kind(labels: NDArray[Any], output: Port, wanted: Literal["auto", "classes", "values"]) -> LabelKind:
    """Whether labels are class numbers: whole numbers, one a sample, for a model that returns a vector."""
    if wanted != "auto":
        return wanted
    return "classes" if _is_vector(output) and labels.ndim == 1 and labels.dtype.kind in "uib" else "values"


def check_labels(
    labels: NDArray[Any], kind: LabelKind, output: Port, where: str, folders: int
) -> NDArray[Any]:
    """Class numbers as int64, values as float32. Raises DataError.

    ``folders`` is the number of class folders, 0 where the labels come from elsewhere.
    """
    if labels.dtype.kind not in "uibf":
        raise DataError(f"{where}: labels are no numbers", expected="numbers", found=str(labels.dtype))
    if kind != "classes":
        return labels.astype(np.float32)
    classes = output.shape[-1] if output.shape else None
    if labels.ndim != 1 or not np.array_equal(labels, np.rint(labels)):
        raise DataError(
            f"{where}: labels are no class numbers",
            expected="one whole number per sample",
            found=f"{labels.dtype} {'x'.join(map(str, labels.shape))}",
        )
    if classes is not None and folders and folders != classes:
        raise DataError(
            f"{where}: other classes than the model's",
            expected=f"{classes} class folders, as the model's output '{output.name}' has",
            found=f"{folders}",
            do="name all classes in the model's order in data.class_names",
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= (np.inf if classes is None else classes)))
    if len(wrong):
        from_one = labels.min() == 1 and labels.max() == classes
        raise DataError(
            f"{where}: a label is out of range",
            expected=f"0 to {classes - 1 if classes else '...'}, as the model's output '{output.name}' has",
            found=f"label {labels[wrong[0]]} of sample {wrong[0]} ({len(wrong)} such samples)",
            do="count classes from 0: subtract 1" if from_one else None,
        )
    return labels.astype(np.int64)

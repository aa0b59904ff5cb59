"""The user's data: found, checked against the model, and divided into training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from opadapt.errors import DataError
from opadapt.model.graph import Model
from opadapt.train import splitting
from opadapt.train.check import check_finite, check_labels, class_column, label_kind
from opadapt.train.entry import is_entry_point
from opadapt.train.preprocess import AugmentConfig, Preprocess, PreprocessConfig, resolve
from opadapt.train.signature import Port, inputs_of, output_of
from opadapt.train.sources import Arrays, Part, Source, from_entry_point, from_folder, from_npy, from_npz

LabelKind = Literal["classes", "values", "none"]
LABEL_NAMES = ("y", "label", "labels")


class DataConfig(BaseModel):
    """Where the data is and how it is read. Exactly one of ``path`` and ``x`` is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(
        None,
        description="a folder of images (one subfolder per class, optionally under train/, val/, test/), an "
        ".npz (keys x_train, y_train, x_test, y_test, or x, y), or a Python function module:function or "
        "file.py:function that returns such arrays by name",
    )
    x: str | None = Field(None, description="an .npy of samples, instead of path")
    y: str | None = Field(None, description="an .npy of labels that goes with x")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="model input -> array name; default: the same name, or x"
    )
    labels: str | None = Field(None, description="array name of the labels; default: y, label or labels")
    label_kind: Literal["auto", "classes", "values"] = Field(
        "auto", description="class numbers, or values to predict; auto: whole numbers for a vector output"
    )
    group: str | None = Field(None, description="array name of a group (such as the subject) never divided")
    class_names: tuple[str, ...] = Field((), description="order of the class folders; default: sorted")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="cut from training where none is given")
    test_fraction: float = Field(0.1, gt=0, lt=1, description="cut off first where no test data is given")
    train_limit: int | None = Field(None, ge=1, description="use at most this many training samples")
    validation_limit: int | None = Field(None, ge=1, description="use at most this many validation samples")
    test_limit: int | None = Field(None, ge=1, description="use at most this many test samples")
    seed: int = Field(0, ge=0, description="of the division and of the limits")
    preprocess: PreprocessConfig = Field(PreprocessConfig(), description="for every input")
    preprocess_for: dict[str, PreprocessConfig] = Field(
        default_factory=dict, description="by model input, instead of preprocess"
    )
    augment: AugmentConfig | None = Field(
        None,
        description="of the training images; {} for none. Default: flips and crops, as far as they leave the original "
        "within tolerance",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.x is None):
            raise ValueError("give either path or x")
        if self.y is not None and self.x is None:
            raise ValueError("y goes with x; with path, name the labels by their array name in labels")
        return self


@dataclass(frozen=True, eq=False)
class Split:
    """Raw samples by model input, their labels, and the group of each, such as its subject (None without)."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: NDArray[np.int64] | slice) -> Split:
        """Some of the samples."""
        labels, groups = (None if a is None else a[indices] for a in (self.labels, self.groups))
        return Split({name: array[indices] for name, array in self.inputs.items()}, labels, groups)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train (distillation, fine-tuning), validation (acceptance) and test (reported once).

    ``augment`` is none where the config leaves it open.
    """

    train: Split
    validation: Split
    test: Split
    preprocess: Preprocess
    augment: AugmentConfig
    label_kind: LabelKind
    class_names: tuple[str, ...] = ()


def load_data(config: DataConfig, model: Model, base: Path | None = None) -> Dataset:
    """Read, check and divide the data. Relative paths start at ``base`` (default: the working directory).

    Raises DataError where something is missing, does not fit the model or is not finite, ConfigError for an
    entry point that cannot be imported.
    """
    ports = inputs_of(model.proto)
    if unknown := sorted((set(config.inputs) | set(config.preprocess_for)) - set(ports)):
        raise DataError(
            f"the model has no input '{unknown[0]}'", expected=", ".join(ports), found=", ".join(unknown)
        )
    source = _read(config, ports, base or Path())
    output = output_of(model.proto)
    kind: LabelKind = "none"
    splits: dict[Part, Split] = {}
    for part, arrays in source.parts.items():
        if not any(_find(arrays, _wanted(config, name, ports)) for name in ports):
            continue  # such as a list of class names beside x_train and x_test
        where = f"{source.where} ({part})"
        inputs = {name: _input(arrays, config, name, ports, where) for name in ports}
        labels = _labels(arrays, config, where)
        if labels is not None:
            labels = class_column(labels, output)
            kind = label_kind(labels, output, config.label_kind)
            labels = check_labels(labels, kind, output, where, len(source.class_names))
        splits[part] = Split(inputs, labels, _group(arrays, config, where))
        _check_counts(splits[part], where)
    if not splits:
        raise DataError(
            f"no samples for the model's inputs in {source.where}",
            expected=f"arrays named {', '.join(ports)}" + (" or x" if len(ports) == 1 else ""),
            found=", ".join(f"{name} ({part})" for part, a in source.parts.items() for name in a)
            or "nothing",
            do="name the arrays in data.inputs",
        )
    made = _divide(splits, config, kind)
    _check_alike(made)
    preprocess = Preprocess(
        {
            name: resolve(
                config.preprocess_for.get(name, config.preprocess),
                name,
                made["train"].inputs[name].shape[1:],
                port.shape,
                port.dtype,
            )
            for name, port in ports.items()
        }
    )
    augment = config.augment or AugmentConfig()
    _check_augment(augment, made["train"])
    names = source.class_names or config.class_names
    return Dataset(made["train"], made["validation"], made["test"], preprocess, augment, kind, names)


def _read(config: DataConfig, ports: Mapping[str, Port], base: Path) -> Source:
    if config.x is not None:
        return from_npy(_existing(base / config.x), None if config.y is None else _existing(base / config.y))
    assert config.path is not None
    path = base / config.path
    if not path.exists() and is_entry_point(config.path):
        place, _, function = config.path.rpartition(":")
        return from_entry_point(f"{base / place}:{function}" if place.endswith(".py") else config.path)
    if _existing(path).is_dir():
        shape = next(iter(ports.values())).shape
        channels = 1 if len(shape) == 3 and 1 in (shape[0], shape[2]) else 3
        return from_folder(path, channels, config.preprocess.resize_pixels, config.class_names)
    if path.suffix == ".npz":
        return from_npz(path)
    raise DataError(
        f"cannot tell what {path} is",
        expected="a folder of images, an .npz, or module:function",
        found=path.suffix or "no suffix",
        do="give .npy files as data.x and data.y" if path.suffix == ".npy" else None,
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"no data at {path}", expected="an existing file or folder", found="nothing")
    return path


def _wanted(config: DataConfig, name: str, ports: Mapping[str, Port]) -> tuple[str, ...]:
    if name in config.inputs:
        return (config.inputs[name],)
    return (name, "x") if len(ports) == 1 else (name,)


def _find(arrays: Arrays, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in arrays), None)


def _input(
    arrays: Arrays, config: DataConfig, name: str, ports: Mapping[str, Port], where: str
) -> NDArray[Any]:
    wanted = _wanted(config, name, ports)
    found = _find(arrays, wanted)
    if found is None:
        raise DataError(
            f"{where}: no array for the model's input '{name}'",
            expected=f"an array named {' or '.join(wanted)}",
            found=", ".join(arrays),
            do=f"set data.inputs.{name} to the array's name",
        )
    array = arrays[found]
    if array.dtype.kind not in "uifb" or array.ndim < 1 or not len(array):
        raise DataError(
            f"{where}: '{found}' holds no samples",
            expected="a non-empty array of numbers",
            found=_form(array),
        )
    check_finite(array, f"{where}: '{found}'")
    size = config.preprocess_for.get(name, config.preprocess).resize_pixels
    return array if size is None or size in (array.shape[1:3], array.shape[2:4]) else resize(array, size)


def resize(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Images [N,H,W], [N,H,W,C] or [N,C,H,W] resized (bilinear, antialiased), dtype kept. Raises DataError."""
    if array.ndim not in (3, 4):
        raise DataError("only images can be resized", expected="3 or 4 axes", found=_form(array))
    last = array.ndim == 4 and array.shape[3] in (1, 3, 4)
    chunks = []
    for start in range(0, len(array), 256):
        x = torch.from_numpy(np.ascontiguousarray(array[start : start + 256])).float()
        x = x.permute(0, 3, 1, 2) if last else x.unsqueeze(1) if x.dim() == 3 else x
        y = torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
        y = y.permute(0, 2, 3, 1) if last else y.squeeze(1) if array.ndim == 3 else y
        values = y.numpy()
        if array.dtype.kind in "ui":
            bounds = np.iinfo(array.dtype)
            values = np.clip(np.rint(values), bounds.min, bounds.max)
        chunks.append(values.astype(array.dtype))
    return np.concatenate(chunks)


def _labels(arrays: Arrays, config: DataConfig, where: str) -> NDArray[Any] | None:
    found = _find(arrays, LABEL_NAMES if config.labels is None else (config.labels,))
    if found is None and config.labels is not None:
        raise DataError(f"{where}: no labels", expected=config.labels, found=", ".join(arrays))
    if found is None:
        return None
    check_finite(arrays[found], f"{where}: labels '{found}'")
    return arrays[found]


def _group(arrays: Arrays, config: DataConfig, where: str) -> NDArray[Any] | None:
    if config.group is None:
        return None
    if config.group not in arrays:
        raise DataError(f"{where}: no group array", expected=config.group, found=", ".join(arrays))
    return arrays[config.group]


def _check_counts(split: Split, where: str) -> None:
    counts = {name: len(array) for name, array in split.inputs.items()}
    counts |= {} if split.labels is None else {"labels": len(split.labels)}
    counts |= {} if split.groups is None else {"group": len(split.groups)}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{where}: counts differ",
            expected="as many labels as samples",
            found=", ".join(f"{name}: {count}" for name, count in counts.items()),
        )


def _divide(splits: dict[Part, Split], config: DataConfig, kind: LabelKind) -> dict[Part, Split]:
    rng = np.random.default_rng(config.seed)
    rest = splits.get("train", splits.get("all"))
    if rest is None:
        raise DataError("no training data", expected="x_train, or x", found=", ".join(splits))
    made: dict[Part, Split] = {p: splits[p] for p in ("validation", "test") if p in splits}
    fractions: dict[Part, float] = {"test": config.test_fraction, "validation": config.validation_fraction}
    for part, fraction in fractions.items():
        if part not in made:
            classes = rest.labels if kind == "classes" else None
            kept, off = splitting.cut(len(rest), fraction, rng, classes, rest.groups)
            made[part], rest = rest.take(off), rest.take(kept)
    made["train"] = rest
    most: dict[Part, int | None] = {
        "train": config.train_limit,
        "validation": config.validation_limit,
        "test": config.test_limit,
    }
    for part, number in most.items():
        indices = splitting.limit(len(made[part]), number, rng)
        made[part] = made[part] if len(indices) == len(made[part]) else made[part].take(indices)
    return made


def _check_alike(made: dict[Part, Split]) -> None:
    for part, split in made.items():
        for name, array in split.inputs.items():
            wanted = made["train"].inputs[name]
            if array.shape[1:] != wanted.shape[1:] or array.dtype.kind != wanted.dtype.kind:
                raise DataError(
                    f"'{name}' differs between training and {part}",
                    expected=_form(wanted),
                    found=_form(array),
                )


def _check_augment(augment: AugmentConfig, train: Split) -> None:
    if augment.active and not any(array.ndim in (3, 4) for array in train.inputs.values()):
        raise DataError(
            "data.augment needs images",
            expected="samples of 2 or 3 axes",
            found=", ".join(f"{name}: {_form(array)}" for name, array in train.inputs.items()),
            do="remove data.augment",
        )


def _form(array: NDArray[Any]) -> str:
    return f"{array.dtype} {'x'.join(map(str, array.shape))}"

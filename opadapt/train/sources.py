"""Raw arrays from where the user keeps them: an image folder, an .npz, .npy files or a Python entry point."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from opadapt.errors import DataError, first_line
from opadapt.train.entry import load_entry_point

Part = Literal["all", "train", "validation", "test"]
Arrays = dict[str, NDArray[Any]]

PART_WORDS: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


@dataclass(frozen=True, eq=False)
class Source:
    """Arrays by part and name. ``all`` is what nobody divided; images are ``x``, their classes ``y``."""

    parts: dict[Part, Arrays]
    class_names: tuple[str, ...] = ()
    where: str = field(default="", compare=False)


def split_key(key: str) -> tuple[Part, str]:
    """``x_train`` and ``train_x`` -> ("train", "x"); ``x`` -> ("all", "x")."""
    head, _, tail = key.partition("_")
    if tail and head in PART_WORDS:
        return PART_WORDS[head], tail
    head, _, tail = key.rpartition("_")
    if head and tail in PART_WORDS:
        return PART_WORDS[tail], head
    return "all", key


def from_mapping(arrays: Mapping[str, Any], where: str) -> Source:
    """Sort named arrays into parts by their names."""
    parts: dict[Part, Arrays] = {}
    for key, value in arrays.items():
        part, name = split_key(str(key))
        parts.setdefault(part, {})[name] = np.asarray(value)
    return Source(parts, (), where)


def from_npz(path: Path) -> Source:
    """An .npz with keys such as x_train, y_train, x_test, y_test, or x, y. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return from_mapping({key: stored[key] for key in stored.files}, str(path))
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"cannot read {path}",
            expected="an .npz of plain arrays (no Python objects)",
            found=_why_not(error),
        ) from error


def from_npy(x: Path, y: Path | None) -> Source:
    """One .npy of samples and one of labels. Raises DataError."""
    arrays = {"x": _npy(x)}
    if y is not None:
        arrays["y"] = _npy(y)
    return Source({"all": arrays}, (), str(x))


def _why_not(error: Exception) -> str:
    """Numpy takes any file that it does not know for a pickle, and says how to load that; opadapt never does."""
    if isinstance(error, ValueError) and "pickle" in str(error):
        objects = str(error).startswith("Object arrays")
        return "an array of Python objects" if objects else "not a numpy file, or one of Python objects"
    return first_line(error)


def _npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"cannot read {path}", expected="a .npy array of numbers", found=_why_not(error)
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is no .npy array", expected="one array", found=type(array).__name__)
    return array


def from_entry_point(text: str) -> Source:
    """Arrays from the user's function, which takes nothing and returns a mapping. Raises DataError."""
    made = load_entry_point(text)()
    if not isinstance(made, Mapping):
        raise DataError(
            f"{text} returned something else",
            expected="a mapping of arrays, such as {'x': ..., 'y': ...}",
            found=type(made).__name__,
        )
    return from_mapping(made, text)


def from_folder(
    folder: Path, channels: int, size: tuple[int, int] | None, class_names: Sequence[str] = ()
) -> Source:
    """Images in one folder per class, these optionally under train/, val/ and test/.

    ``channels`` is 1 (grey) or 3 (RGB). ``size`` is height and width to resize to; None takes the images as
    they are, and they must agree. ``class_names`` gives the order of the classes; without it they are sorted.
    Raises DataError for an empty class, an unreadable image or images of different sizes.
    """
    children = _folders(folder)
    parts = {PART_WORDS[c.name]: c for c in children if c.name in PART_WORDS}
    roots: dict[Part, Path] = dict(parts) if "train" in parts else {"all": folder}
    found = sorted({c.name for root in roots.values() for c in _folders(root)})
    if not found:
        raise DataError(
            f"no images in {folder}", expected="one subfolder of images per class", found="no subfolder"
        )
    names = tuple(class_names) or tuple(found)
    if unknown := sorted(set(found) - set(names)):
        raise DataError(
            f"{folder} has a class that data.class_names does not name",
            expected=", ".join(names),
            found=", ".join(unknown),
        )
    arrays = {part: _read_part(root, names, channels, size) for part, root in roots.items()}
    return Source(arrays, names, str(folder))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(c for c in folder.iterdir() if c.is_dir() and not c.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}", found=first_line(error)) from error


def _read_part(root: Path, names: tuple[str, ...], channels: int, size: tuple[int, int] | None) -> Arrays:
    files: list[Path] = []
    labels: list[int] = []
    for folder in _folders(root):
        images = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(
                f"class '{folder.name}' has no images",
                expected=f"files ending in {', '.join(sorted(IMAGE_SUFFIXES))}",
                found=f"none in {folder}",
                do="add images or remove the folder",
            )
        files += images
        labels += [names.index(folder.name)] * len(images)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = list(pool.map(lambda f: read_image(f, channels, size), files))
    for file, image in zip(files, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise DataError(
                f"images of different sizes: {file}",
                expected=f"{pixels[0].shape[0]}x{pixels[0].shape[1]} pixels, as {files[0]}",
                found=f"{image.shape[0]}x{image.shape[1]}",
                do="set data.preprocess.resize_pixels",
            )
    return {"x": np.stack(pixels), "y": np.asarray(labels, dtype=np.int64)}


def read_image(path: Path, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """One image as uint8 [H,W] (1 channel) or [H,W,3]. Raises DataError that names the file."""
    try:
        with Image.open(path) as image:
            made = image.convert("L" if channels == 1 else "RGB")
            if size is not None and made.size != (size[1], size[0]):
                made = made.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(made)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"cannot read the image {path}",
            expected="a readable image",
            found=first_line(error),
            do="replace or remove the file",
        ) from error

"""CIFAR-10 from WebP sprite sheets to one .npz that ``--data`` reads.

    python scripts/data/cifar10_npz.py SRC cifar10.npz

SRC holds the folders cifar10_train and cifar10_test, each with 000.webp, 001.webp, ..., labels.npy and
meta.json (n images of h x w pixels, ``per`` images a sheet, ``cols`` images a row of a sheet). The result has
x_train and x_test (uint8 N,H,W,3) and y_train and y_test (uint8 N).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]


def unpack(folder: Path) -> tuple[UInt8, UInt8]:
    """Images (uint8 N,H,W,3) and labels (uint8 N) of one folder of sheets."""
    meta = json.loads((folder / "meta.json").read_text())
    count, height, width, per, columns = (int(meta[key]) for key in ("n", "h", "w", "per", "cols"))
    images = np.empty((count, height, width, 3), dtype=np.uint8)
    for number, start in enumerate(range(0, count, per)):
        with Image.open(folder / f"{number:03d}.webp") as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        rows = pixels.shape[0] // height
        tiles = pixels.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
        stop = min(start + per, count)
        images[start:stop] = tiles[: stop - start]
    labels = np.load(folder / "labels.npy", allow_pickle=False).astype(np.uint8)
    if len(labels) != count:
        raise SystemExit(f"{folder}: {len(labels)} labels for {count} images")
    return images, labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder that holds cifar10_train and cifar10_test")
    parser.add_argument("target", type=Path, help="the .npz to write")
    arguments = parser.parse_args()
    x_train, y_train = unpack(arguments.source / "cifar10_train")
    x_test, y_test = unpack(arguments.source / "cifar10_test")
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.target.with_suffix(".partial.npz")
    np.savez(partial, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    partial.replace(arguments.target)


if __name__ == "__main__":
    main()

"""Pack a part of Fashion-MNIST as the quickstart's data, under 5 MB.

    python scripts/pack_quickstart_data.py --data fashion_mnist.npz --out configs/quickstart/fashion_mnist.npz

Writes x_train, y_train (images the model was trained on), x_validation, y_validation, x_test, y_test; images uint8
N,28,28. Validation and test are drawn together, at random, from the images that the model never saw: the test
images of the source and the training images that scripts/train_quickstart.py held out.
"""

from __future__ import annotations

import argparse
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from train_quickstart import HELD_OUT

MAX_BYTES = 5_000_000
MADE = (1980, 1, 1, 0, 0, 0)  # a fixed time stamp: the same arrays give the same file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("configs/quickstart/fashion_mnist.npz"))
    parser.add_argument("--train", type=int, default=4800, help="training images to keep")
    parser.add_argument("--validation", type=int, default=2500, help="validation images to keep")
    parser.add_argument("--test", type=int, default=4000, help="test images to keep")
    parser.add_argument("--seed", type=int, default=0, help="of the division into validation and test")
    arguments = parser.parse_args()

    with np.load(arguments.data, allow_pickle=False) as archive:
        source = {name: archive[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    unseen_x = np.concatenate([source["train_x"][-HELD_OUT:], source["test_x"]])
    unseen_y = np.concatenate([source["train_y"][-HELD_OUT:], source["test_y"]])
    order = np.random.default_rng(arguments.seed).permutation(len(unseen_y))
    validation = order[: arguments.validation]
    test = order[arguments.validation : arguments.validation + arguments.test]
    parts = {
        "train": (source["train_x"][: arguments.train], source["train_y"][: arguments.train]),
        "validation": (unseen_x[validation], unseen_y[validation]),
        "test": (unseen_x[test], unseen_y[test]),
    }
    with zipfile.ZipFile(arguments.out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive_out:
        for part, (images, labels) in parts.items():
            for name, array in ((f"x_{part}", images), (f"y_{part}", labels)):
                buffer = BytesIO()
                np.save(buffer, np.ascontiguousarray(array.astype(np.uint8)), allow_pickle=False)
                archive_out.writestr(
                    zipfile.ZipInfo(f"{name}.npy", MADE), buffer.getvalue(), zipfile.ZIP_DEFLATED, 9
                )
    size = arguments.out.stat().st_size
    counts = ", ".join(f"{len(labels)} {part}" for part, (_, labels) in parts.items())
    print(f"{arguments.out}: {counts} images, {size} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"{size} bytes is over {MAX_BYTES}: keep fewer images")


if __name__ == "__main__":
    main()

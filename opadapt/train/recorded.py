"""What the teacher said about each view of each training sample, so that it need not be asked twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opadapt.errors import RunError
from opadapt.train.batches import Batch

LARGEST = 2 << 30  # bytes; beyond it the teacher is asked every time
_CHUNK = 1 << 20  # bytes written at once


def fits(views: int, samples: int, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether outputs of these shapes (of one sample) can be recorded."""
    return 4 * views * samples * sum(map(math.prod, shapes)) <= LARGEST


class Recorded:
    """Outputs, float32, in a file [views, samples, values of all outputs]; NaN is what is not known.

    The file is there as a whole from the start: a disk that fills up afterwards takes nothing away. What is kept is in
    it at once, so that a killed run finds it again. Raises RunError where it cannot be written.
    """

    def __init__(self, path: Path, views: int, samples: int, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes = list(shapes)
        self.widths = [math.prod(shape) for shape in shapes]
        shape = (views, samples, sum(self.widths))
        size = 4 * math.prod(shape)
        try:
            if not path.exists() or path.stat().st_size != size:
                _fill(path, size)
            self.values = np.memmap(path, np.float32, "r+", shape=shape)
        except OSError as error:
            raise RunError(f"cannot write {path}", found=str(error), do="free space on the disk") from error

    def missing(self, batch: Batch) -> Tensor:
        """Positions in the batch of the samples whose outputs are not known."""
        return torch.from_numpy(self._of(batch)).isnan().any(dim=1).nonzero().flatten()

    def find(self, batch: Batch) -> list[Tensor]:
        """The outputs for a batch [batch, ...]; NaN where they are not known."""
        parts = torch.split(torch.from_numpy(self._of(batch)), self.widths, dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _of(self, batch: Batch) -> NDArray[np.float32]:
        """A copy of the outputs for a batch [batch, values]."""
        return np.asarray(self.values[batch.view, batch.rows.numpy()])

    def keep(self, batch: Batch, outputs: Sequence[Tensor]) -> None:
        """Record the outputs for a batch [batch, ...]."""
        flat = torch.cat([y.reshape(len(batch.rows), -1) for y in outputs], dim=1)
        self.values[batch.view, batch.rows.numpy()] = flat.cpu().numpy()


def _fill(path: Path, size: int) -> None:
    """A file of so many bytes, all NaN, written and not sparse."""
    chunk = np.full(_CHUNK // 4, np.nan, np.float32).tobytes()
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            file.write(chunk[: size - start])

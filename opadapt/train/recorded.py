"""A teacher that is asked once about each view of each training sample, and remembers what it said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opadapt.errors import RunError, first_line
from opadapt.train.batches import Batch

RECORD = "teacher.f32"
LARGEST = 2 << 30  # bytes; beyond it the teacher is asked every time
_CHUNK = 1 << 20  # bytes written at once

Teach = Callable[[Sequence[Tensor]], list[Tensor]]


def fits(views: int, samples: int, shapes: Sequence[tuple[int | None, ...]]) -> bool:
    """Whether outputs of these shapes (of one sample) are known in form and small enough to be recorded."""
    sizes = [size for shape in shapes for size in shape]
    return None not in sizes and 4 * views * samples * _width(shapes) <= LARGEST


def _width(shapes: Sequence[tuple[int | None, ...]]) -> int:
    return sum(math.prod(size or 0 for size in shape) for shape in shapes)


class Recorded:
    """Outputs, float32, in a file [views, samples, values of all outputs]; NaN is what is not known.

    The file is there as a whole from the start: a disk that fills up afterwards takes nothing away. What is kept is in
    it at once, so that a killed run finds it again. Raises RunError where it cannot be written.
    """

    def __init__(
        self, path: Path, views: int, samples: int, shapes: Sequence[tuple[int | None, ...]]
    ) -> None:
        self.shapes = [tuple(size or 0 for size in shape) for shape in shapes]
        self.widths = [math.prod(shape) for shape in self.shapes]
        form = (views, samples, sum(self.widths))
        size = 4 * math.prod(form)
        try:
            if not path.exists() or path.stat().st_size != size:
                _fill(path, size)
            self.values = np.memmap(path, np.float32, "r+", shape=form)
        except OSError as error:
            raise RunError(
                f"cannot write {path}", found=first_line(error), do="free space on the disk"
            ) from error

    def teach(self, teacher: Teach, batch: Batch, runs: bool) -> list[Tensor]:
        """What the teacher gives for a batch: all of it while it ``runs``, afterwards its outputs as recorded. It is
        asked again about samples that filled no batch in the view's own epoch."""
        count = len(self.shapes)
        if runs:
            wanted = teacher(batch.inputs)
            self.keep(batch, wanted[:count])
            return wanted
        if len(missing := self.missing(batch)):
            some = batch.take(missing)
            self.keep(some, teacher(some.inputs)[:count])
        return self.find(batch)

    def missing(self, batch: Batch) -> Tensor:
        """Positions in the batch of the samples whose outputs are not known."""
        return torch.from_numpy(self._of(batch)).isnan().any(dim=1).nonzero().flatten()

    def find(self, batch: Batch) -> list[Tensor]:
        """The outputs for a batch [batch, ...]; NaN where they are not known."""
        parts = torch.split(torch.from_numpy(self._of(batch)), self.widths, dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def keep(self, batch: Batch, outputs: Sequence[Tensor]) -> None:
        """Record the outputs for a batch [batch, ...]."""
        flat = torch.cat([y.reshape(len(batch.rows), -1) for y in outputs], dim=1)
        self.values[batch.view, batch.rows.numpy()] = flat.cpu().numpy()

    def _of(self, batch: Batch) -> NDArray[np.float32]:
        """A copy of the outputs for a batch [batch, values]."""
        return np.asarray(self.values[batch.view, batch.rows.numpy()])


def _fill(path: Path, size: int) -> None:
    """A file of so many bytes, all NaN, written and not sparse."""
    chunk = np.full(_CHUNK // 4, np.nan, np.float32).tobytes()
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            file.write(chunk[: size - start])

"""Tensor types. A dimension is a positive int, or the one symbol ``N``: the batch, unknown until run time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opadapt.errors import ProgramError

BATCH = "N"
Dim = int | str  # a positive int, or BATCH


@dataclass(frozen=True)
class TensorType:
    """The type of a float32 tensor: its shape. At most one dimension is the symbolic batch ``N``."""

    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        for dim in self.shape:
            if isinstance(dim, bool) or not (dim == BATCH or (isinstance(dim, int) and dim > 0)):
                raise ProgramError(
                    f"{dim!r} is no dimension",
                    expected="a positive int or the symbol N",
                    found=repr(self.shape),
                )
        if self.shape.count(BATCH) > 1:
            raise ProgramError(
                "the symbolic batch occurs twice", expected="at most one N", found=repr(self.shape)
            )

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        """Number of elements at batch 1."""
        return math.prod(d for d in self.shape if isinstance(d, int))

    @property
    def batch_axis(self) -> int | None:
        return self.shape.index(BATCH) if BATCH in self.shape else None

    def at_batch(self, batch: int) -> tuple[int, ...]:
        """The concrete shape with ``N`` set to ``batch``."""
        return tuple(batch if isinstance(d, str) else d for d in self.shape)

    def __str__(self) -> str:
        return "f32[" + ",".join(str(d) for d in self.shape) + "]"


def broadcast_shapes(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The numpy broadcast of shapes; ``N`` goes with ``N`` and 1 only. Raises ProgramError."""
    rank = max(len(s) for s in shapes)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dims: set[Dim] = {s[axis] for s in shapes if -axis <= len(s)} - {1}
        if len(dims) > 1:
            raise ProgramError(
                "shapes do not broadcast", expected="equal sizes or 1", found=" and ".join(map(str, shapes))
            )
        result.append(dims.pop() if dims else 1)
    return tuple(result)

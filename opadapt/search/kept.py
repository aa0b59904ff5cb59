"""Arrays that are computed once and kept, as long as there is room."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[Any], ...]

ROOM = 2**28  # bytes: three float32 values of a million elements for each of 21 members


class Kept:
    """Arrays by what they were made of. Beyond ``room`` bytes those go that were not asked for the longest; the last
    ones stay, whatever they take."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self._found: OrderedDict[Hashable, Arrays] = OrderedDict()

    def __call__(self, key: Hashable, make: Callable[[], Arrays]) -> Arrays:
        """What is kept under the key, made first where there is nothing. Not to be written to."""
        if key not in self._found:
            self._found[key] = make()
            while self._bytes > self.room and len(self._found) > 1:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]

    @property
    def _bytes(self) -> int:
        return sum(array.nbytes for arrays in self._found.values() for array in arrays)


def fingerprint(*arrays: NDArray[Any]) -> bytes:
    """A hash of shapes and elements."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(repr((array.shape, array.dtype.str)).encode())
        found.update(np.ascontiguousarray(array).reshape(-1).data)
    return found.digest()

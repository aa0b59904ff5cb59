"""Which samples train, which decide acceptance and which are kept for the end: by seed, class and group."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.errors import DataError

Indices = NDArray[np.int64]


def cut(
    count: int,
    fraction: float,
    rng: np.random.Generator,
    classes: NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
) -> tuple[Indices, Indices]:
    """Divide ``range(count)`` into (kept, cut off), both sorted; about ``fraction`` of it is cut off.

    With ``groups`` (such as subjects) whole groups are cut off, until the fraction is reached. Otherwise with
    ``classes`` every class loses the same fraction, one sample at least. Raises DataError where nothing would
    be left on one side.
    """
    if groups is not None:
        off = _whole_groups(groups, fraction, rng)
    elif classes is not None:
        off = np.concatenate([_some(np.flatnonzero(classes == c), fraction, rng) for c in np.unique(classes)])
    else:
        off = _some(np.arange(count), fraction, rng)
    chosen = np.zeros(count, dtype=bool)
    chosen[off] = True
    kept, away = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    if not len(kept) or not len(away):
        raise DataError(
            "too few samples to divide into training, validation and test",
            expected="at least two samples, or two groups, on each division",
            found=f"{count} samples",
        )
    return kept, away


def _some(indices: Indices, fraction: float, rng: np.random.Generator) -> Indices:
    wanted = min(max(1, round(fraction * len(indices))), len(indices) - 1)
    return rng.permutation(indices)[:wanted]


def _whole_groups(groups: NDArray[Any], fraction: float, rng: np.random.Generator) -> Indices:
    names = rng.permutation(np.unique(groups))
    sizes = np.array([np.count_nonzero(groups == name) for name in names])
    before = np.cumsum(sizes) - sizes
    wanted = max(1, int(np.count_nonzero(before < fraction * len(groups))))
    return np.flatnonzero(np.isin(groups, names[: min(wanted, len(names) - 1)]))


def limit(count: int, most: int | None, rng: np.random.Generator) -> Indices:
    """All indices, or a random ``most`` of them, sorted."""
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(rng.permutation(count)[:most])

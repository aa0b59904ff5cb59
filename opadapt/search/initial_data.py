"""Initial values of the channels that stay: which, and what makes up for the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Real = NDArray[np.float64]

RIDGE = 1e-3  # of the mean square of the channels, at least


def channels(rng: Rng, keep: int, *weights: Real) -> Real:
    """Indexes of the ``keep`` first-axis elements with the largest product of L1 norms, in order."""
    norms = [np.abs(w).reshape(w.shape[0], -1).sum(axis=1) for w in weights]
    scores = np.prod([n / (n.mean() or 1.0) for n in norms], axis=0)
    return np.sort(np.argsort(-scores, kind="stable")[:keep]).astype(np.float64)


def active(rng: Rng, keep: int, seen: Real | None, axis: int, *weights: Real) -> Real:
    """``channels`` by what the data show: the root mean square of the values ``seen`` along their channel ``axis``
    takes the place of all weights but the last, those that read the values."""
    if seen is None:
        return channels(rng, keep, *weights)
    others = tuple(a for a in range(seen.ndim) if a != axis)
    return channels(rng, keep, np.sqrt(np.square(seen).mean(axis=others)), weights[-1])


def refit(rng: Rng, w: Real, kept: Real, along: int, seen: Real | None, axis: int) -> Real:
    """``take(w, kept, along)``, with the dropped channels' weights on what the kept ones tell of them.

    Each dropped channel is replaced by the combination of kept ones at the same position that is nearest to it in the
    values ``seen`` (ridge regression; ``axis`` is that of the channels). Without values, nothing is
    added. After He et al. 2017, arXiv 1707.06168, section 3.1, who fit the layer's output instead.
    """
    chosen = kept.astype(np.int64)
    left = np.take(w, chosen, axis=along)
    if seen is None:
        return left
    rows = np.moveaxis(seen, axis, -1).reshape(-1, w.shape[along])
    dropped = np.setdiff1d(np.arange(w.shape[along]), chosen)
    moments = rows[:, chosen].T @ rows
    inner = moments[:, chosen]
    few = max(RIDGE, len(chosen) / len(rows))  # the fewer the samples, the less they are believed
    ridge = few * np.trace(inner) / len(chosen) or 1.0
    mix = np.linalg.solve(inner + ridge * np.eye(len(chosen)), moments[:, dropped])
    moved = np.tensordot(np.take(w, dropped, axis=along), mix, axes=(along, 1))
    return left + np.moveaxis(moved, -1, along)

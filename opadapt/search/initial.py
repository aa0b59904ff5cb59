"""Initial values of the parameters a rewrite makes, from the matched ones. A table of small closed forms.

Every function takes the rng first, then arrays, integers and strings as the rule writes them, and gives one
array or a tuple of arrays. All compute in float64 and are cast to float32 by the caller. Where a rule names a value
that is no parameter, the array is what samples of the inputs make of it, or None where there are no samples.

``keep``, ``mean``, ``zeros``, ``kaiming`` and ``channels`` are for rules of one's own, which are written without Python
(CONTRIBUTING.md); the shipped ones do without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.search.initial_data import active, channels, refit
from opadapt.search.initial_factors import factor, respond, tucker

Rng = np.random.Generator
Real = NDArray[np.float64]


def _keep(rng: Rng, w: Real) -> Real:
    return w


def _slice(rng: Rng, w: Real, axis: int, start: int, stop: int) -> Real:
    return np.take(w, range(start, stop), axis=axis)


def _take(rng: Rng, w: Real, indexes: Real, axis: int) -> Real:
    return np.take(w, indexes.astype(np.int64), axis=axis)


def _mean(rng: Rng, w: Real, axes: Sequence[int]) -> Real:
    return np.asarray(w.mean(axis=tuple(axes)))


def _sum(rng: Rng, w: Real, axes: Sequence[int]) -> Real:
    return np.asarray(w.sum(axis=tuple(axes)))


def _zeros(rng: Rng, shape: Sequence[int]) -> Real:
    return np.zeros(tuple(shape))


def _full(rng: Rng, shape: Sequence[int], value: float) -> Real:
    return np.full(tuple(shape), value, dtype=np.float64)


def _kaiming(rng: Rng, shape: Sequence[int], fan: int) -> Real:
    """Normal, with variance 2 / fan. arXiv 1502.01852, equation 10."""
    return rng.standard_normal(tuple(shape)) * math.sqrt(2.0 / fan)


def _identity(rng: Rng, size: int, kernel: Sequence[int] = ()) -> Real:
    """The weights [size, size, *kernel] of a dense layer or convolution that gives back its input."""
    return _tap(rng, np.eye(size), tuple(kernel))


def _tap(rng: Rng, w: Real, kernel: Sequence[int]) -> Real:
    """``w`` at the centre of kernels that are zero elsewhere: [..., *kernel]."""
    result = np.zeros((*w.shape, *kernel))
    result[(slice(None),) * w.ndim + tuple(k // 2 for k in kernel)] = w
    return result


def _between(rng: Rng, w: Real, before: int, after: int) -> Real:
    """``w`` with that many rows (elements of its first axis) of zeros before and after it."""
    return np.pad(w, [(before, after), *[(0, 0)] * (w.ndim - 1)])


def _crop(rng: Rng, w: Real, size: Sequence[int]) -> Real:
    """The centre of the last axes, ``size`` elements of each; a size of 0 takes the one central element."""
    for axis, want in enumerate(size, start=w.ndim - len(size)):
        low = (w.shape[axis] - max(want, 1)) // 2
        w = np.take(w, range(low, low + max(want, 1)), axis=axis)
    return w.reshape(*w.shape[: w.ndim - len(size)], *(s for s in size if s))


def _reshape(rng: Rng, w: Real, shape: Sequence[int]) -> Real:
    return w.reshape(tuple(shape))


def _einsum(rng: Rng, text: str, *operands: Real) -> Real:
    return np.asarray(np.einsum(text, *operands, optimize=True))


def _add(rng: Rng, a: Real, b: Real) -> Real:
    return a + b


def _subtract(rng: Rng, a: Real, b: Real) -> Real:
    return a - b


def _multiply(rng: Rng, a: Real, b: Real) -> Real:
    return a * b


def _rows(rng: Rng, w: Real, s: Real) -> Real:
    """``w`` with element i of its first axis scaled by s[i]."""
    return w * s.reshape(-1, *(1,) * (w.ndim - 1))


def _divide(rng: Rng, a: Real, b: Real) -> Real:
    return a / b


def _norm_scale(rng: Rng, scale: Real, var: Real, eps: float) -> Real:
    """The factor of inference batch normalisation. arXiv 1502.03167, section 3.1."""
    return scale / np.sqrt(var + eps)


def _grouped(rng: Rng, w: Real, groups: int) -> Real:
    """w[O,C,...] -> [G,O/G,C/G,...]: output j*G+g (a channel shuffle) keeps its weights on input group g."""
    out, inner = w.shape[0] // groups, w.shape[1] // groups
    split = w.reshape(out, groups, groups, inner, *w.shape[2:])
    return np.stack([split[:, g, g] for g in range(groups)])


def _blocks(rng: Rng, w: Real, groups: int) -> Real:
    """w[O,C,...] -> [G,O/G,C/G,...]: the blocks on the diagonal, what is nearest to w without the weights off it."""
    out, inner = w.shape[0] // groups, w.shape[1] // groups
    split = w.reshape(groups, out, groups, inner, *w.shape[2:])
    return np.stack([split[g, :, g] for g in range(groups)])


def _unfold(rng: Rng, w: Real, pads: Sequence[int], size: int) -> Real:
    """w[O,C,k,l] of stride 1, low paddings ``pads`` -> [O*size*size,C,size,size]: the same convolution from blocks of
    size x size positions to themselves. A tap outside of the block reads the nearest position inside."""

    def taps(kernel: int, pad: int) -> Real:
        """[a,i,k]: 1 where the output at a reads tap k at the block's position i."""
        at = np.clip(np.arange(size)[:, None] + np.arange(kernel)[None, :] - pad, 0, size - 1)
        return np.asarray(at[:, None, :] == np.arange(size)[None, :, None], dtype=np.float64)

    rows, columns = (taps(kernel, pad) for kernel, pad in zip(w.shape[2:], pads, strict=True))
    full = np.einsum("ockl,aik,bjl->oabcij", w, rows, columns, optimize=True)
    return np.asarray(full.reshape(-1, w.shape[1], size, size))


def _diagonals(rng: Rng, w: Real, count: int) -> Real:
    """The means of the ``count`` (odd) diagonals in the middle of a square matrix: the nearest band matrix whose
    rows are all alike, as the kernel of a convolution along its axes."""
    return np.array([np.diagonal(w, i - count // 2).mean() for i in range(count)])


def _regress(rng: Rng, target: Real, source: Real) -> Real:
    """For each first-axis element: the factor of ``source`` nearest to ``target`` (least squares)."""
    t, s = target.reshape(target.shape[0], -1), source.reshape(source.shape[0], -1)
    return np.asarray((t * s).sum(axis=1) / np.maximum((s * s).sum(axis=1), 1e-12))


def _compose(
    rng: Rng,
    first: Real,
    second: Real,
    stride: Sequence[int],
    offset: Sequence[int],
    size: Sequence[int],
    gain: float,
) -> Real:
    """The convolution [O,C,*size] that two convolutions make, [M,C,i,j] then [O,M,k,l], nothing between them.

    ``stride`` is the first one's; ``offset`` is where the result's kernel starts in the full one (negative if
    it starts before it). ``gain`` scales it: about 0.5 where a ReLU between them is dropped.
    """
    extents = [a + s * (b - 1) for a, b, s in zip(first.shape[2:], second.shape[2:], stride, strict=True)]
    full = np.zeros((second.shape[0], first.shape[1], *extents))
    rows, columns = first.shape[2:]
    for k in range(second.shape[2]):
        for m in range(second.shape[3]):
            top, left = k * stride[0], m * stride[1]
            part = np.einsum("om,mcij->ocij", second[:, :, k, m], first, optimize=True)
            full[:, :, top : top + rows, left : left + columns] += part
    result = np.zeros((*full.shape[:2], *size))
    have = [slice(max(o, 0), max(min(o + n, e), 0)) for o, n, e in zip(offset, size, extents, strict=True)]
    want = [slice(h.start - o, h.stop - o) for h, o in zip(have, offset, strict=True)]
    channels = slice(None)
    result[channels, channels, want[0], want[1]] = full[channels, channels, have[0], have[1]]
    return gain * result


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "keep": _keep,
    "slice": _slice,
    "take": _take,
    "mean": _mean,
    "sum": _sum,
    "zeros": _zeros,
    "full": _full,
    "kaiming": _kaiming,
    "identity": _identity,
    "tap": _tap,
    "between": _between,
    "crop": _crop,
    "reshape": _reshape,
    "einsum": _einsum,
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "rows": _rows,
    "norm_scale": _norm_scale,
    "factor": factor,
    "respond": respond,
    "tucker": tucker,
    "grouped": _grouped,
    "blocks": _blocks,
    "unfold": _unfold,
    "diagonals": _diagonals,
    "channels": channels,
    "active": active,
    "refit": refit,
    "regress": _regress,
    "compose": _compose,
}

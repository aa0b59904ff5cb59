"""Initial values of the parameters a rewrite makes, from the matched ones. A table of small closed forms.

Every function takes the rng first, then arrays, integers and strings as the rule writes them, and gives one
array or a tuple of arrays. All compute in float64 and are cast to float32 by the caller. Where a rule names a value
that is no parameter, the array is what samples of the inputs make of it, or None where there are no samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.errors import ProgramError

Rng = np.random.Generator
Real = NDArray[np.float64]

RIDGE = 1e-3  # of the mean square of the channels, at least


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


def _factor(rng: Rng, w: Real, text: str, rank: int = 1) -> tuple[Real, Real]:
    """The best two factors of a tensor, by truncated SVD, batched over letters that both have.

    ``factor(w, "ocij->rci,orj", rank=8)``: w[o,c,i,j] ~ sum over r of a[r,c,i] b[o,r,j]. The rank letter is
    the one that w lacks (none: rank 1, summed away). Each takes the square root of the singular values.
    """
    whole, _, parts = text.partition("->")
    first, _, second = parts.partition(",")
    extra = sorted((set(first) | set(second)) - set(whole))
    letter = extra[0] if extra else "_"
    shared = [c for c in whole if c in first and c in second]
    left = [c for c in whole if c in first and c not in second]
    right = [c for c in whole if c in second and c not in first]
    if len(extra) > 1 or len(shared) + len(left) + len(right) != len(whole) or len(whole) != w.ndim:
        raise ProgramError("factor: letters", expected=f"{w.ndim} letters, all in the factors", found=text)
    size = dict(zip(whole, w.shape, strict=True))
    order = [whole.index(c) for c in (*shared, *left, *right)]
    rows, columns = math.prod(size[c] for c in left), math.prod(size[c] for c in right)
    if not 1 <= rank <= min(rows, columns):
        raise ProgramError("factor: rank", expected=f"1 to {min(rows, columns)}", found=str(rank))
    batch = tuple(size[c] for c in shared)
    matrix = np.transpose(w, order).reshape(*batch, rows, columns)
    u, s, v = _svd(matrix.tobytes(), matrix.shape)
    root = np.sqrt(s[..., :rank])
    a = (u[..., :rank] * root[..., None, :]).reshape(*batch, *(size[c] for c in left), rank)
    b = (root[..., None] * v[..., :rank, :]).reshape(*batch, rank, *(size[c] for c in right))
    return _lay([*shared, *left, letter], first, a), _lay([*shared, letter, *right], second, b)


@lru_cache(maxsize=4)
def _svd(data: bytes, shape: tuple[int, ...]) -> tuple[Real, Real, Real]:
    """Thin SVD. Kept, as the ranks of one rule are tried one after the other (512x512x3x3 takes seconds)."""
    u, s, v = np.linalg.svd(np.frombuffer(data).reshape(shape), full_matrices=False)
    return u, s, v


def _lay(have: list[str], want: str, array: Real) -> Real:
    """Axes in the order wanted; the rank axis, of size 1, goes where it is not wanted."""
    absent = [axis for axis, letter in enumerate(have) if letter not in want]
    kept = [letter for letter in have if letter in want]
    return np.transpose(array.squeeze(tuple(absent)), [kept.index(letter) for letter in want])


def _respond(rng: Rng, w: Real, text: str, rank: int, seen: Real | None, axis: int) -> tuple[Real, Real]:
    """``factor`` of a layer, nearest in its outputs ``seen`` instead of its weights: onto their principal directions.

    ``axis`` is that of the output channels; the letter of the second factor that w has is theirs. The outputs of white
    inputs are mixed in, the more the fewer were seen. Without outputs: ``factor``. arXiv 1505.06798, section 3.1.
    """
    if seen is None:
        return _factor(rng, w, text, rank)
    whole, _, parts = text.partition("->")
    first, _, second = parts.partition(",")
    (out,), (letter,) = set(whole) & set(second), set(first) - set(whole)
    outputs = np.moveaxis(seen, axis, 0).reshape(w.shape[whole.index(out)], -1)
    white = np.moveaxis(w, whole.index(out), 0).reshape(len(outputs), -1)
    few = max(RIDGE, len(outputs) / outputs.shape[1])
    scale = math.sqrt(few * np.square(outputs).sum() / (np.square(white).sum() or 1.0))
    basis = _principal(np.concatenate([outputs, scale * white], axis=1), rank)
    reduce = np.einsum(f"{whole},{out}{letter}->{letter}{first.replace(letter, '')}", w, basis, optimize=True)
    size = np.sqrt(np.sqrt(np.square(reduce).reshape(rank, -1).sum(axis=1)))  # shared by both factors
    size[size == 0] = 1.0
    a = np.einsum(f"{letter}{first.replace(letter, '')}->{first}", _rows(rng, reduce, 1 / size))
    return np.asarray(a), np.asarray(np.einsum(f"{out}{letter}->{second}", basis * size))


def _tucker(rng: Rng, w: Real, out_rank: int, in_rank: int) -> tuple[Real, Real, Real]:
    """w[o,c,...] ~ a[o,s] core[s,r,...] b[r,c]. arXiv 1511.06530, section 3.1.

    By higher-order SVD, improved by two sweeps of alternating least squares, each factor the best for the other one
    (HOOI: Kolda and Bader 2009, SIAM Review 51, section 4.2).
    """
    if not (1 <= out_rank <= w.shape[0] and 1 <= in_rank <= w.shape[1]):
        raise ProgramError("tucker: ranks", expected=f"up to {w.shape[:2]}", found=f"{(out_rank, in_rank)}")
    a, b = _principal(w, out_rank), _principal(np.moveaxis(w, 1, 0), in_rank)
    for _ in range(2):
        a = _principal(np.einsum("oc...,cr->or...", w, b, optimize=True), out_rank)
        b = _principal(np.einsum("oc...,os->cs...", w, a, optimize=True), in_rank)
    return b.T, np.einsum("oc...,os,cr->sr...", w, a, b, optimize=True), a


def _principal(w: Real, rank: int) -> Real:
    """The first left singular vectors [n, rank] of w[n, ...], from the eigenvectors of the Gram matrix."""
    rows = w.reshape(w.shape[0], -1)
    return np.asarray(np.linalg.eigh(rows @ rows.T)[1][:, : -rank - 1 : -1])


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


def _channels(rng: Rng, keep: int, *weights: Real) -> Real:
    """Indexes of the ``keep`` first-axis elements with the largest product of L1 norms, in order."""
    norms = [np.abs(w).reshape(w.shape[0], -1).sum(axis=1) for w in weights]
    scores = np.prod([n / (n.mean() or 1.0) for n in norms], axis=0)
    return np.sort(np.argsort(-scores, kind="stable")[:keep]).astype(np.float64)


def _active(rng: Rng, keep: int, seen: Real | None, axis: int, *weights: Real) -> Real:
    """``channels`` by what the data show: the root mean square of the values ``seen`` along their channel ``axis``
    takes the place of all weights but the last, those that read the values."""
    if seen is None:
        return _channels(rng, keep, *weights)
    others = tuple(a for a in range(seen.ndim) if a != axis)
    return _channels(rng, keep, np.sqrt(np.square(seen).mean(axis=others)), weights[-1])


def _refit(rng: Rng, w: Real, kept: Real, along: int, seen: Real | None, axis: int) -> Real:
    """``take(w, kept, along)``, with the dropped channels' weights on what the kept ones tell of them.

    Each dropped channel is replaced by the combination of kept ones at the same position that is nearest to it in the
    values ``seen`` (ridge regression; ``axis`` is that of the channels). Without values, nothing is
    added. After He et al. 2017, arXiv 1707.06168, section 3.1, who fit the layer's output instead.
    """
    left = _take(rng, w, kept, along)
    if seen is None:
        return left
    channels = np.moveaxis(seen, axis, -1).reshape(-1, w.shape[along])
    chosen = kept.astype(np.int64)
    dropped = np.setdiff1d(np.arange(w.shape[along]), chosen)
    moments = channels[:, chosen].T @ channels
    inner = moments[:, chosen]
    few = max(RIDGE, len(chosen) / len(channels))  # the fewer the samples, the less they are believed
    ridge = few * np.trace(inner) / len(chosen) or 1.0
    mix = np.linalg.solve(inner + ridge * np.eye(len(chosen)), moments[:, dropped])
    moved = np.tensordot(np.take(w, dropped, axis=along), mix, axes=(along, 1))
    return left + np.moveaxis(moved, -1, along)


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
    "crop": _crop,
    "reshape": _reshape,
    "einsum": _einsum,
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "rows": _rows,
    "norm_scale": _norm_scale,
    "factor": _factor,
    "respond": _respond,
    "tucker": _tucker,
    "grouped": _grouped,
    "blocks": _blocks,
    "unfold": _unfold,
    "diagonals": _diagonals,
    "channels": _channels,
    "active": _active,
    "refit": _refit,
    "regress": _regress,
    "compose": _compose,
}

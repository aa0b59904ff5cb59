"""Initial values of factors: a layer as the product of smaller ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from opadapt.errors import ProgramError
from opadapt.search.kept import Kept, fingerprint

Rng = np.random.Generator
Real = NDArray[np.float64]

RIDGE = 1e-3  # of the mean square of the outputs, at least

# The ranks of a rule are tried one after the other, each for all members (512x512x3x3 takes seconds).
_KEPT = Kept()


def factor(rng: Rng, w: Real, text: str, rank: int = 1) -> tuple[Real, Real]:
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
    u, s, v = _KEPT(fingerprint(matrix), lambda: tuple(np.linalg.svd(matrix, full_matrices=False)))
    root = np.sqrt(s[..., :rank])
    a = (u[..., :rank] * root[..., None, :]).reshape(*batch, *(size[c] for c in left), rank)
    b = (root[..., None] * v[..., :rank, :]).reshape(*batch, rank, *(size[c] for c in right))
    return _lay([*shared, *left, letter], first, a), _lay([*shared, letter, *right], second, b)


def _lay(have: list[str], want: str, array: Real) -> Real:
    """Axes in the order wanted; the rank axis, of size 1, goes where it is not wanted."""
    absent = [axis for axis, letter in enumerate(have) if letter not in want]
    kept = [letter for letter in have if letter in want]
    return np.transpose(array.squeeze(tuple(absent)), [kept.index(letter) for letter in want])


def respond(rng: Rng, w: Real, text: str, rank: int, seen: Real | None, axis: int) -> tuple[Real, Real]:
    """``factor`` of a layer, nearest in its outputs ``seen`` instead of its weights: onto their principal directions.

    ``axis`` is that of the output channels; the letter of the second factor that w has is theirs. Without outputs:
    ``factor``. arXiv 1505.06798, section 3.1.
    """
    if seen is None:
        return factor(rng, w, text, rank)
    whole, _, parts = text.partition("->")
    first, _, second = parts.partition(",")
    (out,), (letter,) = set(whole) & set(second), set(first) - set(whole)
    layer = np.moveaxis(w, whole.index(out), 0).reshape(w.shape[whole.index(out)], -1)
    if not 1 <= rank <= min(layer.shape):
        raise ProgramError("respond: rank", expected=f"1 to {min(layer.shape)}", found=str(rank))
    outputs = np.moveaxis(seen, axis, 0).reshape(len(layer), -1)
    key = (fingerprint(w, seen), whole.index(out), axis)
    basis = _KEPT(key, lambda: (_directions(layer, outputs),))[0][:, :rank]
    reduce = np.einsum(f"{whole},{out}{letter}->{letter}{first.replace(letter, '')}", w, basis, optimize=True)
    size = np.sqrt(np.sqrt(np.square(reduce).reshape(rank, -1).sum(axis=1)))  # shared by both factors
    size[size == 0] = 1.0
    a = np.einsum(f"{letter}{first.replace(letter, '')},{letter}->{first}", reduce, 1 / size)
    return np.asarray(a), np.asarray(np.einsum(f"{out}{letter}->{second}", basis * size))


def _directions(layer: Real, outputs: Real) -> Real:
    """The principal directions [o, min(o, i)] of the outputs [o, ...] of a layer [o, i], the first of most variance.

    The outputs of white inputs are mixed in, the more the fewer were seen. A layer that gives more than it reads gives
    combinations of its weights' columns alone: among those is searched.
    """
    few = max(RIDGE, len(outputs) / outputs.shape[1])
    white = layer * math.sqrt(few * np.square(outputs).sum() / (np.square(layer).sum() or 1.0))
    if layer.shape[1] >= len(layer):
        return _principal(np.concatenate([outputs, white], axis=1), len(layer))
    span = np.linalg.qr(layer)[0]
    within = [span.T @ outputs, span.T @ white]
    return np.asarray(span @ _principal(np.concatenate(within, axis=1), layer.shape[1]))


def tucker(rng: Rng, w: Real, out_rank: int, in_rank: int) -> tuple[Real, Real, Real]:
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

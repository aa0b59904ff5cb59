"""Reductions and normalisations over several axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def arg_last(x: Tensor, axis: int, keepdim: bool, largest: bool) -> Tensor:
    """ArgMax or ArgMin with select_last_index."""
    flipped = x.flip(axis)
    found = (torch.argmax if largest else torch.argmin)(flipped, axis, keepdim)
    return x.shape[axis] - 1 - found


def prod_axes(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Product over several axes (torch takes one)."""
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim, dtype=x.dtype)
    return x


def max_axes(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return torch.amax(x, tuple(axes), keepdim)


def min_axes(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return torch.amin(x, tuple(axes), keepdim)


def sum_axes(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ReduceSum: the sum of integers keeps their type."""
    return x.sum(tuple(axes), keepdim, dtype=x.dtype)


def sum_abs(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return sum_axes(x.abs(), axes, keepdim)


def sum_square(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return sum_axes(x.square(), axes, keepdim)


def root_sum_square(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ReduceL2; vector_norm has the gradient 0, not NaN, at 0."""
    norm: Tensor = torch.linalg.vector_norm(x, 2, tuple(axes), keepdim)
    return norm


def log_sum(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return x.sum(tuple(axes), keepdim).log()


def cumulative_sum(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(axis) if reverse else total


def layer_norm(x: Tensor, axis: int, scale: Tensor, shift: Tensor | None, eps: float) -> Tensor:
    """LayerNormalization over the axes from ``axis`` on; scale and shift broadcast."""
    shape = x.shape[axis:]
    if scale.shape == shape and (shift is None or shift.shape == shape):
        return F.layer_norm(x, shape, scale, shift, eps)
    plain = F.layer_norm(x, shape, None, None, eps) * scale
    return plain if shift is None else plain + shift


def layer_statistics(x: Tensor, axis: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation, the optional outputs of LayerNormalization."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + eps)


def rms_norm(x: Tensor, axis: int, scale: Tensor, eps: float) -> Tensor:
    axes = tuple(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps) * scale


def lp_normalize(x: Tensor, p: int, axis: int) -> Tensor:
    """LpNormalization: a zero vector stays zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance(x: Tensor, axes: Sequence[int]) -> Tensor:
    """MeanVarianceNormalization, with the 1e-9 of its definition."""
    variance, mean = torch.var_mean(x, tuple(axes), correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)

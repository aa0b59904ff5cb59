"""Functions the running graph calls where torch has no single one. Sizes come from the tensors at run time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def from_numbers(
    flat: Sequence[float], shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor of Python numbers of the running graph (sizes, mostly)."""
    return torch.tensor(flat, dtype=dtype, device=device).reshape(tuple(shape))


def divide_ints(a: int, b: int) -> int:
    """Integer division of ONNX: towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def choose(condition: bool, yes: Any, no: Any) -> Any:
    """Where on Python numbers."""
    return yes if condition else no


def torch_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """ONNX pads -> those of F.pad: (low, high) per axis, last axis first."""
    return [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]


def same_pads(
    sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], upper: bool
) -> tuple[list[int], list[int]]:
    """Pads of auto_pad SAME_UPPER and SAME_LOWER: as many positions as ceil(size / stride)."""
    totals = [max(0, (-(-n // s) - 1) * s + e - n) for n, e, s in zip(sizes, extents, strides, strict=True)]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (less, more) if upper else (more, less)


def pad_same(x: Tensor, extents: Sequence[int], strides: Sequence[int], upper: bool, value: float) -> Tensor:
    """x padded as auto_pad says; x is [N, C, sizes...]."""
    begin, end = same_pads(x.shape[2:], extents, strides, upper)
    return F.pad(x, torch_pads(begin, end), value=value) if any(begin) or any(end) else x


def ceil_extension(
    sizes: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
) -> list[int]:
    """Elements missing at the end of each axis for the last window of ceil_mode; a window that would start
    beyond the data and its low pad is left out (as ONNX Runtime and torch do)."""
    missing = []
    for n, lo, hi, e, s in zip(sizes, begin, end, extents, strides, strict=True):
        count = -(-(n + lo + hi - e) // s) + 1
        if (count - 1) * s >= n + lo:
            count -= 1
        missing.append(max(0, (count - 1) * s + e - (n + lo + hi)))
    return missing


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
) -> Tensor:
    """Max pooling with any pads: the general form, by explicit padding with -inf."""
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    if ceil:
        missing = ceil_extension(x.shape[2:], begin, end, extents, strides)
        end = [hi + m for hi, m in zip(end, missing, strict=True)]
    padded = F.pad(x, torch_pads(begin, end), value=-math.inf)
    return MAX_POOL[len(kernel)](padded, list(kernel), list(strides), 0, list(dilations))


def average_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
    include_pad: bool,
) -> Tensor:
    """Average pooling with any pads and dilations: sums of a window over its number of counted elements.

    Pads count where ``include_pad``; what ceil_mode adds beyond them never does.
    """
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = x.shape[2:]
    missing = ceil_extension(sizes, begin, end, extents, strides) if ceil else [0] * len(kernel)
    counted = x.new_ones((1, 1, *sizes))
    if include_pad:
        counted = F.pad(counted, torch_pads(begin, end), value=1.0)
        counted = F.pad(counted, torch_pads([0] * len(kernel), missing))
    else:
        counted = F.pad(counted, torch_pads(begin, [h + m for h, m in zip(end, missing, strict=True)]))
    padded = F.pad(x, torch_pads(begin, [h + m for h, m in zip(end, missing, strict=True)]))
    ones = x.new_ones((1, 1, *kernel))
    conv = CONV[len(kernel)]
    # one channel at a time through the batch axis: a sum has no weights to share
    flat = padded.reshape(-1, 1, *padded.shape[2:])
    total = conv(flat, ones, None, list(strides), 0, list(dilations))
    number = conv(counted, ones, None, list(strides), 0, list(dilations))
    return (total / number).reshape(*x.shape[:2], *total.shape[2:])


def flatten(x: Tensor, axis: int) -> Tensor:
    """ONNX Flatten: two axes, the sizes before ``axis`` and those from it on."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """ONNX Expand: both sides broadcast."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX Gather: negative indices count from the end; the axes of ``indices`` replace ``axis``."""
    axis = axis + x.dim() if axis < 0 else axis
    flat = indices.reshape(-1).long()
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX GatherElements."""
    wrapped = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    return torch.gather(x, axis, wrapped)


def slice_back(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """A slice with a negative step."""
    first, stop, by = slice(start, end, step).indices(x.shape[axis])
    return x.index_select(axis, torch.arange(first, min(stop, first), by, device=x.device))


def pad_axis(x: Tensor, axis: int, low: int, high: int, mode: str) -> Tensor:
    """Pad (or crop, where negative) one axis by reflect, edge or wrap."""
    n = x.shape[axis]
    index = torch.arange(-low, n + high, device=x.device)
    if mode == "edge":
        index = index.clamp(0, n - 1)
    elif mode == "wrap":
        index = index % n
    else:
        period = max(1, 2 * (n - 1))
        index = (n - 1) - ((index % period) - (n - 1)).abs()
    return x.index_select(axis, index)


def softmax_flat(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax before opset 13: over all axes from ``axis`` on."""
    flat = x.flatten(axis)
    return (F.log_softmax(flat, -1) if log else F.softmax(flat, -1)).reshape(x.shape)


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """DepthToSpace in mode DCR: depth index = (row, column, channel)."""
    n, c, h, w = x.shape
    split = x.reshape(n, block, block, c // block**2, h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // block, block, w // block, block)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


def arg_last(x: Tensor, axis: int, keepdim: bool, largest: bool) -> Tensor:
    """ArgMax or ArgMin with select_last_index."""
    flipped = x.flip(axis)
    found = (torch.argmax if largest else torch.argmin)(flipped, axis, keepdim)
    return x.shape[axis] - 1 - found


def prod_axes(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Product over several axes (torch takes one)."""
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


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


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without the linear shortcut that F.softplus takes above 20."""
    return torch.logaddexp(x, x.new_zeros(()))


def elu(x: Tensor, alpha: float) -> Tensor:
    return F.elu(x, alpha)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * F.elu(x, alpha)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return F.threshold(x, alpha, 0.0)


def shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def swish(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


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


def max_axes(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return torch.amax(x, tuple(axes), keepdim)


def min_axes(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return torch.amin(x, tuple(axes), keepdim)


def sum_abs(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return x.abs().sum(tuple(axes), keepdim)


def sum_square(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return x.square().sum(tuple(axes), keepdim)


def root_sum_square(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ReduceL2; vector_norm has the gradient 0, not NaN, at 0."""
    return torch.linalg.vector_norm(x, 2, tuple(axes), keepdim)


def log_sum(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return x.sum(tuple(axes), keepdim).log()


def cumulative_sum(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis)
    total = total - x if exclusive else total
    return total.flip(axis) if reverse else total


def resize_axis(
    x: Tensor,
    axis: int,
    size: int | None,
    scale: float | None,
    mode: str,
    coordinates: str,
    nearest: str,
) -> Tensor:
    """ONNX Resize along one axis, to ``size`` elements or by ``scale``."""
    n = x.shape[axis]
    count = math.floor(n * scale) if size is None and scale is not None else int(size or 0)
    factor = count / n if scale is None else scale
    where = torch.arange(count, device=x.device, dtype=torch.float32)
    if coordinates == "align_corners":
        where = where * ((n - 1) / (count - 1)) if count > 1 else where * 0
    elif coordinates == "asymmetric":
        where = where / factor
    elif coordinates == "pytorch_half_pixel" and count == 1:
        where = where * 0
    else:
        where = (where + 0.5) / factor - 0.5
        if coordinates == "half_pixel_symmetric":
            where = where + n / 2 * (1 - count / (factor * n))
    if mode == "nearest":
        return x.index_select(axis, _NEAREST[nearest](where).long().clamp(0, n - 1))
    low = where.floor()
    weight = (where - low).to(x.dtype).reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    index = low.long()
    left = x.index_select(axis, index.clamp(0, n - 1))
    right = x.index_select(axis, (index + 1).clamp(0, n - 1))
    return left + (right - left) * weight


_NEAREST = {
    "round_prefer_floor": lambda w: torch.ceil(w - 0.5),
    "round_prefer_ceil": lambda w: torch.floor(w + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}

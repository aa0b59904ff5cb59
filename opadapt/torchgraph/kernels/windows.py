"""Padding for sliding windows, and pooling in its general forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


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


def add_channels(x: Tensor, bias: Tensor) -> Tensor:
    """x [N, C, ...] plus one number per channel."""
    return x + bias.reshape(-1, *[1] * (x.dim() - 2))

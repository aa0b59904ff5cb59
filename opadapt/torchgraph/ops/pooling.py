"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import fx

from opadapt.torchgraph.context import Builder, Context, Op
from opadapt.torchgraph.kernels import windows
from opadapt.torchgraph.ops.convolution import window_pads

_AVERAGE: Mapping[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _window(ctx: Context, op: Op, value: float) -> tuple[fx.Node, tuple[list[int], ...], bool]:
    """The input, (kernel, strides, begin, end, dilations), and whether torch's own padding can express it."""
    kernel = list(op.attrs["kernel_shape"])
    if len(kernel) not in _AVERAGE:
        raise op.refuse(f"{len(kernel)} spatial axes")
    ones = [1] * len(kernel)
    strides, dilations = list(op.attrs.get("strides", ones)), list(op.attrs.get("dilations", ones))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    x, begin, end = window_pads(ctx, op, ctx.tensor(op, 0), extents, strides, value)
    native = begin == end and all(0 <= p <= k // 2 for p, k in zip(begin, kernel, strict=True))
    return x, (kernel, strides, begin, end, dilations), native


def _max_pool(ctx: Context, op: Op) -> fx.Node:
    if op.attrs.get("storage_order", 0):
        raise op.refuse("column-major indices")
    ceil = bool(op.attrs.get("ceil_mode", 0))
    x, window, native = _window(ctx, op, -math.inf)
    if native:
        kernel, strides, begin, _, dilations = window
        return ctx.call(windows.MAX_POOL[len(kernel)], x, kernel, strides, begin, dilations, ceil)
    return ctx.call(windows.max_pool, x, *window, ceil)


def _average_pool(ctx: Context, op: Op) -> fx.Node:
    ceil, include = bool(op.attrs.get("ceil_mode", 0)), bool(op.attrs.get("count_include_pad", 0))
    if (
        op.attrs.get("auto_pad", "NOTSET").startswith("SAME")
        and None in (ctx.shape(op.input(0)) or (None,))[2:]
    ):
        raise op.refuse("auto_pad with free sizes")
    x, window, native = _window(ctx, op, 0.0)
    kernel, strides, begin, _, dilations = window
    if native and set(dilations) == {1}:
        return ctx.call(_AVERAGE[len(kernel)], x, kernel, strides, begin, ceil, include)
    return ctx.call(windows.average_pool, x, *window, ceil, include)


def _global(reduce: str, ctx: Context, op: Op) -> fx.Node:
    axes = list(range(2, ctx.rank(op, 0)))
    return ctx.method(reduce, ctx.tensor(op, 0), axes, True)


BUILDERS: Mapping[str, Builder] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": partial(_global, "mean"),
    "GlobalMaxPool": partial(_global, "amax"),
}

"""Convolutions of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx

from opadapt.torchgraph.context import Builder, Context, Op
from opadapt.torchgraph.kernels import windows

_TRANSPOSED: Mapping[int, Callable[..., Any]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def kernel_sizes(ctx: Context, op: Op) -> list[int]:
    """Spatial sizes of the kernel: the attribute, or the weight's."""
    if "kernel_shape" in op.attrs:
        return list(op.attrs["kernel_shape"])
    shape = ctx.shape(op.input(1))
    if shape is None or any(d is None for d in shape[2:]):
        raise op.refuse("the kernel's size is not known")
    return [d for d in shape[2:] if d is not None]


def explicit_pads(op: Op, axes: int) -> tuple[list[int], list[int]]:
    """The pads attribute as (begin, end); zeros for auto_pad VALID and where it is absent."""
    pads = list(op.attrs.get("pads", [0] * (2 * axes)))
    if op.attrs.get("auto_pad", "NOTSET") == "VALID":
        pads = [0] * (2 * axes)
    return pads[:axes], pads[axes:]


def window_pads(
    ctx: Context, op: Op, x: fx.Node, extents: list[int], strides: list[int], value: float
) -> tuple[fx.Node, list[int], list[int]]:
    """The input and the pads still to apply. Where auto_pad depends on free sizes, the input comes padded."""
    auto = op.attrs.get("auto_pad", "NOTSET")
    if not auto.startswith("SAME"):
        return x, *explicit_pads(op, len(extents))
    upper = auto == "SAME_UPPER"
    sizes = (ctx.shape(op.input(0)) or (None,) * (2 + len(extents)))[2:]
    known = [d for d in sizes if d is not None]
    if len(known) == len(extents):
        return x, *windows.same_pads(known, extents, strides, upper)
    zeros = [0] * len(extents)
    return ctx.call(windows.pad_same, x, extents, strides, upper, value), zeros, zeros


def _conv(ctx: Context, op: Op) -> fx.Node:
    kernel = kernel_sizes(ctx, op)
    if len(kernel) not in windows.CONV:
        raise op.refuse(f"{len(kernel)} spatial axes")
    ones = [1] * len(kernel)
    strides, dilations = list(op.attrs.get("strides", ones)), list(op.attrs.get("dilations", ones))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    x, begin, end = window_pads(ctx, op, ctx.tensor(op, 0), extents, strides, 0.0)
    if begin != end or min(begin) < 0:
        x = ctx.call(F.pad, x, windows.torch_pads(begin, end))
        begin = [0] * len(kernel)
    weight, bias, groups = ctx.tensor(op, 1), ctx.optional(op, 2), op.attrs.get("group", 1)
    return ctx.call(windows.CONV[len(kernel)], x, weight, bias, strides, begin, dilations, groups)


def _conv_transpose(ctx: Context, op: Op) -> fx.Node:
    kernel = kernel_sizes(ctx, op)
    if len(kernel) not in _TRANSPOSED:
        raise op.refuse(f"{len(kernel)} spatial axes")
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    strides, dilations = list(op.attrs.get("strides", ones)), list(op.attrs.get("dilations", ones))
    extra = list(op.attrs.get("output_padding", zeros))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = _transposed_pads(ctx, op, extents, strides, extra)
    weight, bias, groups = ctx.tensor(op, 1), ctx.optional(op, 2), op.attrs.get("group", 1)
    function, x = _TRANSPOSED[len(kernel)], ctx.tensor(op, 0)
    if begin == end and min(begin) >= 0:
        return ctx.call(function, x, weight, bias, strides, begin, extra, groups, dilations)
    # cropped, or extended where output_shape asks for more than the kernel reaches: bias alone is there
    full = ctx.call(function, x, weight, None, strides, zeros, extra, groups, dilations)
    cut = ctx.call(F.pad, full, windows.torch_pads([-b for b in begin], [-e for e in end]))
    return cut if bias is None else ctx.call(windows.add_channels, cut, bias)


def _transposed_pads(
    ctx: Context, op: Op, extents: list[int], strides: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """What is cut from the full output: the pads, or what output_shape and auto_pad leave over."""
    auto = op.attrs.get("auto_pad", "NOTSET")
    if "output_shape" not in op.attrs and not auto.startswith("SAME"):
        return explicit_pads(op, len(extents))
    sizes = (ctx.shape(op.input(0)) or (None,) * (2 + len(extents)))[2:]
    if "output_shape" in op.attrs:
        known = [d for d in sizes if d is not None]
        if len(known) != len(extents):
            raise op.refuse("output_shape with free sizes")
        wanted = list(op.attrs["output_shape"])[-len(extents) :]
        totals = [
            s * (n - 1) + p + e - w
            for s, n, p, e, w in zip(strides, known, extra, extents, wanted, strict=True)
        ]
    else:  # size times stride, whatever the size
        totals = [p + e - s for s, p, e in zip(strides, extra, extents, strict=True)]
    # a negative total extends the output at its end, as in ONNX Runtime
    less = [max(0, t) // 2 for t in totals]
    more = [t - half for t, half in zip(totals, less, strict=True)]
    return (more, less) if auto == "SAME_LOWER" and min(totals) >= 0 else (less, more)


BUILDERS: Mapping[str, Builder] = {"Conv": _conv, "ConvTranspose": _conv_transpose}

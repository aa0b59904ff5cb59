"""Resize and Upsample by nearest neighbour and linear interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx

from opadapt.torchgraph.context import Builder, Context, Op
from opadapt.torchgraph.kernels import movement
from opadapt.torchgraph.ops.shape import numbers

_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners")


def _upsample(ctx: Context, op: Op) -> fx.Node:
    scales = op.attrs.get("scales")
    if scales is None:
        scales = numbers(ctx, op, 1, "scales")
    return _build(ctx, op, scales, None, "asymmetric", "floor")


def _resize(ctx: Context, op: Op) -> fx.Node:
    if ctx.opset < 11:
        return _build(ctx, op, numbers(ctx, op, 1, "scales"), None, "asymmetric", "floor")
    if op.attrs.get("antialias", 0) or op.attrs.get("exclude_outside", 0):
        raise op.refuse("antialias and exclude_outside")
    if op.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise op.refuse("a keep_aspect_ratio_policy other than stretch")
    scales = numbers(ctx, op, 2, "scales") or None
    sizes = numbers(ctx, op, 3, "sizes") or None
    coordinates = op.attrs.get("coordinate_transformation_mode", "half_pixel")
    return _build(ctx, op, scales, sizes, coordinates, op.attrs.get("nearest_mode", "round_prefer_floor"))


def _build(
    ctx: Context, op: Op, scales: list[Any] | None, sizes: list[Any] | None, coordinates: str, nearest: str
) -> fx.Node:
    mode = op.attrs.get("mode", "nearest")
    if mode not in ("nearest", "linear") or coordinates not in _COORDINATES:
        raise op.refuse(f"mode {mode} with {coordinates}")
    given = scales if sizes is None else sizes
    if given is None:
        raise op.refuse("neither scales nor sizes")
    x = ctx.tensor(op, 0)
    axes = [int(a) for a in op.attrs.get("axes", range(len(given)))]
    if _is_nearest_2d(mode, coordinates, nearest, axes, scales) and scales is not None:
        return ctx.call(F.interpolate, x, scale_factor=[float(s) for s in scales[-2:]], mode="nearest")
    known = ctx.shape(op.input(0))
    for i, axis in enumerate(axes):
        if scales is not None and scales[i] == 1:
            continue
        if sizes is not None and known is not None and known[axis] is not None and known[axis] == sizes[i]:
            continue
        size = None if sizes is None else sizes[i]
        scale = None if scales is None or sizes is not None else float(scales[i])
        x = ctx.call(movement.resize_axis, x, axis, size, scale, mode, coordinates, nearest)
    return x


def _is_nearest_2d(
    mode: str, coordinates: str, nearest: str, axes: list[int], scales: list[Any] | None
) -> bool:
    """Repetition of rows and columns by whole factors, for which the usual coordinate rules agree."""
    if mode != "nearest" or scales is None or len(axes) != 4 or axes != [0, 1, 2, 3]:
        return False
    rules = {
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
    }
    whole = all(isinstance(s, float | int) and float(s).is_integer() for s in scales)
    return whole and scales[0] == scales[1] == 1 and (coordinates, nearest) in rules


BUILDERS: Mapping[str, Builder] = {"Resize": _resize, "Upsample": _upsample}

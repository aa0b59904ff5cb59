"""Pad, in its attribute form (before opset 11) and its input form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx

from opadapt.torchgraph.context import Builder, Context, Op
from opadapt.torchgraph.kernels import movement, windows
from opadapt.torchgraph.ops.shape import numbers


def _pad(ctx: Context, op: Op) -> fx.Node:
    pads, mode = numbers(ctx, op, 1, "pads"), op.attrs.get("mode", "constant")
    if pads is None:
        raise op.refuse("no pads")
    value = op.attrs.get("value", 0.0)
    if (given := ctx.known(op, 2)) is not None and given.size:
        value = given.reshape(()).item()
    begin, end = _per_axis(ctx, op, pads)
    x = ctx.tensor(op, 0)
    if mode == "constant":
        # leading axes without pads are left out: torch takes the last axes alone
        first = next((i for i, pair in enumerate(zip(begin, end, strict=True)) if pair != (0, 0)), None)
        if first is None:
            return x
        return ctx.call(F.pad, x, windows.torch_pads(begin[first:], end[first:]), value=value)
    for axis, (low, high) in enumerate(zip(begin, end, strict=True)):
        if (low, high) != (0, 0):
            x = ctx.call(movement.pad_axis, x, axis, low, high, mode)
    return x


def _per_axis(ctx: Context, op: Op, pads: list[Any]) -> tuple[list[Any], list[Any]]:
    """(begin, end) pads of every axis."""
    axes = numbers(ctx, op, 3, "axes")
    half = len(pads) // 2
    if axes is None:
        return pads[:half], pads[half:]
    rank = ctx.rank(op, 0)
    begin: list[Any] = [0] * rank
    end: list[Any] = [0] * rank
    for i, axis in enumerate(axes):
        begin[axis % rank], end[axis % rank] = pads[i], pads[half + i]
    return begin, end


BUILDERS: Mapping[str, Builder] = {"Pad": _pad}

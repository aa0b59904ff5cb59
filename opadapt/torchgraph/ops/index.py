"""Selections of elements."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from opadapt.torchgraph.context import Builder, Context, Host, Op
from opadapt.torchgraph.kernels import movement
from opadapt.torchgraph.ops.shape import numbers


def _slice(ctx: Context, op: Op) -> fx.Node:
    starts, ends = numbers(ctx, op, 1, "starts"), numbers(ctx, op, 2, "ends")
    if starts is None or ends is None:
        raise op.refuse("no bounds")
    axes = numbers(ctx, op, 3, "axes") or list(range(len(starts)))
    steps = numbers(ctx, op, 4, "steps") or [1] * len(starts)
    x = ctx.tensor(op, 0)
    index: dict[int, slice] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            x = ctx.call(movement.slice_back, x, axis, start, end, step)
        elif not (isinstance(start, int) and isinstance(end, int)) or (start, end, step) != (0, _END, 1):
            index[axis % ctx.rank(op, 0) if axis < 0 else axis] = slice(start, end, step)
    if not index:
        return x
    return ctx.call(operator.getitem, x, tuple(index.get(a, slice(None)) for a in range(max(index) + 1)))


_END = 2**63 - 1


def _gather(ctx: Context, op: Op) -> fx.Node:
    x, axis, indices = ctx.tensor(op, 0), op.attrs.get("axis", 0), ctx.value(op, op.input(1))
    if isinstance(indices, Host) and indices.known:
        if indices.array.ndim == 0:
            return ctx.method("select", x, axis, int(indices.array))
        if indices.array.ndim == 1 and (indices.array >= 0).all():
            return ctx.call(torch.index_select, x, axis, ctx.tensor(op, 1))
    return ctx.call(movement.gather, x, ctx.tensor(op, 1), axis)


def _gather_elements(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(movement.gather_elements, ctx.tensor(op, 0), ctx.tensor(op, 1), op.attrs.get("axis", 0))


def _trilu(ctx: Context, op: Op) -> fx.Node:
    diagonal = ctx.known(op, 1)
    function: Any = torch.triu if op.attrs.get("upper", 1) else torch.tril
    return ctx.call(function, ctx.tensor(op, 0), 0 if diagonal is None else int(diagonal.item()))


BUILDERS: Mapping[str, Builder] = {
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Trilu": _trilu,
}

"""Reductions, arg-reductions and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from opadapt.torchgraph.context import Builder, Context, Op
from opadapt.torchgraph.kernels import statistics


def axes_of(ctx: Context, op: Op, index: int, name: str = "axes") -> list[int] | None:
    """Axes from an input (newer opsets) or an attribute (older ones); None where absent."""
    given = ctx.known(op, index)
    if given is not None:
        return [int(a) for a in given.reshape(-1)]
    return [int(a) for a in op.attrs[name]] if name in op.attrs else None


def _reduce(function: Callable[..., Any], elementwise: Callable[..., Any], ctx: Context, op: Op) -> fx.Node:
    x, axes = ctx.tensor(op, 0), axes_of(ctx, op, 1)
    if not axes:
        if op.attrs.get("noop_with_empty_axes", 0):
            return x if elementwise is _same else ctx.call(elementwise, x)
        axes = list(range(ctx.rank(op, 0)))
    if not axes:
        return x if elementwise is _same else ctx.call(elementwise, x)
    return ctx.call(function, x, axes, bool(op.attrs.get("keepdims", 1)))


def _same(x: Tensor) -> Tensor:
    return x


def _arg(largest: bool, ctx: Context, op: Op) -> fx.Node:
    x, axis, keep = ctx.tensor(op, 0), op.attrs.get("axis", 0), bool(op.attrs.get("keepdims", 1))
    if op.attrs.get("select_last_index", 0):
        return ctx.call(statistics.arg_last, x, axis, keep, largest)
    return ctx.call(torch.argmax if largest else torch.argmin, x, axis, keep)


def _cumsum(ctx: Context, op: Op) -> fx.Node:
    axis = ctx.known(op, 1)
    if axis is None:
        raise op.refuse("no axis")
    flags = bool(op.attrs.get("exclusive", 0)), bool(op.attrs.get("reverse", 0))
    return ctx.call(statistics.cumulative_sum, ctx.tensor(op, 0), int(axis.item()), *flags)


# operator -> the reduction, and what is left of it where there are no axes to reduce
_REDUCTIONS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "ReduceMean": (torch.mean, _same),
    "ReduceSum": (statistics.sum_axes, _same),
    "ReduceMax": (statistics.max_axes, _same),
    "ReduceMin": (statistics.min_axes, _same),
    "ReduceProd": (statistics.prod_axes, _same),
    "ReduceL1": (statistics.sum_abs, torch.abs),
    "ReduceL2": (statistics.root_sum_square, torch.abs),
    "ReduceSumSquare": (statistics.sum_square, torch.square),
    "ReduceLogSum": (statistics.log_sum, torch.log),
    "ReduceLogSumExp": (torch.logsumexp, _same),
}

BUILDERS: Mapping[str, Builder] = {
    **{name: partial(_reduce, f, elementwise) for name, (f, elementwise) in _REDUCTIONS.items()},
    "ArgMax": partial(_arg, True),
    "ArgMin": partial(_arg, False),
    "CumSum": _cumsum,
}

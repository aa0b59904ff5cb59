"""Changes of shape: nothing is computed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from opadapt.torchgraph.context import Builder, Context, Op
from opadapt.torchgraph.kernels import movement
from opadapt.torchgraph.ops.reduction import axes_of


def numbers(ctx: Context, op: Op, index: int, attribute: str) -> list[Any] | None:
    """Python ints, or nodes that yield them, from an input or an older attribute; None where absent."""
    if op.input(index):
        return list(ctx.host(op, index).array.reshape(-1).tolist())
    return [int(v) for v in op.attrs[attribute]] if attribute in op.attrs else None


def _reshape(ctx: Context, op: Op) -> fx.Node:
    x, target = ctx.tensor(op, 0), numbers(ctx, op, 1, "shape")
    if target is None:
        raise op.refuse("no shape")
    if not op.attrs.get("allowzero", 0):
        known = ctx.shape(op.input(0)) or (None,) * len(target)
        for axis, d in enumerate(target):
            if isinstance(d, int) and d == 0:
                size = known[axis] if axis < len(known) else None
                target[axis] = ctx.method("size", x, axis) if size is None else size
    sizes = tuple(d if isinstance(d, int) and d >= 0 else None for d in target)
    ctx.shapes.setdefault(op.outputs[0], sizes)
    return ctx.method("reshape", x, tuple(target))


def _flatten(ctx: Context, op: Op) -> fx.Node:
    axis, shape = op.attrs.get("axis", 1), ctx.shape(op.input(0))
    if axis == 1 and shape is not None and len(shape) > 1:
        return ctx.method("flatten", ctx.tensor(op, 0), 1)
    return ctx.call(movement.flatten, ctx.tensor(op, 0), axis)


def _transpose(ctx: Context, op: Op) -> fx.Node:
    perm = op.attrs.get("perm")
    order = list(reversed(range(ctx.rank(op, 0)))) if perm is None else list(perm)
    return ctx.method("permute", ctx.tensor(op, 0), order)


def _squeeze(ctx: Context, op: Op) -> fx.Node:
    x, axes = ctx.tensor(op, 0), axes_of(ctx, op, 1)
    return ctx.method("squeeze", x) if axes is None else ctx.method("squeeze", x, tuple(axes))


def _unsqueeze(ctx: Context, op: Op) -> fx.Node:
    x, axes = ctx.tensor(op, 0), axes_of(ctx, op, 1) or []
    if any(a < 0 for a in axes) and any(a >= 0 for a in axes):
        rank = ctx.rank(op, 0) + len(axes)
        axes = [a % rank for a in axes]
    # axes are those of the result: from the front if counted from there, from the back otherwise
    for axis in sorted(axes, key=abs):
        x = ctx.method("unsqueeze", x, axis)
    return x


def _concat(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(torch.cat, [ctx.tensor(op, i) for i in range(len(op.inputs))], op.attrs["axis"])


def _split(ctx: Context, op: Op) -> list[fx.Node]:
    x, axis, parts = ctx.tensor(op, 0), op.attrs.get("axis", 0), len(op.outputs)
    sizes = numbers(ctx, op, 1, "split")
    pieces = ctx.call(torch.chunk, x, parts, axis) if sizes is None else ctx.call(torch.split, x, sizes, axis)
    return [ctx.call(operator.getitem, pieces, i) for i in range(parts)]


def _expand(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(movement.expand, ctx.tensor(op, 0), numbers(ctx, op, 1, "shape"))


def _tile(ctx: Context, op: Op) -> fx.Node:
    return ctx.method("repeat", ctx.tensor(op, 0), numbers(ctx, op, 1, "repeats"))


def _depth_to_space(ctx: Context, op: Op) -> fx.Node:
    x, block = ctx.tensor(op, 0), op.attrs["blocksize"]
    if op.attrs.get("mode", "DCR") == "CRD":
        return ctx.call(F.pixel_shuffle, x, block)
    return ctx.call(movement.depth_to_space, x, block)


def _space_to_depth(ctx: Context, op: Op) -> fx.Node:
    x, block = ctx.tensor(op, 0), op.attrs["blocksize"]
    if op.attrs.get("mode", "DCR") == "CRD":
        return ctx.call(F.pixel_unshuffle, x, block)
    return ctx.call(movement.space_to_depth, x, block)


BUILDERS: Mapping[str, Builder] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}

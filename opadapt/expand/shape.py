"""Operators that move elements: Reshape, Transpose, Slice, Pad, Concat, Split and their like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from opadapt.expand.context import Context, attributes, axis_of, refuse, shortest
from opadapt.ir.types import BATCH, Dim, TensorType, broadcast_shapes


def reshape(ctx: Context, node: onnx.NodeProto) -> int:
    """A constant target; 0 copies a dimension and -1 is what remains (the batch, where nothing else is)."""
    x, target = ctx.activation(node, 0), ctx.ints(node, 1)
    if target is None:
        raise refuse(node, "no target shape")
    old = ctx.shape(x)
    keeps_zero = bool(attributes(node).get("allowzero", 0))
    new: list[Dim | None] = []
    for i, size in enumerate(target):
        if size == 0 and (keeps_zero or i >= len(old)):
            raise refuse(node, f"a dimension of 0 in {target}")
        new.append(old[i] if size == 0 else None if size == -1 else size)
    return ctx.reshape(x, _completed(node, old, new))


def _completed(node: onnx.NodeProto, old: Sequence[Dim], new: Sequence[Dim | None]) -> tuple[Dim, ...]:
    """The target with its one unknown dimension worked out."""
    count = TensorType(tuple(old)).elements
    known = math.prod(d for d in new if isinstance(d, int))
    batch_left = BATCH in old and BATCH not in new
    if None not in new:
        if batch_left or known != count:
            raise refuse(node, f"target {tuple(new)} for {tuple(old)}: the batch is not kept apart")
        return tuple(d for d in new if d is not None)
    if count % known or (batch_left and count != known):
        raise refuse(node, f"target {tuple(new)} for {tuple(old)}: the batch is not kept apart")
    rest: Dim = BATCH if batch_left else count // known
    return tuple(rest if d is None else d for d in new)


def flatten(ctx: Context, node: onnx.NodeProto) -> int:
    """Axes before ``axis`` become one, and those from it on."""
    x = ctx.activation(node, 0)
    old = ctx.shape(x)
    axis = attributes(node).get("axis", 1)
    if not -len(old) <= axis <= len(old):
        raise refuse(node, f"axis {axis} of a tensor with {len(old)} axes")
    axis = axis + len(old) if axis < 0 else axis
    new: list[Dim | None] = []
    for part in (old[:axis], old[axis:]):
        new.append(None if BATCH in part else TensorType(part).elements)
    return ctx.reshape(x, _completed(node, old, new))


def transpose(ctx: Context, node: onnx.NodeProto) -> int:
    x = ctx.activation(node, 0)
    perm = attributes(node).get("perm", range(ctx.rank(x))[::-1])
    return ctx.emit("transpose", x, perm=tuple(perm))


def squeeze(ctx: Context, node: onnx.NodeProto) -> int:
    """Axes of size 1 leave: those named, or all."""
    x, axes = ctx.activation(node, 0), ctx.ints(node, 1)
    old = ctx.shape(x)
    if axes is None:
        if BATCH in old:
            raise refuse(node, "whether the batch is squeezed depends on its size")
        axes = tuple(i for i, d in enumerate(old) if d == 1)
    gone = {axis_of(node, axis, len(old)) for axis in axes}
    if any(old[i] != 1 for i in gone):
        raise refuse(node, f"axes {axes} of {old} are not of size 1")
    return ctx.reshape(x, [d for i, d in enumerate(old) if i not in gone])


def unsqueeze(ctx: Context, node: onnx.NodeProto) -> int:
    x, axes = ctx.activation(node, 0), ctx.ints(node, 1)
    if axes is None:
        raise refuse(node, "no axes")
    rank = ctx.rank(x) + len(axes)
    new = {axis_of(node, axis, rank) for axis in axes}
    rest = iter(ctx.shape(x))
    return ctx.reshape(x, [1 if i in new else next(rest) for i in range(rank)])


def concat(ctx: Context, node: onnx.NodeProto) -> int:
    operands = [ctx.operand(node, i) for i in range(len(node.input))]
    axis = axis_of(node, attributes(node)["axis"], ctx.rank(operands[0]))
    return operands[0] if len(operands) == 1 else ctx.emit("concat", *operands, axis=axis)


def split(ctx: Context, node: onnx.NodeProto) -> list[int]:
    """Equal pieces by split, others by slice; one value per output."""
    x, attrs = ctx.activation(node, 0), attributes(node)
    axis = axis_of(node, attrs.get("axis", 0), ctx.rank(x))
    size, sizes = ctx.size(node, x, axis), ctx.ints(node, 1)
    parts = len(node.output)
    if sizes is None:
        each = -(-size // int(attrs.get("num_outputs", parts)))
        sizes = tuple(min(each, size - i * each) for i in range(parts))
    if len(sizes) != parts or sum(sizes) != size or min(sizes) < 1:
        raise refuse(node, f"{parts} pieces of sizes {sizes} from {size}")
    if len(set(sizes)) == 1:
        return [ctx.emit("split", x, axis=axis, parts=parts, index=i) for i in range(parts)]
    stops = np.cumsum(sizes).tolist()
    return [
        ctx.emit("slice", x, axis=axis, start=stop - width, stop=stop)
        for stop, width in zip(stops, sizes, strict=True)
    ]


def slice_(ctx: Context, node: onnx.NodeProto) -> int:
    """Constant bounds; a step is a subsampling after the slice."""
    x = ctx.activation(node, 0)
    starts, stops = ctx.ints(node, 1), ctx.ints(node, 2)
    if starts is None or stops is None:
        raise refuse(node, "no bounds")
    axes = ctx.ints(node, 3) or tuple(range(len(starts)))
    steps = ctx.ints(node, 4) or (1,) * len(starts)
    for first, last, axis_, step in zip(starts, stops, axes, steps, strict=True):
        axis = axis_of(node, axis_, ctx.rank(x))
        if step < 1:
            raise refuse(node, f"step {step}")
        if ctx.shape(x)[axis] == BATCH and first == 0 and last >= 2**31 - 1 and step == 1:
            continue
        size = ctx.size(node, x, axis)
        start, stop = (min(max(v + size if v < 0 else v, 0), size) for v in (first, last))
        if start >= stop:
            raise refuse(node, f"nothing is left of axis {axis}")
        if (start, stop) != (0, size):
            x = ctx.emit("slice", x, axis=axis, start=start, stop=stop)
        if step > 1:
            x = ctx.emit("subsample", x, axis=axis, step=step)
    return x


def pad(ctx: Context, node: onnx.NodeProto) -> int:
    """Constant padding; a negative amount is a slice."""
    mode = attributes(node).get("mode", "constant")
    if mode != "constant":
        raise refuse(node, f"mode {mode}")
    x, flat = ctx.activation(node, 0), ctx.ints(node, 1)
    if flat is None:
        raise refuse(node, "no pads")
    axes = ctx.ints(node, 3)
    if axes is None:
        axes = tuple(range(ctx.rank(x)))
    value = 0.0
    if ctx.name(node, 2) is not None:
        filling = ctx.constant(node, 2)
        if filling is None or filling.size != 1:
            raise refuse(node, "the padding value is computed")
        value = shortest(filling.ravel()[0]) + 0.0  # -0.0 is no other padding than 0.0
    pads = [(0, 0)] * ctx.rank(x)
    for i, axis_ in enumerate(axes):
        axis = axis_of(node, axis_, ctx.rank(x))
        low, high = flat[i], flat[i + len(axes)]
        if low < 0 or high < 0:
            size = ctx.size(node, x, axis)
            start, stop = max(0, -low), size - max(0, -high)
            if start >= stop:
                raise refuse(node, f"nothing is left of axis {axis}")
            x = ctx.emit("slice", x, axis=axis, start=start, stop=stop)
        pads[axis] = (max(0, low), max(0, high))
    return x if set(pads) == {(0, 0)} else ctx.emit("pad", x, pads=tuple(pads), value=value)


def expand_(ctx: Context, node: onnx.NodeProto) -> int:
    """ONNX Expand: broadcasting in both directions against a constant shape."""
    x, target = ctx.activation(node, 0), ctx.ints(node, 1)
    if target is None:
        raise refuse(node, "no target shape")
    shape = broadcast_shapes([ctx.shape(x), target])
    return x if shape == ctx.shape(x) else ctx.emit("broadcast", x, shape=shape)


def resize(ctx: Context, node: onnx.NodeProto) -> int:
    """Nearest neighbour by whole factors, in the form that repeats every element."""
    attrs, x = attributes(node), ctx.activation(node, 0)
    form = (
        attrs.get("mode", "nearest"),
        attrs.get("coordinate_transformation_mode", "half_pixel"),
        attrs.get("nearest_mode", "round_prefer_floor"),
    )
    # by whole factors, half_pixel rounded to the nearest and asymmetric rounded down both repeat
    if form not in {("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor")}:
        raise refuse(node, f"mode, coordinates and rounding {form}")
    scales = ctx.constant(node, 2)
    if scales is None or scales.size != ctx.rank(x) or "axes" in attrs:
        raise refuse(node, "not by a constant scale for every axis")
    if any(s < 1 or s != int(s) for s in scales):
        raise refuse(node, f"scales {scales.tolist()} that are no whole factors")
    for axis, factor in enumerate(scales):
        if factor != 1:
            x = ctx.emit("upsample", x, axis=axis, factor=int(factor))
    return x

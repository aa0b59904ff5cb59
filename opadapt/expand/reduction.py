"""Reductions over axes, and the operators made of them: Softmax and LayerNormalization."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from opadapt.expand.context import Context, attributes, axis_of, refuse

Handler = Callable[[Context, onnx.NodeProto], int]


def reduce(op: str, before: str | None = None, after: str | None = None) -> Handler:
    """A reduction, with an element-wise instruction before it and after it."""

    def expand(ctx: Context, node: onnx.NodeProto) -> int:
        x = ctx.activation(node, 0)
        axes = _axes(ctx, node, x)
        if not axes:
            if before or after:  # implementations differ: some leave the element-wise part, some nothing
                raise refuse(node, "no axes")
            return x
        x = ctx.emit(before, x) if before else x
        reduced = ctx.emit(op, x, axes=axes, keepdims=_keepdims(node))
        return ctx.emit(after, reduced) if after else reduced

    return expand


def log_sum_exp(ctx: Context, node: onnx.NodeProto) -> int:
    """log(sum(exp(x - max))) + max, which does not overflow."""
    x = ctx.activation(node, 0)
    axes = _axes(ctx, node, x)
    if not axes:
        raise refuse(node, "no axes")
    largest = ctx.emit("max", x, axes=axes, keepdims=1)
    powers = ctx.emit("exp", ctx.emit("sub", x, largest))
    total = ctx.emit("log", ctx.emit("sum", powers, axes=axes, keepdims=_keepdims(node)))
    return ctx.emit("add", total, ctx.reshape(largest, ctx.shape(total)))


def _axes(ctx: Context, node: onnx.NodeProto, x: int) -> tuple[int, ...]:
    """The axes, an input (opset 18 and later) or an attribute: all where none are given, none where the node then
    does nothing."""
    attrs = attributes(node)
    axes = ctx.ints(node, 1) or tuple(attrs.get("axes", ()))
    if not axes and not attrs.get("noop_with_empty_axes", 0):
        axes = tuple(range(ctx.rank(x)))
    return tuple(sorted(axis_of(node, axis, ctx.rank(x)) for axis in axes))


def _keepdims(node: onnx.NodeProto) -> int:
    return int(attributes(node).get("keepdims", 1))


def softmax(ctx: Context, node: onnx.NodeProto) -> int:
    """exp(x - max) / sum along one axis."""
    x = ctx.activation(node, 0)
    axis = axis_of(node, attributes(node).get("axis", -1), ctx.rank(x))
    ctx.size(node, x, axis)
    shifted = ctx.emit("sub", x, ctx.emit("max", x, axes=(axis,), keepdims=1))
    powers = ctx.emit("exp", shifted)
    return ctx.emit("div", powers, ctx.emit("sum", powers, axes=(axis,), keepdims=1))


def layer_normalization(ctx: Context, node: onnx.NodeProto) -> int:
    """(x - mean) / sqrt(variance + eps) * scale + shift over the last axes (arXiv 1607.06450)."""
    if sum(bool(name) for name in node.output) > 1:
        raise refuse(node, "the mean or the deviation is used")
    x, attrs = ctx.activation(node, 0), attributes(node)
    axis = axis_of(node, attrs.get("axis", -1), ctx.rank(x))
    axes = tuple(range(axis, ctx.rank(x)))
    centred = ctx.emit("sub", x, ctx.emit("mean", x, axes=axes, keepdims=1))
    variance = ctx.emit("mean", ctx.emit("square", centred), axes=axes, keepdims=1)
    deviation = ctx.emit("sqrt", ctx.emit("add", variance, ctx.number(attrs.get("epsilon", 1e-5))))
    scaled = ctx.emit("mul", ctx.emit("div", centred, deviation), ctx.parameter(node, 1, "scale"))
    if ctx.name(node, 2) is None:
        return scaled
    return ctx.emit("add", scaled, ctx.parameter(node, 2, "shift"))

"""Element-wise operators and activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

from opadapt.expand.context import Context, attributes, refuse, shortest

Handler = Callable[[Context, onnx.NodeProto], int]


def unary(op: str) -> Handler:
    """One instruction on one activation."""
    return lambda ctx, node: ctx.emit(op, ctx.activation(node, 0))


def binary(op: str, role: str = "weight") -> Handler:
    """One instruction on two operands that broadcast."""
    return lambda ctx, node: ctx.emit(op, ctx.operand(node, 0, role), ctx.operand(node, 1, role))


def variadic(op: str) -> Handler:
    """One or more operands, taken two by two from the left."""

    def expand(ctx: Context, node: onnx.NodeProto) -> int:
        result = ctx.operand(node, 0)
        for index in range(1, len(node.input)):
            result = ctx.emit(op, result, ctx.operand(node, index))
        return result

    return expand


def identity(ctx: Context, node: onnx.NodeProto) -> int:
    return ctx.activation(node, 0)


def leaky_relu(ctx: Context, node: onnx.NodeProto) -> int:
    """x where x > 0, else alpha x."""
    x = ctx.activation(node, 0)
    alpha = ctx.number(attributes(node).get("alpha", 0.01))
    return ctx.emit("where", x, x, ctx.emit("mul", x, alpha))


def prelu(ctx: Context, node: onnx.NodeProto) -> int:
    """x where x > 0, else slope x (the slope broadcasts to x and is a parameter)."""
    x = ctx.activation(node, 0)
    constant = ctx.constant(node, 1) is not None
    slope = ctx.parameter(node, 1, "slope") if constant else ctx.activation(node, 1)
    return ctx.emit("where", x, x, ctx.emit("mul", x, slope))


def clip(ctx: Context, node: onnx.NodeProto) -> int:
    """Bounds as inputs (opset 11 and later) or as attributes; a bound left out is infinite."""
    attrs = attributes(node)
    bounds = []
    for index, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        if ctx.name(node, index) is None:
            bounds.append(float(attrs.get(name, default)))
            continue
        found = ctx.constant(node, index)
        if found is None or found.size != 1:
            raise refuse(node, f"the {name} bound is computed")
        bounds.append(shortest(found.ravel()[0]))
    low, high = bounds
    if math.isnan(low) or math.isnan(high) or low > high:
        raise refuse(node, f"bounds {low} and {high}")
    return ctx.emit("clip", ctx.activation(node, 0), min=low, max=high)


def _hard_sigmoid(ctx: Context, x: int, alpha: float, beta: float) -> int:
    scaled = ctx.emit("mul", x, ctx.number(alpha))
    return ctx.emit("clip", ctx.emit("add", scaled, ctx.number(beta)), min=0.0, max=1.0)


def hard_sigmoid(ctx: Context, node: onnx.NodeProto) -> int:
    """clip(alpha x + beta, 0, 1)."""
    attrs = attributes(node)
    return _hard_sigmoid(ctx, ctx.activation(node, 0), attrs.get("alpha", 0.2), attrs.get("beta", 0.5))


def hard_swish(ctx: Context, node: onnx.NodeProto) -> int:
    """x clip(x / 6 + 1/2, 0, 1)."""
    x = ctx.activation(node, 0)
    return ctx.emit("mul", x, _hard_sigmoid(ctx, x, 1 / 6, 0.5))


def gelu(ctx: Context, node: onnx.NodeProto) -> int:
    """x (1 + erf(x / sqrt 2)) / 2, or the form with tanh (arXiv 1606.08415, section 2)."""
    x = ctx.activation(node, 0)
    if attributes(node).get("approximate", "none") == "tanh":
        cube = ctx.emit("mul", ctx.emit("square", x), x)
        inner = ctx.emit("add", x, ctx.emit("mul", cube, ctx.number(0.044715)))
        gate = ctx.emit("tanh", ctx.emit("mul", inner, ctx.number(math.sqrt(2 / math.pi))))
    else:
        gate = ctx.emit("erf", ctx.emit("mul", x, ctx.number(math.sqrt(0.5))))
    half = ctx.emit("mul", x, ctx.number(0.5))
    return ctx.emit("mul", half, ctx.emit("add", gate, ctx.number(1.0)))


_POWERS: dict[float, Callable[[Context, int], int]] = {
    1.0: lambda ctx, x: x,
    2.0: lambda ctx, x: ctx.emit("square", x),
    3.0: lambda ctx, x: ctx.emit("mul", ctx.emit("square", x), x),
    4.0: lambda ctx, x: ctx.emit("square", ctx.emit("square", x)),
    0.5: lambda ctx, x: ctx.emit("sqrt", x),
    -0.5: lambda ctx, x: ctx.emit("reciprocal", ctx.emit("sqrt", x)),
    -1.0: lambda ctx, x: ctx.emit("reciprocal", x),
    -2.0: lambda ctx, x: ctx.emit("reciprocal", ctx.emit("square", x)),
}


def power(ctx: Context, node: onnx.NodeProto) -> int:
    """A power with a constant exponent of a few known values."""
    exponent = ctx.constant(node, 1)
    number = float(exponent.ravel()[0]) if exponent is not None and exponent.size == 1 else None
    if number not in _POWERS:
        raise refuse(node, f"an exponent that is none of {sorted(_POWERS)}")
    x = ctx.activation(node, 0)
    assert exponent is not None
    if exponent.ndim > ctx.rank(x):
        raise refuse(node, "an exponent of higher rank than the base")
    return _POWERS[number](ctx, x)

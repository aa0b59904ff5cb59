"""Element-wise arithmetic, comparisons and logic with broadcasting."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import onnx
import torch
from torch import fx

from opadapt.torchgraph.context import TORCH_DTYPE, Builder, Context, Host, Op, is_float


def number(ctx: Context, op: Op, index: int, other: int) -> Any:
    """An input as a Python number where it is a single known one that does not raise the other's rank (torch
    then needs no tensor, and bfloat16 stays bfloat16); otherwise as a tensor."""
    value = ctx.value(op, op.input(index))
    if isinstance(value, Host) and value.known and value.array.size == 1:
        rank = ctx.shape(op.input(other))
        same_type = ctx.elem_type(op.input(other)) == value.elem_type
        if same_type and (value.array.ndim == 0 or (rank is not None and value.array.ndim <= len(rank))):
            return value.array.reshape(()).item()
    return ctx.tensor(op, index)


def _operands(ctx: Context, op: Op) -> tuple[Any, Any]:
    """Two operands, at most one of them a Python number."""
    left = number(ctx, op, 0, 1)
    if isinstance(left, fx.Node):
        return left, number(ctx, op, 1, 0)
    right = ctx.tensor(op, 1)
    return (left, right) if right is not None else (ctx.tensor(op, 0), right)


def _binary(function: Callable[..., Any], ctx: Context, op: Op) -> fx.Node:
    _refuse_legacy_broadcast(op)
    return ctx.call(function, *_operands(ctx, op))


def _compare(function: Callable[..., Any], ctx: Context, op: Op) -> fx.Node:
    _refuse_legacy_broadcast(op)
    return ctx.call(function, ctx.tensor(op, 0), number(ctx, op, 1, 0))


def _refuse_legacy_broadcast(op: Op) -> None:
    if op.attrs.get("broadcast", 0) or "axis" in op.attrs:
        raise op.refuse("broadcasting by attribute (before opset 7)")


def _unary(function: Callable[..., Any], ctx: Context, op: Op) -> fx.Node:
    return ctx.call(function, ctx.tensor(op, 0))


def _div(ctx: Context, op: Op) -> fx.Node:
    _refuse_legacy_broadcast(op)
    if is_float(ctx.elem_type(op.input(0))):
        return ctx.call(operator.truediv, *_operands(ctx, op))
    return ctx.call(torch.div, ctx.tensor(op, 0), ctx.tensor(op, 1), rounding_mode="trunc")


def _pow(ctx: Context, op: Op) -> fx.Node:
    base, exponent = ctx.tensor(op, 0), ctx.value(op, op.input(1))
    if (
        isinstance(exponent, Host)
        and exponent.known
        and exponent.array.size == 1
        and exponent.array.ndim == 0
    ):
        result = ctx.call(torch.pow, base, exponent.array.item())
    else:
        result = ctx.call(torch.pow, base, number(ctx, op, 1, 0))
    # the result has the type of the base, whatever the exponent's
    if ctx.elem_type(op.input(0)) == ctx.elem_type(op.input(1)):
        return result
    return ctx.method("to", result, TORCH_DTYPE[ctx.elem_type(op.input(0))])


def _mod(ctx: Context, op: Op) -> fx.Node:
    function = torch.fmod if op.attrs.get("fmod", 0) else torch.remainder
    return ctx.call(function, ctx.tensor(op, 0), number(ctx, op, 1, 0))


def _extreme(tensors: Callable[..., Any], bound: str, ctx: Context, op: Op) -> fx.Node:
    """Min and Max of any number of inputs; against a number it is a clamp."""
    result = ctx.tensor(op, 0)
    for i in range(1, len(op.inputs)):
        other = number(ctx, op, i, 0)
        if isinstance(other, fx.Node):
            result = ctx.call(tensors, result, other)
        else:
            result = ctx.call(torch.clamp, result, **{bound: other})
    return result


def _sum(ctx: Context, op: Op) -> fx.Node:
    result = ctx.tensor(op, 0)
    for i in range(1, len(op.inputs)):
        result = ctx.call(operator.add, result, ctx.tensor(op, i))
    return result


def _mean(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(operator.truediv, _sum(ctx, op), len(op.inputs))


def _where(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(torch.where, ctx.tensor(op, 0), ctx.tensor(op, 1), ctx.tensor(op, 2))


def _clip(ctx: Context, op: Op) -> fx.Node:
    if ctx.opset < 11:
        low, high = op.attrs.get("min"), op.attrs.get("max")
        return ctx.call(torch.clamp, ctx.tensor(op, 0), low, high)
    bounds: list[Any] = []
    for i in (1, 2):
        value = ctx.value(op, op.input(i)) if op.input(i) else None
        known = isinstance(value, Host) and value.known
        bounds.append(ctx.known(op, i).item() if known else ctx.optional(op, i))  # type: ignore[union-attr]
    if bounds == [None, None]:
        return ctx.tensor(op, 0)
    tensors = [isinstance(b, fx.Node) for b in bounds]
    if any(tensors) and not all(tensors):  # torch takes two numbers or two tensors
        bounds = [ctx.optional(op, i) for i in (1, 2)]
    return ctx.call(torch.clamp, ctx.tensor(op, 0), *bounds)


def _cast(ctx: Context, op: Op) -> fx.Node:
    target = int(op.attrs["to"])
    if target not in TORCH_DTYPE:
        raise op.refuse(f"element type {onnx.TensorProto.DataType.Name(target)}")
    x = ctx.tensor(op, 0)
    # float32 to float32 would undo autocast
    return x if ctx.elem_types.get(op.input(0)) == target else ctx.method("to", x, TORCH_DTYPE[target])


def _cast_like(ctx: Context, op: Op) -> fx.Node | Host:
    value, target = ctx.value(op, op.input(0)), ctx.elem_type(op.input(1))
    if isinstance(value, Host) and value.known and target in TORCH_DTYPE:
        return Host.of(value.array, target)
    return ctx.method("type_as", ctx.tensor(op, 0), ctx.tensor(op, 1))


def _is_inf(ctx: Context, op: Op) -> fx.Node:
    x = ctx.tensor(op, 0)
    signs = (op.attrs.get("detect_negative", 1), op.attrs.get("detect_positive", 1))
    function = {(1, 1): torch.isinf, (1, 0): torch.isneginf, (0, 1): torch.isposinf}.get(signs)
    if function is None:
        return ctx.call(torch.zeros_like, x, dtype=torch.bool)
    return ctx.call(function, x)


_BINARY: Mapping[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
}
_COMPARE: Mapping[str, Callable[..., Any]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
_UNARY: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

BUILDERS: Mapping[str, Builder] = {
    **{name: partial(_binary, function) for name, function in _BINARY.items()},
    **{name: partial(_compare, function) for name, function in _COMPARE.items()},
    **{name: partial(_unary, function) for name, function in _UNARY.items()},
    "Div": _div,
    "Pow": _pow,
    "Mod": _mod,
    "Max": partial(_extreme, torch.maximum, "min"),
    "Min": partial(_extreme, torch.minimum, "max"),
    "Sum": _sum,
    "Mean": _mean,
    "Where": _where,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast_like,
    "IsInf": _is_inf,
}

# Results have the rank of the widest operand.
BROADCASTING = frozenset(
    {*_BINARY, *_COMPARE, *_UNARY, "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where"}
)

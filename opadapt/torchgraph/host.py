"""Shape arithmetic: operators on numbers that are known while building, or on sizes of free dimensions.

A row takes the operator and its Host inputs (None for an absent one) and returns the result, or None where
this form has to run as a tensor operation. Known numbers are computed with numpy; sizes with Python's own
operators, which the running graph evaluates.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import fx

from opadapt.torchgraph.context import Context, Host, Op, is_float
from opadapt.torchgraph.kernels import numbers

Array = NDArray[Any]
Inputs = Sequence[Host | None]
Fold = Callable[[Context, Op, Inputs], Host | list[Host] | None]
INT64 = onnx.TensorProto.INT64


def fold(ctx: Context, op: Op) -> list[Host] | None:
    """The results of an operator whose inputs are all Host values; None where it has to run as tensors."""
    row = FOLDS.get(op.type)
    values = [ctx.values.get(name) if name else None for name in op.inputs]
    if row is None or any(isinstance(v, fx.Node) for v in values):
        return None
    result = row(ctx, op, [v for v in values if not isinstance(v, fx.Node)])
    return [result] if isinstance(result, Host) else result


def need(op: Op, values: Inputs, index: int) -> Host:
    value = values[index] if index < len(values) else None
    if value is None:
        raise op.refuse(f"input {index} is absent")
    return value


def known_ints(op: Op, values: Inputs, index: int, attribute: str) -> list[int] | None:
    """Axes and the like: from an input, or from the attribute that older opsets have; None where absent."""
    if index < len(values) and values[index] is not None:
        value = need(op, values, index)
        if not value.known:
            raise op.refuse(f"input {index} depends on a free dimension")
        return [int(v) for v in value.array.reshape(-1)]
    return list(op.attrs[attribute]) if attribute in op.attrs else None


def _elementwise(ctx: Context, function: Callable[..., Any], arrays: Sequence[Array]) -> Array:
    """A Python operator on each element; a call in the running graph where an operand is symbolic."""

    def one(*operands: Any) -> Any:
        if any(isinstance(v, fx.Node) for v in operands):
            return ctx.call(function, *operands)
        return function(*operands)

    objects = [a.astype(object) for a in arrays]
    return np.asarray(np.frompyfunc(one, len(objects), 1)(*objects), dtype=object)


def _arithmetic(native: Callable[..., Any], python: Callable[..., Any], result: int | None = None) -> Fold:
    """A row for an element-wise operator; ``result`` is its element type where it is not the operands'."""

    def row(ctx: Context, op: Op, values: Inputs) -> Host:
        hosts = [need(op, values, i) for i in range(len(values))]
        elem_type = hosts[-1].elem_type if result is None else result
        arrays = [h.array for h in hosts]
        if all(h.known for h in hosts):
            with np.errstate(all="ignore"):
                return Host.of(np.asarray(native(*arrays)), elem_type)
        return Host.of(_elementwise(ctx, python, arrays), elem_type)

    return row


def _variadic(native: Callable[..., Any], python: Callable[..., Any]) -> Fold:
    """Min and Max of any number of inputs."""
    row = _pair(native, python)

    def folded(ctx: Context, op: Op, values: Inputs) -> Host:
        result = need(op, values, 0)
        for i in range(1, len(values)):
            result = row(ctx, op, [result, need(op, values, i)])
        return result

    return folded


def _divide(ctx: Context, op: Op, values: Inputs) -> Host:
    integers = not is_float(need(op, values, 0).elem_type)
    native: Callable[..., Any] = (lambda a, b: np.trunc(a / b)) if integers else np.divide
    return _pair(native, numbers.divide_ints if integers else operator.truediv)(ctx, op, values)


def _pair(native: Callable[..., Any], python: Callable[..., Any]) -> Callable[[Context, Op, Inputs], Host]:
    row = _arithmetic(native, python)

    def checked(ctx: Context, op: Op, values: Inputs) -> Host:
        result = row(ctx, op, values)
        assert isinstance(result, Host)
        return result

    return checked


def _cast(ctx: Context, op: Op, values: Inputs) -> Host | None:
    host, target = need(op, values, 0), int(op.attrs["to"])
    try:
        dtype = helper.tensor_dtype_to_np_dtype(target)
    except KeyError:
        return None
    if host.known:
        return Host(host.array.astype(dtype), target) if dtype.kind in "fiub" else None
    if not is_float(host.elem_type) and not is_float(target) and target != onnx.TensorProto.BOOL:
        return Host(host.array, target)  # a size is a Python int whatever its width
    convert = float if is_float(target) else bool if target == onnx.TensorProto.BOOL else int
    return Host.of(_elementwise(ctx, convert, [host.array]), target)


def _structural(function: Callable[[Context, Op, Array, Inputs], Array]) -> Fold:
    """A row that moves elements of its first input about."""

    def row(ctx: Context, op: Op, values: Inputs) -> Host:
        host = need(op, values, 0)
        return Host.of(function(ctx, op, host.array, values), host.elem_type)

    return row


def _gather(ctx: Context, op: Op, array: Array, values: Inputs) -> Array:
    indices = need(op, values, 1)
    if not indices.known:
        raise op.refuse("indices depend on a free dimension")
    return _object_safe(np.take(array, indices.array.astype(np.int64), axis=op.attrs.get("axis", 0)), array)


def _object_safe(result: Any, like: Array) -> Array:
    """numpy unwraps a 0-d object array into the object; put it back."""
    if isinstance(result, np.ndarray):
        return result
    wrapped = np.empty((), dtype=like.dtype)
    wrapped[()] = result
    return wrapped


def _concat(ctx: Context, op: Op, array: Array, values: Inputs) -> Array:
    arrays = [need(op, values, i).array for i in range(len(values))]
    if any(a.dtype == object for a in arrays):
        arrays = [a.astype(object) for a in arrays]
    return np.concatenate(arrays, axis=op.attrs["axis"])


def _unsqueeze(ctx: Context, op: Op, array: Array, values: Inputs) -> Array:
    return np.expand_dims(array, tuple(known_ints(op, values, 1, "axes") or ()))


def _squeeze(ctx: Context, op: Op, array: Array, values: Inputs) -> Array:
    axes = known_ints(op, values, 1, "axes")
    kept = array.reshape(tuple(d for d in array.shape if d != 1)) if axes is None else None
    return np.squeeze(array, tuple(axes or ())) if kept is None else kept


def _reshape(ctx: Context, op: Op, array: Array, values: Inputs) -> Array:
    target = known_ints(op, values, 1, "shape") or []
    if not op.attrs.get("allowzero", 0):
        target = [array.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return array.reshape(target)


def _slice(ctx: Context, op: Op, array: Array, values: Inputs) -> Array:
    starts = known_ints(op, values, 1, "starts") or []
    ends = known_ints(op, values, 2, "ends") or []
    axes = known_ints(op, values, 3, "axes") or list(range(len(starts)))
    steps = known_ints(op, values, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(*slice(start, end, step).indices(array.shape[axis]))
        if step < 0 and index[axis].stop < 0:
            index[axis] = slice(index[axis].start, None, step)
    return array[tuple(index)]


def _expand(ctx: Context, op: Op, array: Array, values: Inputs) -> Array:
    target = known_ints(op, values, 1, "shape") or []
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(target)))


def _shape(ctx: Context, op: Op, values: Inputs) -> Host:
    return shape_of(ctx, op)


def shape_of(ctx: Context, op: Op) -> Host:
    """The Shape operator: known sizes as numbers, free ones as calls of ``size`` in the running graph."""
    rank = ctx.rank(op, 0)
    sizes = sizes_of(ctx, op, 0)[slice(op.attrs.get("start", 0), op.attrs.get("end", rank))]
    array = np.empty(len(sizes), dtype=object)
    array[:] = sizes
    return Host.of(array, INT64)


def sizes_of(ctx: Context, op: Op, index: int) -> list[Any]:
    """Sizes of an input of known rank: ints, or nodes that yield ints."""
    ctx.rank(op, index)
    known = ctx.shape(op.input(index)) or ()
    return [
        d if d is not None else ctx.method("size", ctx.tensor(op, index), axis)
        for axis, d in enumerate(known)
    ]


def size_of(ctx: Context, op: Op) -> Host:
    """The Size operator."""
    total: Any = 1
    for d in sizes_of(ctx, op, 0):
        symbolic = isinstance(d, fx.Node) or isinstance(total, fx.Node)
        total = ctx.call(operator.mul, total, d) if symbolic else total * d
    array = np.empty((), dtype=object)
    array[()] = total
    return Host.of(array, INT64)


def _constant_of_shape(ctx: Context, op: Op, values: Inputs) -> Host | None:
    shape = need(op, values, 0)
    if not shape.known:
        return None
    fill = op.attrs.get("value")
    array = np.zeros(1, np.float32) if fill is None else numpy_helper.to_array(fill)
    elem_type = onnx.TensorProto.FLOAT if fill is None else fill.data_type
    return Host(np.full(tuple(int(d) for d in shape.array), array.reshape(-1)[0]), elem_type)


def _range(ctx: Context, op: Op, values: Inputs) -> Host | None:
    bounds = [need(op, values, i) for i in range(3)]
    if not all(b.known for b in bounds):
        return None
    start, limit, delta = (b.array.reshape(()) for b in bounds)
    count = max(0, int(np.ceil((limit - start) / delta)))
    return Host((np.arange(count) * delta + start).astype(start.dtype), bounds[0].elem_type)


def _reduce(native: Callable[..., Any], python: Callable[[Any, Any], Any]) -> Fold:
    """A row for a reduction; a vector with symbolic elements is reduced whole."""

    def row(ctx: Context, op: Op, values: Inputs) -> Host | None:
        host, axes = need(op, values, 0), known_ints(op, values, 1, "axes")
        keep = bool(op.attrs.get("keepdims", 1))
        if host.known:
            over = None if axes is None else tuple(axes)
            return Host.of(np.asarray(native(host.array, axis=over, keepdims=keep)), host.elem_type)
        if host.array.ndim != 1:
            return None
        total: Any = host.array[0]
        for element in host.array[1:]:
            symbolic = isinstance(element, fx.Node) or isinstance(total, fx.Node)
            total = ctx.call(python, total, element) if symbolic else python(total, element)
        result = np.empty((1,) if keep else (), dtype=object)
        result[...] = total
        return Host.of(result, host.elem_type)

    return row


def _identity(ctx: Context, op: Op, values: Inputs) -> Host:
    return need(op, values, 0)


BOOL = onnx.TensorProto.BOOL
FOLDS: Mapping[str, Fold] = MappingProxyType(
    {
        "Add": _arithmetic(np.add, operator.add),
        "Sub": _arithmetic(np.subtract, operator.sub),
        "Mul": _arithmetic(np.multiply, operator.mul),
        "Div": _divide,
        "Neg": _arithmetic(np.negative, operator.neg),
        "Abs": _arithmetic(np.abs, operator.abs),
        "Floor": _arithmetic(np.floor, np.floor),
        "Ceil": _arithmetic(np.ceil, np.ceil),
        "Sqrt": _arithmetic(np.sqrt, np.sqrt),
        "Max": _variadic(np.maximum, max),
        "Min": _variadic(np.minimum, min),
        "Mod": _arithmetic(np.mod, operator.mod),
        "Equal": _arithmetic(np.equal, operator.eq, BOOL),
        "Greater": _arithmetic(np.greater, operator.gt, BOOL),
        "GreaterOrEqual": _arithmetic(np.greater_equal, operator.ge, BOOL),
        "Less": _arithmetic(np.less, operator.lt, BOOL),
        "LessOrEqual": _arithmetic(np.less_equal, operator.le, BOOL),
        "And": _arithmetic(np.logical_and, operator.and_, BOOL),
        "Or": _arithmetic(np.logical_or, operator.or_, BOOL),
        "Not": _arithmetic(np.logical_not, operator.not_, BOOL),
        "Where": _arithmetic(np.where, numbers.choose),
        "Cast": _cast,
        "Identity": _identity,
        "Gather": _structural(_gather),
        "Concat": _structural(_concat),
        "Unsqueeze": _structural(_unsqueeze),
        "Squeeze": _structural(_squeeze),
        "Reshape": _structural(_reshape),
        "Slice": _structural(_slice),
        "Expand": _structural(_expand),
        "Transpose": _structural(lambda ctx, op, a, v: np.transpose(a, op.attrs.get("perm"))),
        "Tile": _structural(lambda ctx, op, a, v: np.tile(a, known_ints(op, v, 1, "repeats") or [])),
        "Shape": _shape,
        "Size": lambda ctx, op, values: size_of(ctx, op),
        "ConstantOfShape": _constant_of_shape,
        "Range": _range,
        "ReduceProd": _reduce(np.prod, operator.mul),
        "ReduceSum": _reduce(np.sum, operator.add),
        "ReduceMax": _reduce(np.max, max),
        "ReduceMin": _reduce(np.min, min),
    }
)

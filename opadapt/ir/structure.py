"""Structure instructions: they move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opadapt.ir.spec import Array, Attrs, Spec, need, need_axis
from opadapt.ir.types import BATCH, Dim, TensorType

Types = Sequence[TensorType]
Arrays = Sequence[Array]


def _sized(shape: tuple[Dim, ...], axis: int, what: str) -> int:
    need_axis(axis, len(shape), what)
    size = shape[axis]
    need(
        isinstance(size, int), f"{what}: the batch axis has no size", "an axis of known size", f"axis {axis}"
    )
    assert isinstance(size, int)
    return size


def _with(shape: tuple[Dim, ...], axis: int, size: Dim) -> TensorType:
    return TensorType((*shape[:axis], size, *shape[axis + 1 :]))


def _pad_type(types: Types, attrs: Attrs) -> TensorType:
    shape, pads = types[0].shape, attrs["pads"]
    need(len(pads) == len(shape), "pad: one (low, high) pair per axis", f"{len(shape)} pairs", len(pads))
    result: list[Dim] = []
    for axis, (dim, (low, high)) in enumerate(zip(shape, pads, strict=True)):
        need(low >= 0 and high >= 0, "pad: negative padding", "0 or more", (low, high))
        result.append(dim if low == high == 0 else _sized(shape, axis, "pad") + low + high)
    return TensorType(tuple(result))


def _pad(arrays: Arrays, attrs: Attrs) -> Array:
    if not attrs["pads"]:  # a scalar: np.pad takes none
        return arrays[0]
    return np.pad(arrays[0], attrs["pads"], constant_values=np.float32(attrs["value"]))


def window_length(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Number of window positions along an axis of ``size`` elements; 0 or less where none fits."""
    return (size - dilation * (kernel - 1) - 1) // stride + 1


def _window_type(types: Types, attrs: Attrs) -> TensorType:
    shape, axes = types[0].shape, attrs["axes"]
    lists = [attrs["kernel"], attrs["stride"], attrs["dilation"]]
    need(
        len(axes) > 0 and len(set(axes)) == len(axes) and all(len(values) == len(axes) for values in lists),
        "window: kernel, stride and dilation go with distinct axes",
        "lists of equal length",
        (axes, *lists),
    )
    result = list(shape)
    for axis, kernel, stride, dilation in zip(axes, *lists, strict=True):
        size = _sized(shape, axis, "window")
        need(
            min(kernel, stride, dilation) >= 1,
            "window: kernel, stride, dilation",
            "1 or more",
            (axes, *lists),
        )
        length = window_length(size, kernel, stride, dilation)
        need(length >= 1, "window: does not fit", f"an extent of at most {size}", (kernel, dilation))
        result[axis] = length
    return TensorType((*result, *attrs["kernel"]))


def _window(arrays: Arrays, attrs: Attrs) -> Array:
    x, axes = arrays[0], attrs["axes"]
    extents = tuple(d * (k - 1) + 1 for k, d in zip(attrs["kernel"], attrs["dilation"], strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, extents, axis=axes)
    index = [slice(None)] * view.ndim
    for i, axis in enumerate(axes):
        index[axis] = slice(None, None, attrs["stride"][i])
        index[x.ndim + i] = slice(None, None, attrs["dilation"][i])
    return view[tuple(index)]


def _slice_type(types: Types, attrs: Attrs) -> TensorType:
    shape, axis = types[0].shape, attrs["axis"]
    size, start, stop = _sized(shape, axis, "slice"), attrs["start"], attrs["stop"]
    need(0 <= start < stop <= size, "slice: bounds", f"0 <= start < stop <= {size}", (start, stop))
    return _with(shape, axis, stop - start)


def _slice(arrays: Arrays, attrs: Attrs) -> Array:
    index: list[slice] = [slice(None)] * arrays[0].ndim
    index[attrs["axis"]] = slice(attrs["start"], attrs["stop"])
    return arrays[0][tuple(index)]


def _shift_type(types: Types, attrs: Attrs) -> TensorType:
    size = _sized(types[0].shape, attrs["axis"], "shift")
    need(
        abs(attrs["offset"]) < size,
        "shift: everything would leave",
        f"an offset under {size}",
        attrs["offset"],
    )
    return types[0]


def _shift(arrays: Arrays, attrs: Attrs) -> Array:
    """Element i of the result is element i - offset of the operand, zero where that does not exist."""
    x, axis, offset = arrays[0], attrs["axis"], attrs["offset"]
    result = np.zeros_like(x)
    source: list[slice] = [slice(None)] * x.ndim
    target = list(source)
    size = x.shape[axis]
    source[axis] = slice(max(0, -offset), size - max(0, offset))
    target[axis] = slice(max(0, offset), size - max(0, -offset))
    result[tuple(target)] = x[tuple(source)]
    return result


def _subsample_type(types: Types, attrs: Attrs) -> TensorType:
    shape, axis, step = types[0].shape, attrs["axis"], attrs["step"]
    size = _sized(shape, axis, "subsample")
    need(step >= 1, "subsample: step", "1 or more", step)
    return _with(shape, axis, -(-size // step))


def _subsample(arrays: Arrays, attrs: Attrs) -> Array:
    index: list[slice] = [slice(None)] * arrays[0].ndim
    index[attrs["axis"]] = slice(None, None, attrs["step"])
    return arrays[0][tuple(index)]


def _upsample_type(types: Types, attrs: Attrs) -> TensorType:
    shape, axis, factor = types[0].shape, attrs["axis"], attrs["factor"]
    size = _sized(shape, axis, "upsample")
    need(factor >= 1, "upsample: factor", "1 or more", factor)
    return _with(shape, axis, size * factor)


def _upsample(arrays: Arrays, attrs: Attrs) -> Array:
    return np.repeat(arrays[0], attrs["factor"], axis=attrs["axis"])


def _reshape_type(types: Types, attrs: Attrs) -> TensorType:
    old, new = types[0], TensorType(tuple(attrs["shape"]))
    same_batch = (old.batch_axis is None) == (new.batch_axis is None)
    need(old.elements == new.elements and same_batch, "reshape: other number of elements", str(old), new)
    return new


def _reshape(arrays: Arrays, attrs: Attrs) -> Array:
    return arrays[0].reshape([-1 if d == BATCH else d for d in attrs["shape"]])


def _transpose_type(types: Types, attrs: Attrs) -> TensorType:
    shape, perm = types[0].shape, attrs["perm"]
    need(
        sorted(perm) == list(range(len(shape))),
        "transpose: perm",
        f"a permutation of {len(shape)} axes",
        perm,
    )
    return TensorType(tuple(shape[p] for p in perm))


def _concat_type(types: Types, attrs: Attrs) -> TensorType:
    axis, first = attrs["axis"], types[0].shape
    sizes = [_sized(t.shape, axis, "concat") for t in types]
    for t in types[1:]:
        same = t.rank == len(first) and _with(t.shape, axis, 1) == _with(first, axis, 1)
        need(same, "concat: operands differ off the axis", str(types[0]), t)
    return _with(first, axis, sum(sizes))


def _split_type(types: Types, attrs: Attrs) -> TensorType:
    shape, axis, parts = types[0].shape, attrs["axis"], attrs["parts"]
    size = _sized(shape, axis, "split")
    need(parts >= 1 and size % parts == 0, "split: parts must divide the axis", f"a divisor of {size}", parts)
    need(0 <= attrs["index"] < parts, "split: index", f"0 to {parts - 1}", attrs["index"])
    return _with(shape, axis, size // parts)


def _split(arrays: Arrays, attrs: Attrs) -> Array:
    return np.split(arrays[0], attrs["parts"], axis=attrs["axis"])[attrs["index"]]


def _broadcast_type(types: Types, attrs: Attrs) -> TensorType:
    old, new = types[0].shape, tuple(attrs["shape"])
    need(len(new) >= len(old), "broadcast: target rank", f"{len(old)} or more", new)
    aligned = (1,) * (len(new) - len(old)) + old
    for have, want in zip(aligned, new, strict=True):
        need(have == want or (have == 1 and want != BATCH), "broadcast: sizes", f"1 or equal to {new}", old)
    return TensorType(new)


def _broadcast(arrays: Arrays, attrs: Attrs) -> Array:
    x = arrays[0]
    aligned = (1,) * (len(attrs["shape"]) - x.ndim) + x.shape
    shape = [have if want == BATCH else want for have, want in zip(aligned, attrs["shape"], strict=True)]
    return np.broadcast_to(x, shape)


SPECS = [
    Spec("pad", "structure", 1, _pad_type, _pad, {"pads": "pairs", "value": "float"}),
    Spec(
        "window",
        "structure",
        1,
        _window_type,
        _window,
        {"axes": "ints", "kernel": "ints", "stride": "ints", "dilation": "ints"},
    ),
    Spec("slice", "structure", 1, _slice_type, _slice, {"axis": "int", "start": "int", "stop": "int"}),
    Spec("shift", "structure", 1, _shift_type, _shift, {"axis": "int", "offset": "int"}),
    Spec("subsample", "structure", 1, _subsample_type, _subsample, {"axis": "int", "step": "int"}),
    Spec("upsample", "structure", 1, _upsample_type, _upsample, {"axis": "int", "factor": "int"}),
    Spec("reshape", "structure", 1, _reshape_type, _reshape, {"shape": "dims"}),
    Spec(
        "transpose",
        "structure",
        1,
        _transpose_type,
        lambda a, at: np.transpose(a[0], at["perm"]),
        {"perm": "ints"},
    ),
    Spec(
        "concat",
        "structure",
        None,
        _concat_type,
        lambda a, at: np.concatenate(list(a), axis=at["axis"]),
        {"axis": "int"},
    ),
    Spec("split", "structure", 1, _split_type, _split, {"axis": "int", "parts": "int", "index": "int"}),
    Spec("broadcast", "structure", 1, _broadcast_type, _broadcast, {"shape": "dims"}),
]

__all__ = ["SPECS", "window_length"]

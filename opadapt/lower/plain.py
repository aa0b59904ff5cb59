"""The lowering of every instruction taken alone, to plain ONNX operators; keyed like the ir table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from opadapt.ir.types import BATCH
from opadapt.lower.contraction import plain_contract
from opadapt.lower.emit import Emitter, Layout
from opadapt.lower.match import Match, Plain
from opadapt.lower.view import View


def _param(view: View, value: int) -> Match:
    shape = tuple(int(d) for d in view.shape(value))
    layout = Layout(view.program[value].attr["name"], shape, tuple(range(len(shape))), shape)
    return Match((), lambda out, name: out.leaf(value, out.parameter(layout)))


def _const(view: View, value: int) -> Match:
    attrs = view.program[value].attr
    shape = attrs["shape"]
    if math.prod(shape) == 1:
        return Match((), lambda out, name: out.leaf(value, out.number(attrs["value"], shape)))
    # one stored number: an initializer of many elements would look like a weight and be trained
    return Match(
        (), lambda out, name: out.node("Expand", [out.number(attrs["value"]), out.ints(shape)], name)
    )


def _pad(view: View, value: int) -> Match:
    (arg,), attrs = view.args(value), view.program[value].attr
    pads = [low for low, _ in attrs["pads"]] + [high for _, high in attrs["pads"]]
    value_ = attrs["value"] if attrs["value"] != 0.0 else _UNFUSED_ZERO
    return Match(
        (arg,),
        lambda out, name: out.node("Pad", [out.names[arg], out.ints(pads), out.number(value_)], name),
    )


# ONNX Runtime 1.31 fuses padding by zeros into a pool after it: into MaxPool, where it then pads with -inf, and
# beyond the kernel's size, which its pools refuse. It looks for zero bits; those of -0.0 are not.
_UNFUSED_ZERO = -0.0


def _window(view: View, value: int) -> Match:
    """Each windowed axis becomes two by a Gather with a table of positions; then the taps go last."""
    (arg,), attrs = view.args(value), view.program[value].attr
    axes = attrs["axes"]

    def emit(out: Emitter, name: str) -> None:
        current = out.names[arg]
        order: list[int | str] = list(range(view.type(arg).rank))  # what each axis of `current` is
        for i, axis in enumerate(axes):
            positions = np.arange(view.shape(value)[axis])[:, None] * attrs["stride"][i]
            table = positions + np.arange(attrs["kernel"][i])[None, :] * attrs["dilation"][i]
            at = order.index(axis)
            index = out.constant(f"{out.prefix}%{value}_taps{i}", table.astype(np.int64))
            current = out.node("Gather", [current, index], axis=at)
            order.insert(at + 1, f"tap{i}")
        final: list[int | str] = [*range(view.type(arg).rank), *(f"tap{i}" for i in range(len(axes)))]
        out.transposed(current, [order.index(axis) for axis in final], name)

    return Match((arg,), emit)


def _slices(view: View, value: int) -> Match:
    """Slices and subsamplings along different axes, one after the other, are one Slice.

    An image is subsampled by a MaxPool of single elements: ONNX Runtime keeps its blocked layout through that
    (x86-64, between two 1x1 convolutions: 24 against 38 us for 16x32x32, 407 against 522 us for 64x56x56).
    """
    cuts: dict[int, tuple[int, int, int]] = {}  # axis -> start, stop, step
    while True:
        (arg,), attrs, op = view.args(value), view.program[value].attr, view.program[value].op
        size = view.shape(arg)[attrs["axis"]]
        assert isinstance(size, int)
        cuts[attrs["axis"]] = (
            (attrs["start"], attrs["stop"], 1) if op == "slice" else (0, size, attrs["step"])
        )
        nested = view.is_op(arg, "slice", "subsample") and view.private(arg)
        if not nested or view.program[arg].attr["axis"] in cuts:
            break
        value = arg
    strides = [cuts.get(axis, (0, 0, 1))[2] for axis in range(2, view.type(arg).rank)]
    whole = all(start == 0 and stop == view.shape(arg)[axis] for axis, (start, stop, _) in cuts.items())

    def emit(out: Emitter, name: str) -> None:
        axes = sorted(cuts)
        if whole and len(strides) == 2 and min(axes) >= 2:
            out.node("MaxPool", [out.names[arg]], name, kernel_shape=[1, 1], strides=strides)
            return
        starts, stops, steps = zip(*(cuts[a] for a in axes), strict=True)
        inputs = [out.names[arg], out.ints(starts), out.ints(stops), out.ints(axes)]
        out.node("Slice", inputs + ([out.ints(steps)] if any(s != 1 for s in steps) else []), name)

    return Match((arg,), emit)


def _shift(view: View, value: int) -> Match:
    (arg,), attrs = view.args(value), view.program[value].attr
    axis, offset = attrs["axis"], attrs["offset"]
    size = view.shape(arg)[axis]
    assert isinstance(size, int)
    lows, highs = [0] * view.type(arg).rank, [0] * view.type(arg).rank
    lows[axis], highs[axis] = max(0, offset), max(0, -offset)

    def emit(out: Emitter, name: str) -> None:
        start, stop = max(0, -offset), size - max(0, offset)
        kept = out.node("Slice", [out.names[arg], out.ints([start]), out.ints([stop]), out.ints([axis])])
        out.node("Pad", [kept, out.ints(lows + highs), out.number(_UNFUSED_ZERO)], name)

    return Match((arg,), emit)


def _upsample(view: View, value: int) -> Match:
    """Nearest-neighbour Resize; repetitions along several axes, one after the other, are one Resize."""
    scales = [1.0] * view.type(value).rank
    while True:
        (arg,), attrs = view.args(value), view.program[value].attr
        scales[attrs["axis"]] *= attrs["factor"]
        if not (view.is_op(arg, "upsample") and view.private(arg)):
            break
        value = arg

    def emit(out: Emitter, name: str) -> None:
        key = "x".join(f"{s:.0f}" for s in scales)
        table = out.constant(f"{out.prefix}%scales{key}", np.asarray(scales, dtype=np.float32))
        out.node(
            "Resize",
            [out.names[arg], "", table],
            name,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    return Match((arg,), emit)


def _laid_out(view: View, value: int) -> Match:
    """Reshape or transpose."""
    (arg,), step = view.args(value), view.program[value]

    def emit(out: Emitter, name: str) -> None:
        if step.op == "transpose":
            out.transposed(out.names[arg], step.attr["perm"], name)
        else:
            out.reshaped(out.names[arg], view.shape(arg), step.attr["shape"], name)

    return Match((arg,), emit)


def _concat(view: View, value: int) -> Match:
    args, axis = view.args(value), view.program[value].attr["axis"]
    return Match(args, lambda out, name: out.node("Concat", [out.names[a] for a in args], name, axis=axis))


def _split(view: View, value: int) -> Match:
    """All live pieces of an operand come from one Split, made with the first; one alone is a Slice."""
    (arg,), attrs = view.args(value), view.program[value].attr
    axis, parts = attrs["axis"], attrs["parts"]
    pieces: dict[int, int] = {}  # index -> the value that holds the piece
    for other in sorted(view.live):
        if view.is_op(other, "split") and view.args(other) == (arg,):
            theirs = view.program[other].attr
            if (theirs["axis"], theirs["parts"]) == (axis, parts):
                pieces.setdefault(theirs["index"], other)

    def emit(out: Emitter, name: str) -> None:
        size = view.shape(value)[axis]
        assert isinstance(size, int)
        if len(pieces) == 1 and pieces[attrs["index"]] == value:
            start = attrs["index"] * size
            out.node(
                "Slice", [out.names[arg], out.ints([start]), out.ints([start + size]), out.ints([axis])], name
            )
        elif pieces[attrs["index"]] != value:
            out.node("Identity", [out.names[pieces[attrs["index"]]]], name)
        elif value == min(pieces.values()):
            names = [out.target(pieces[i]) if i in pieces else out.fresh() for i in range(parts)]
            out.nodes_out("Split", [out.names[arg], out.ints([size] * parts)], names, axis=axis)

    # the first piece writes the node, so every later one needs it
    first = min(pieces.values())
    return Match((arg,) if value == first else (arg, first, pieces[attrs["index"]]), emit)


def _broadcast(view: View, value: int) -> Match:
    (arg,) = view.args(value)
    # 1 keeps the operand's own size, which is what the batch wants
    shape = [1 if d == BATCH else int(d) for d in view.shape(value)]
    return Match((arg,), lambda out, name: out.node("Expand", [out.names[arg], out.ints(shape)], name))


def _reduction(op_type: str) -> Plain:
    def plain(view: View, value: int) -> Match:
        (arg,), attrs = view.args(value), view.program[value].attr
        return Match(
            (arg,),
            lambda out, name: out.node(
                op_type, [out.names[arg], out.ints(attrs["axes"])], name, keepdims=attrs["keepdims"]
            ),
        )

    return plain


def _elementwise(op_type: str) -> Plain:
    def plain(view: View, value: int) -> Match:
        args = view.args(value)
        return Match(args, lambda out, name: out.node(op_type, [out.names[a] for a in args], name))

    return plain


def _square(view: View, value: int) -> Match:
    (arg,) = view.args(value)
    return Match((arg,), lambda out, name: out.node("Mul", [out.names[arg], out.names[arg]], name))


def _clip(view: View, value: int) -> Match:
    (arg,), attrs = view.args(value), view.program[value].attr

    def emit(out: Emitter, name: str) -> None:
        low, high = attrs["min"], attrs["max"]
        bounds = [
            "" if math.isinf(low) and low < 0 else out.number(low),
            "" if math.isinf(high) and high > 0 else out.number(high),
        ]
        while bounds and not bounds[-1]:
            bounds.pop()
        out.node("Clip", [out.names[arg], *bounds], name)

    return Match((arg,), emit)


def _where(view: View, value: int) -> Match:
    condition, then, otherwise = view.args(value)

    def emit(out: Emitter, name: str) -> None:
        positive = out.node("Greater", [out.names[condition], out.number(0.0)])
        out.node("Where", [positive, out.names[then], out.names[otherwise]], name)

    return Match((condition, then, otherwise), emit)


def _normalize(view: View, value: int) -> Match:
    """BatchNormalization wants the channels on axis 1; another axis is moved there and back."""
    args, attrs = view.args(value), view.program[value].attr
    axis, shape = attrs["axis"], view.shape(value)

    def emit(out: Emitter, name: str) -> None:
        x, *rest = (out.names[a] for a in args)
        if axis == 1:
            out.node("BatchNormalization", [x, *rest], name, epsilon=attrs["eps"])
            return
        if len(shape) == 1:
            lifted = out.reshaped(x, shape, (1, *shape))
            y = out.node("BatchNormalization", [lifted, *rest], epsilon=attrs["eps"])
            out.reshaped(y, (1, *shape), shape, name)
            return
        perm = list(range(len(shape)))
        perm[1], perm[axis] = axis, 1
        moved = out.transposed(x, perm)
        y = out.node("BatchNormalization", [moved, *rest], epsilon=attrs["eps"])
        out.transposed(y, perm, name)

    return Match(args, emit)


PLAIN: Mapping[str, Plain] = MappingProxyType(
    {
        "param": _param,
        "const": _const,
        "pad": _pad,
        "window": _window,
        "slice": _slices,
        "shift": _shift,
        "subsample": _slices,
        "upsample": _upsample,
        "reshape": _laid_out,
        "transpose": _laid_out,
        "concat": _concat,
        "split": _split,
        "broadcast": _broadcast,
        "contract": plain_contract,
        "sum": _reduction("ReduceSum"),
        "mean": _reduction("ReduceMean"),
        "max": _reduction("ReduceMax"),
        "add": _elementwise("Add"),
        "sub": _elementwise("Sub"),
        "mul": _elementwise("Mul"),
        "div": _elementwise("Div"),
        "maximum": _elementwise("Max"),
        "minimum": _elementwise("Min"),
        "neg": _elementwise("Neg"),
        "abs": _elementwise("Abs"),
        "exp": _elementwise("Exp"),
        "log": _elementwise("Log"),
        "sqrt": _elementwise("Sqrt"),
        "reciprocal": _elementwise("Reciprocal"),
        "square": _square,
        "relu": _elementwise("Relu"),
        "clip": _clip,
        "sigmoid": _elementwise("Sigmoid"),
        "tanh": _elementwise("Tanh"),
        "erf": _elementwise("Erf"),
        "where": _where,
        "normalize": _normalize,
    }
)

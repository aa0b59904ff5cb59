"""Recognising pools: window + max or mean, and reductions over all spatial axes."""

from __future__ import annotations

import math

from opadapt.ir.types import TensorType
from opadapt.lower.convolution import Source, source_of
from opadapt.lower.emit import Emitter
from opadapt.lower.match import Match, Recogniser
from opadapt.lower.view import View


def _pool_source(view: View, value: int, pad_value: float) -> Source | None:
    """The source of a reduction over exactly the taps of a window; None for anything else."""
    (window,) = view.args(value)
    if not view.is_op(window, "window"):
        return None
    rank = view.type(view.args(window)[0]).rank
    if set(view.program[value].attr["axes"]) != set(range(rank, view.type(window).rank)):
        return None
    source = source_of(view, window, pad_value, False)
    if source is None:
        return None
    # ONNX Runtime wants padding smaller than the kernel, and a pool of padding alone has no common meaning
    padded = [
        (p, k, d) for p, k, d in zip(source.pads, source.kernel, source.dilation, strict=True) if any(p)
    ]
    if any(max(p) >= k or d != 1 for p, k, d in padded):
        padded_value = view.args(window)[0]
        zero = ((0, 0),) * len(source.pads)
        return Source(padded_value, zero, source.kernel, source.stride, source.dilation, source.taps)
    return source


def _pooled(view: View, value: int, source: Source, op_type: str, **attrs: int) -> Match:
    kept = view.shape(value)[: len(source.kernel) + 2]

    def emit(out: Emitter, name: str) -> None:
        keepdims = view.program[value].attr["keepdims"]
        made = out.node(
            op_type, [out.names[source.value]], None if keepdims else name, **source.attrs, **attrs
        )
        if keepdims:
            out.reshaped(made, kept, view.shape(value), name)

    return Match((source.value,), emit)


def max_pool(view: View, value: int) -> Match | None:
    """max over the taps of window(pad(x, -inf)) -> MaxPool."""
    source = _pool_source(view, value, -math.inf)
    return None if source is None else _pooled(view, value, source, "MaxPool")


def average_pool(view: View, value: int) -> Match | None:
    """mean over the taps of window(pad(x, 0)) -> AveragePool that counts the padding."""
    source = _pool_source(view, value, 0.0)
    return None if source is None else _pooled(view, value, source, "AveragePool", count_include_pad=1)


def sum_pool(view: View, value: int) -> Match | None:
    """sum over the taps of a window -> AveragePool times the number of taps."""
    source = _pool_source(view, value, 0.0)
    if source is None or view.program[value].attr["keepdims"]:
        return None
    taps = math.prod(source.kernel)

    def emit(out: Emitter, name: str) -> None:
        mean = out.node("AveragePool", [out.names[source.value]], None, **source.attrs, count_include_pad=1)
        out.node("Mul", [mean, out.number(float(taps))], name)

    return Match((source.value,), emit)


def uncounted_average_pool(view: View, value: int) -> Match | None:
    """pool of x / pool of ones, padded alike -> AveragePool that does not count the padding."""
    above, below = view.args(value)
    if not all(view.is_op(v, "mean") and not view.program[v].attr["keepdims"] for v in (above, below)):
        return None
    source, ones = _pool_source(view, above, 0.0), _pool_source(view, below, 0.0)
    if source is None or ones is None or not view.is_filled(ones.value, 1.0) or source.attrs != ones.attrs:
        return None
    if "pads" not in source.attrs or view.shape(source.value)[2:] != view.shape(ones.value)[2:]:
        return None
    if view.shape(ones.value)[:2] != (1, 1):
        return None
    return Match(
        (source.value,),
        lambda out, name: out.node(
            "AveragePool", [out.names[source.value]], name, **source.attrs, count_include_pad=0
        ),
    )


def global_pool(op_type: str) -> Recogniser:
    """A reduction over all spatial axes of an image -> the global pool."""

    def recognise(view: View, value: int) -> Match | None:
        (arg,), attrs = view.args(value), view.program[value].attr
        whole: TensorType = view.type(arg)
        if not 3 <= whole.rank <= 5 or set(attrs["axes"]) != set(range(2, whole.rank)):
            return None
        kept = (*whole.shape[:2], *(1,) * (whole.rank - 2))

        def emit(out: Emitter, name: str) -> None:
            made = out.node(op_type, [out.names[arg]], name if attrs["keepdims"] else None)
            if not attrs["keepdims"]:
                out.reshaped(made, kept, view.shape(value), name)

        return Match((arg,), emit)

    return recognise

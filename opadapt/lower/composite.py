"""Recognising operators that are several instructions: Gelu, Softmax, LayerNormalization and the hard forms.

The forms are those that opadapt.expand writes, and the way exporters spell them out. An interior value that
something else reads keeps its own tensor as well; nothing is lost but the saving.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from opadapt.lower.contraction import channel_vector
from opadapt.lower.emit import Static
from opadapt.lower.match import Match
from opadapt.lower.view import View, take

SCALAR_RTOL = 1e-6  # constants of a formula as exporters round them to float32


def _one(operand: int, op_type: str, statics: tuple[Static, ...] = (), **attrs: float | int | str) -> Match:
    """A match that is one node reading one activation and then weights."""
    return Match(
        (operand,),
        lambda out, name: out.node(
            op_type, [out.names[operand], *(out.static(s) for s in statics)], name, **attrs
        ),
        statics,
    )


def _with_number(view: View, value: int, op: str) -> Iterator[tuple[int, float]]:
    """Readings of ``op(x, number)`` or ``op(number, x)`` as (x, number); the number changes no shape."""
    if view.is_op(value, op):
        a, b = view.args(value)
        for x, number in ((a, view.fill(b)), (b, view.fill(a))):
            if number is not None and view.keeps_shape(value, x) and not view.is_static(x):
                yield x, number


def _scaled(view: View, value: int) -> tuple[int, float] | None:
    """A value as (x, factor) where it is a multiple of x by a constant."""
    for x, factor in _with_number(view, value, "mul"):
        return x, factor
    if view.is_op(value, "div"):
        x, below = view.args(value)
        number = view.fill(below)
        if number and view.keeps_shape(value, x) and not view.is_static(x):
            return x, 1.0 / number
    return None


def _is_multiple(view: View, value: int, x: int, factor: float) -> bool:
    found = _scaled(view, value)
    return found is not None and found[0] == x and math.isclose(found[1], factor, rel_tol=SCALAR_RTOL)


# ---- Gelu -----------------------------------------------------------------------------------------------


def gelu(view: View, value: int) -> Match | None:
    """A product of x, 0.5 and (1 + erf(x / sqrt 2)), in any order -> Gelu; the tanh form likewise."""
    factors = view.factors(value)
    halves = [f for f in factors if view.is_filled(f, 0.5)]
    if len(factors) != 3 or len(halves) != 1:
        return None
    rest = take(factors, halves[0])
    assert rest is not None
    for x, gate in (rest, rest[::-1]):
        if not view.keeps_shape(value, x) or view.is_static(x):
            continue
        for inner, one in _with_number(view, gate, "add"):
            if one == 1.0 and view.is_op(inner, "erf"):
                if _is_multiple(view, view.args(inner)[0], x, math.sqrt(0.5)):
                    return _one(x, "Gelu")
            elif one == 1.0 and view.is_op(inner, "tanh") and _is_tanh_argument(view, view.args(inner)[0], x):
                return _one(x, "Gelu", approximate="tanh")
    return None


def _is_tanh_argument(view: View, value: int, x: int) -> bool:
    """Whether a value is sqrt(2 / pi) (x + 0.044715 x^3)."""
    scaled = _scaled(view, value)
    if scaled is None or not math.isclose(scaled[1], math.sqrt(2 / math.pi), rel_tol=SCALAR_RTOL):
        return False
    if not view.is_op(scaled[0], "add"):
        return False
    rest = take(view.args(scaled[0]), x)
    cubic = _scaled(view, rest[0]) if rest else None
    return (
        cubic is not None
        and math.isclose(cubic[1], 0.044715, rel_tol=SCALAR_RTOL)
        and _is_cube(view, cubic[0], x)
    )


def _is_cube(view: View, value: int, x: int) -> bool:
    if not view.is_op(value, "mul"):
        return False
    rest = take(view.args(value), x)
    if rest is None:
        return False
    square = rest[0]
    return (view.is_op(square, "square") and view.args(square) == (x,)) or (
        view.is_op(square, "mul") and view.args(square) == (x, x)
    )


# ---- hard forms -----------------------------------------------------------------------------------------


def hard_sigmoid(view: View, value: int) -> Match | None:
    """clip(alpha x + beta, 0, 1) -> HardSigmoid."""
    found = _hard_sigmoid(view, value)
    return None if found is None else _one(found[0], "HardSigmoid", alpha=found[1], beta=found[2])


def _hard_sigmoid(view: View, value: int) -> tuple[int, float, float] | None:
    """(x, alpha, beta)."""
    if not view.is_op(value, "clip"):
        return None
    attrs = view.program[value].attr
    if (attrs["min"], attrs["max"]) != (0.0, 1.0):
        return None
    for inner, beta in _with_number(view, view.args(value)[0], "add"):
        scaled = _scaled(view, inner)
        if scaled is not None:
            return scaled[0], scaled[1], beta
    return None


def hard_swish(view: View, value: int) -> Match | None:
    """x clip(x / 6 + 1/2, 0, 1), or x clip(x + 3, 0, 6) / 6 -> HardSwish."""
    for x, gate in (view.args(value), view.args(value)[::-1]):
        found = _hard_sigmoid(view, gate)
        if found is None or found[0] != x or not view.keeps_shape(value, x):
            continue
        if found[2] == 0.5 and math.isclose(found[1], 1 / 6, rel_tol=SCALAR_RTOL):
            return _one(x, "HardSwish")
    return _divided_hard_swish(view, value)


def _divided_hard_swish(view: View, value: int) -> Match | None:
    scaled = _scaled(view, value)
    if scaled is None or not math.isclose(scaled[1], 1 / 6, rel_tol=SCALAR_RTOL):
        return None
    product = scaled[0]
    if not view.is_op(product, "mul"):
        return None
    for x, gate in (view.args(product), view.args(product)[::-1]):
        if view.is_op(gate, "clip") and view.keeps_shape(product, x):
            attrs = view.program[gate].attr
            shifted = list(_with_number(view, view.args(gate)[0], "add"))
            if (attrs["min"], attrs["max"]) == (0.0, 6.0) and shifted == [(x, 3.0)]:
                return _one(x, "HardSwish")
    return None


def leaky_relu(view: View, value: int) -> Match | None:
    """where(x, x, alpha x) -> LeakyRelu; with a weight for alpha -> PRelu."""
    condition, x, other = view.args(value)
    if condition != x or not view.keeps_shape(value, x):
        return None
    scaled = _scaled(view, other)
    if scaled is not None and scaled[0] == x:
        return _one(x, "LeakyRelu", alpha=scaled[1])
    if not view.is_op(other, "mul") or not view.private(other) or not view.keeps_shape(other, x):
        return None
    rest = take(view.args(other), x)
    if rest is None or not view.is_static(rest[0]):
        return None
    slope = rest[0]
    shape = tuple(int(d) for d in view.shape(slope))
    # the slope needs at least one axis to be more than a number to every reader of the file
    return _one(x, "PRelu", (Static(slope, tuple(range(len(shape))), shape or (1,)),))


# ---- Softmax and LayerNormalization ---------------------------------------------------------------------


def softmax(view: View, value: int) -> Match | None:
    """exp(x - max x) / sum of it, along one axis -> Softmax."""
    powers, total = view.args(value)
    if not (view.is_op(powers, "exp") and view.is_op(total, "sum") and view.args(total) == (powers,)):
        return None
    (shifted,) = view.args(powers)
    if not view.is_op(shifted, "sub"):
        return None
    x, top = view.args(shifted)
    if not view.is_op(top, "max") or view.args(top) != (x,):
        return None
    attrs = view.program[total].attr
    if attrs != view.program[top].attr or not attrs["keepdims"] or len(attrs["axes"]) != 1:
        return None
    return _one(x, "Softmax", axis=attrs["axes"][0])


def _standardised(view: View, value: int) -> tuple[int, int, float] | None:
    """(x, first axis, eps) where a value is (x - mean) / sqrt(variance + eps) over the last axes."""
    if not view.is_op(value, "div"):
        return None
    centred, deviation = view.args(value)
    if not view.is_op(centred, "sub") or not view.is_op(deviation, "sqrt"):
        return None
    x, mean = view.args(centred)
    if not view.is_op(mean, "mean") or view.args(mean) != (x,) or not view.program[mean].attr["keepdims"]:
        return None
    axes, rank = view.program[mean].attr["axes"], view.type(x).rank
    first = min(axes)
    if set(axes) != set(range(first, rank)):
        return None
    for variance, eps in _with_number(view, view.args(deviation)[0], "add"):
        if not view.is_op(variance, "mean") or view.program[variance].attrs != view.program[mean].attrs:
            continue
        (square,) = view.args(variance)
        if (view.is_op(square, "square") and view.args(square) == (centred,)) or (
            view.is_op(square, "mul") and view.args(square) == (centred, centred)
        ):
            return x, first, eps
    return None


def _scaled_standard(view: View, value: int) -> tuple[int, int, float, Static] | None:
    """The same times a weight over the normalised axes."""
    if not view.is_op(value, "mul"):
        return None
    for inner, scale in (view.args(value), view.args(value)[::-1]):
        found = _standardised(view, inner)
        weight = None if found is None else _over_last(view, scale, value, found[1])
        if found is not None and weight is not None:
            return (*found, weight)
    return None


def _over_last(view: View, value: int, whole: int, first: int) -> Static | None:
    """A weight with exactly the axes from ``first`` on."""
    shape = view.shape(whole)[first:]
    if len(shape) == 1:
        return channel_vector(view, value, view.type(whole), first)
    if not view.is_static(value) or view.shape(value) != shape:
        return None
    return Static(value, tuple(range(len(shape))), tuple(int(d) for d in shape))


def scaled_layer_normalization(view: View, value: int) -> Match | None:
    """A standardised tensor times a scale -> LayerNormalization without shift."""
    found = _scaled_standard(view, value)
    if found is None:
        return None
    x, first, eps, scale = found
    return _one(x, "LayerNormalization", (scale,), axis=first, epsilon=eps)


def layer_normalization(view: View, value: int) -> Match | None:
    """A standardised tensor times a scale plus a shift -> LayerNormalization."""
    for inner, shift in (view.args(value), view.args(value)[::-1]):
        found = _scaled_standard(view, inner) if view.private(inner) else None
        offset = None if found is None else _over_last(view, shift, value, found[1])
        if found is not None and offset is not None and view.keeps_shape(value, inner):
            x, first, eps, scale = found
            return _one(x, "LayerNormalization", (scale, offset), axis=first, epsilon=eps)
    return None

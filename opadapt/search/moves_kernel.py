"""Moves that make whole kernels: convolutions, pools, matrix products, attention, squeeze-and-excitation."""

from __future__ import annotations

import math

from opadapt.ir.types import BATCH, TensorType
from opadapt.search.draft import Draft

_SPATIAL, _TAPS = "hw", "ij"


def _is_image(t: TensorType) -> bool:
    return t.rank in (3, 4) and t.batch_axis == 0


def _channels(d: Draft) -> int:
    return int(d.choose([2, 3, 4, 6, 8]))


def _taps(d: Draft, x: int, value: float = 0.0, inside: bool = False) -> tuple[int, str, str]:
    """pad -> window over all spatial axes (at times over one of two); letters of the axes and of the taps.

    ``inside``: every window has an element of x.
    """
    spatial = d.type(x).rank - 2
    axes = list(range(2, 2 + spatial))
    if spatial == 2 and d.chance(0.2):
        axes = [d.choose(axes)]
    kernel = [d.integer(1, 3) for _ in axes]
    stride = [d.integer(1, 2) for _ in axes]
    dilation = [1 if inside else d.choose([1, 1, 1, 2]) for _ in axes]
    pads = [(0, 0)] * d.type(x).rank
    for axis, size in zip(axes, kernel, strict=True):
        reach = size - 1 if inside else 2
        pads[axis] = (d.integer(0, reach), d.integer(0, reach))
    if any(p != (0, 0) for p in pads) or d.chance(0.1):
        x = d.emit("pad", x, pads=tuple(pads), value=value)
        if math.isinf(value):
            d.hidden.add(x)
    made = d.emit(
        "window", x, axes=tuple(axes), kernel=tuple(kernel), stride=tuple(stride), dilation=tuple(dilation)
    )
    if math.isinf(value):
        d.hidden.add(made)
    return made, _SPATIAL[:spatial], _TAPS[: len(axes)]


def _biased(d: Draft, x: int) -> int:
    """The bias of a convolution, at times, and an activation after it, at times."""
    if d.chance(0.6) and {"reshape", "add"} <= d.allowed:
        size = d.size(x, 1)
        bias = d.emit("reshape", d.param("bias", (size,)), shape=(1, size, *(1,) * (d.type(x).rank - 2)))
        x = d.emit("add", x, bias)
    return d.emit("relu", x) if d.chance(0.3) and "relu" in d.allowed else x


def dense(d: Draft) -> int:
    taps, s, t = _taps(d, d.pick(_is_image))
    kernel = d.shape(taps)[2 + len(s) :]
    weight = d.param("w", (_channels(d), d.size(taps, 1), *(int(k) for k in kernel)))
    return _biased(d, d.emit("contract", taps, weight, einsum=f"nc{s}{t},oc{t}->no{s}"))


def depthwise(d: Draft) -> int:
    taps, s, t = _taps(d, d.pick(_is_image))
    kernel = d.shape(taps)[2 + len(s) :]
    weight = d.param("w", (d.size(taps, 1), *(int(k) for k in kernel)))
    return _biased(d, d.emit("contract", taps, weight, einsum=f"nc{s}{t},c{t}->nc{s}"))


def grouped(d: Draft) -> int:
    """[N, C, ...] as [N, G, C/G, ...] -> per-group kernels -> [N, O, ...]."""
    x = d.pick(lambda t: _is_image(t) and t.shape[1] not in (1, 3))
    taps, s, t = _taps(d, x)
    channels = d.size(taps, 1)
    groups = d.choose([g for g in range(2, channels + 1) if channels % g == 0])
    rest = d.shape(taps)[2:]
    split = d.emit("reshape", taps, shape=(BATCH, groups, channels // groups, *rest))
    each = d.integer(1, 3)
    kernel = tuple(int(k) for k in rest[len(s) :])
    weight = d.param("w", (groups, each, channels // groups, *kernel))
    made = d.emit("contract", split, weight, einsum=f"ngc{s}{t},goc{t}->ngo{s}")
    return _biased(d, d.emit("reshape", made, shape=(BATCH, groups * each, *rest[: len(s)])))


def pointwise(d: Draft) -> int:
    """A 1x1 convolution, strided at times."""
    x = d.pick(_is_image)
    s = _SPATIAL[: d.type(x).rank - 2]
    if d.chance(0.4) and "subsample" in d.allowed:
        for axis in range(2, d.type(x).rank):
            x = d.emit("subsample", x, axis=axis, step=2)
    weight = d.param("w", (_channels(d), d.size(x, 1)))
    return _biased(d, d.emit("contract", x, weight, einsum=f"nc{s},oc->no{s}"))


def gemm(d: Draft) -> int:
    """Rows times a matrix of weights, with a bias at times."""
    x = d.pick(lambda t: t.rank in (2, 3, 4) and t.shape[-1] != BATCH)
    rows = "nlp"[: d.type(x).rank - 1]
    inner, outer = d.size(x, d.type(x).rank - 1), _channels(d)
    if d.chance(0.7):
        made = d.emit("contract", x, d.param("w", (inner, outer)), einsum=f"{rows}k,km->{rows}m")
    else:
        made = d.emit("contract", x, d.param("w", (outer, inner)), einsum=f"{rows}k,mk->{rows}m")
    return d.emit("add", made, d.param("bias", (outer,))) if d.chance(0.6) else made


def window(d: Draft) -> int:
    """Sliding windows along any axes, left as they are or reduced."""
    x = d.pick(lambda t: t.rank > 0)
    axes = d.rng.permutation(d.sized_axes(x, 2))[: d.integer(1, 2)].tolist()
    count = len(axes)
    made = d.emit(
        "window",
        x,
        axes=tuple(axes),
        kernel=tuple(d.integer(1, 2) for _ in range(count)),
        stride=tuple(d.integer(1, 2) for _ in range(count)),
        dilation=tuple(d.choose([1, 1, 2]) for _ in range(count)),
    )
    return made if d.chance(0.3) else d.emit("max", made, axes=(d.type(made).rank - 1,), keepdims=0)


def pool(d: Draft) -> int:
    """Maximum, mean or sum of windows."""
    op = d.choose(["max", "mean", "sum"])
    x = d.pick(_is_image)
    uncounted = op == "mean" and d.chance(0.5)  # at the border, the mean without the padding
    made, s, t = _taps(d, x, -math.inf if op == "max" else 0.0, op == "max" or uncounted)
    first = 2 + len(s)
    pooled = d.emit(op, made, axes=tuple(range(first, first + len(t))), keepdims=0)
    return _uncounted(d, x, made, pooled) if uncounted else pooled


def _uncounted(d: Draft, x: int, window: int, pooled: int) -> int:
    """The mean divided by the share of each window that is no padding."""
    steps, offset = d.builder.body, len(d.builder.inputs)
    slide = steps[window - offset]
    source = slide.args[0]
    ones = d.number(1.0, (1, 1, *(d.size(x, a) for a in range(2, d.type(x).rank))))
    if source != x:
        ones = d.emit("pad", ones, **steps[source - offset].attr)
    taps = d.emit("window", ones, **slide.attr)
    share = d.emit("mean", taps, **steps[pooled - offset].attr)
    return d.emit("div", pooled, share)


def global_pool(d: Draft) -> int:
    x = d.pick(_is_image)
    axes = tuple(range(2, d.type(x).rank))
    return d.emit(d.choose(["mean", "max"]), x, axes=axes, keepdims=d.integer(0, 1))


def squeeze_excite(d: Draft) -> int:
    """x times a gate per channel computed from its spatial mean (arXiv 1709.01507, section 3)."""
    x = d.pick(_is_image)
    s, channels = _SPATIAL[: d.type(x).rank - 2], d.size(x, 1)
    mean = d.emit("mean", x, axes=tuple(range(2, d.type(x).rank)), keepdims=0)
    hidden = d.emit("contract", mean, d.param("w", (channels, 2)), einsum="nk,km->nm")
    gate = d.emit("contract", hidden, d.param("w", (2, channels)), einsum="nk,km->nm")
    gate = d.emit("sigmoid", gate)
    return d.emit("contract", x, gate, einsum=f"nc{s},nc->nc{s}")


def half_resolution(d: Draft) -> int:
    """Pool, 1x1 convolution, upsample back, cut to size."""
    x = d.pick(lambda t: _is_image(t) and min(int(s) for s in t.shape[2:]) > 2)
    spatial = list(range(2, d.type(x).rank))
    y = x
    for axis in spatial:
        y = d.emit("subsample", y, axis=axis, step=2)
    letters = _SPATIAL[: len(spatial)]
    y = d.emit("contract", y, d.param("w", (d.size(y, 1),) * 2), einsum=f"nc{letters},oc->no{letters}")
    for axis in spatial:
        y = d.emit("upsample", y, axis=axis, factor=2)
        if d.size(y, axis) > d.size(x, axis):
            y = d.emit("slice", y, axis=axis, start=0, stop=d.size(x, axis))
    return y


def attention(d: Draft) -> int:
    """Scores of all pairs of rows, and the rows weighted by them."""
    x = d.pick(lambda t: t.rank in (3, 4) and t.batch_axis == 0)
    h = "h"[: d.type(x).rank - 3]
    y = d.pick(lambda t: t.shape == d.shape(x))
    scores = d.emit("contract", x, y, einsum=f"n{h}qd,n{h}kd->n{h}qk")
    if d.chance(0.5):
        return d.emit("transpose", scores, perm=(0, *range(d.type(scores).rank - 1, 0, -1)))
    gate = d.emit("tanh", scores)
    return d.emit("contract", gate, y, einsum=f"n{h}qk,n{h}kd->n{h}qd")


_LETTERS = "nabcdefg"


def any_contraction(d: Draft) -> int:
    """A value and a parameter that share random letters, the result in random order."""
    x = d.pick(lambda t: 0 < t.rank <= 5)
    letters = _LETTERS[: d.type(x).rank]
    sized = d.sized_axes(x)
    shared = d.rng.permutation(sized)[: d.integer(1, 3)].tolist()
    d.require(bool(shared))
    sizes = {letters[a]: d.size(x, a) for a in shared}
    for new in "xy"[: d.integer(0, 2)]:
        sizes[new] = d.integer(1, 4)
    own = "".join(d.rng.permutation(list(sizes)).tolist())
    kept = [c for c in letters if c not in sizes] + [c for c in sizes if c in "xy"]
    kept += [letters[a] for a in shared if d.chance(0.4)]
    # an axis that only the value has may be summed too; the batch may not
    kept = [c for c in kept if c in own or d.shape(x)[letters.index(c)] == BATCH or d.chance(0.9)]
    result = "".join(d.rng.permutation(kept).tolist())
    d.require(len(result) <= 5)
    weight = d.param("w", tuple(sizes[c] for c in own))
    operands, text = (x, weight), f"{letters},{own}"
    if d.chance(0.2):
        operands, text = (weight, x), f"{own},{letters}"
    return d.emit("contract", *operands, einsum=f"{text}->{result}")


def any_product(d: Draft) -> int:
    """Two activations that share the letters of axes with equal sizes."""
    x = d.pick(lambda t: t.rank > 0)
    y = d.pick(lambda t: t.rank > 0 and (t.batch_axis is None) == (d.type(x).batch_axis is None))
    letters, own = _LETTERS[: d.type(x).rank], ""
    for axis, size in enumerate(d.shape(y)):
        same = [c for i, c in enumerate(letters) if d.shape(x)[i] == size and c not in own]
        own += d.choose(same) if same and (size == BATCH or d.chance(0.7)) else "uvwxyz"[axis]
    both = [c for c in letters if c in own]
    batch = d.type(x).batch_axis
    kept = [c for i, c in enumerate(letters) if i == batch or c not in own or d.chance(0.4)]
    kept += [c for c in own if c not in both and d.chance(0.8)]
    d.require(len(kept) <= 5)
    result = "".join(d.rng.permutation(kept).tolist())
    return d.emit("contract", x, y, einsum=f"{letters},{own}->{result}")

"""The moves of the random generator: each adds a few instructions, guarded so that operands stay in domain.

``MOVES`` maps an instruction to the moves that contain it. A move that does not apply raises ProgramError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from opadapt.ir.types import BATCH, Dim, TensorType
from opadapt.search import moves_kernel as kernel
from opadapt.search.draft import Draft

Move = Callable[[Draft], int]

# ---- structure ------------------------------------------------------------------------------------------


def pad(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 0)
    axes = d.sized_axes(x)
    pads = [(0, 0)] * d.type(x).rank
    for axis in {d.choose(axes), d.choose(axes)}:
        pads[axis] = (d.integer(0, 2), d.integer(0, 2))
    return d.emit("pad", x, pads=tuple(pads), value=d.choose([0.0, 0.0, 0.5, -1.0]))


def cut(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 0)
    axis = d.choose(d.sized_axes(x, 2))
    start = d.integer(0, d.size(x, axis) - 1)
    return d.emit("slice", x, axis=axis, start=start, stop=d.integer(start + 1, d.size(x, axis)))


def shift(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 0)
    axis = d.choose(d.sized_axes(x, 2))
    reach = min(2, d.size(x, axis) - 1)
    return d.emit("shift", x, axis=axis, offset=d.integer(-reach, reach))


def subsample(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 0)
    for axis in d.rng.permutation(d.sized_axes(x, 2))[: d.integer(1, 2)].tolist():
        x = d.emit("subsample", x, axis=axis, step=d.integer(2, 3))
    return x


def upsample(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 0)
    for axis in d.rng.permutation(d.sized_axes(x))[: d.integer(1, 2)].tolist():
        x = d.emit("upsample", x, axis=axis, factor=d.integer(2, 3))
    return x


def reshape(d: Draft) -> int:
    """Merge two neighbouring axes, split one into two factors, or add an axis of size 1."""
    x = d.pick()
    shape = list(d.shape(x))
    sized = d.sized_axes(x)
    merging = [a for a in sized if a + 1 in sized]
    if merging and d.chance(0.5):
        axis = d.choose(merging)
        shape[axis : axis + 2] = [d.size(x, axis) * d.size(x, axis + 1)]
    elif sized and d.chance(0.7) and len(shape) < 6:
        axis = d.choose(sized)
        size = d.size(x, axis)
        factor = d.choose([f for f in range(1, size + 1) if size % f == 0])
        shape[axis : axis + 1] = [factor, size // factor]
    else:
        d.require(len(shape) < 6)
        shape.insert(d.integer(0, len(shape)), 1)
    return d.emit("reshape", x, shape=tuple(shape))


def transpose(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 1)
    return d.emit("transpose", x, perm=tuple(d.rng.permutation(d.type(x).rank).tolist()))


def concat(d: Draft) -> int:
    """Values that agree off one axis, or a value with itself."""
    x = d.pick(lambda t: t.rank > 0)
    axis = d.choose(d.sized_axes(x))

    def off_axis(t: TensorType) -> tuple[Dim, ...]:
        return t.shape[:axis] + t.shape[axis + 1 :]

    rank = d.type(x).rank
    others = [
        d.pick(lambda t: t.rank == rank and t.shape[axis] != BATCH and off_axis(t) == off_axis(d.type(x)))
        for _ in range(d.integer(0, 2))
    ]
    return d.emit("concat", x, *others, axis=axis)


def split(d: Draft) -> int:
    """Some pieces of a value, shifted by different amounts where they may be, together again."""
    x = d.pick(lambda t: t.rank > 0)
    axis = d.choose(d.sized_axes(x, 2))
    size = d.size(x, axis)
    parts = d.choose([p for p in range(2, min(size, 4) + 1) if size % p == 0])
    pieces = [d.emit("split", x, axis=axis, parts=parts, index=i) for i in range(parts)]
    if d.chance(0.3) or not {"concat", "shift"} <= d.allowed:
        return int(d.choose(pieces))
    along = d.choose([a for a in d.sized_axes(x, 2) if a != axis])
    moved = [p if i == 0 else d.emit("shift", p, axis=along, offset=(-1) ** i) for i, p in enumerate(pieces)]
    return d.emit("concat", *moved, axis=axis)


def broadcast(d: Draft) -> int:
    """A tensor with an axis of size 1, or a small parameter, spread out and combined with what it fits."""
    x = d.pick(lambda t: t.rank > 1 and t.batch_axis == 0)
    if d.chance(0.5):
        axes = d.sized_axes(x)
        small = d.emit("mean", x, axes=(d.choose(axes),), keepdims=1)
        return d.emit("sub", x, d.emit("broadcast", small, shape=d.shape(x)))
    sizes = tuple(int(s) for s in d.shape(x)[1:])
    param = d.param("b", (sizes[0], *(1,) * (len(sizes) - 1)))
    return d.emit("add", x, d.emit("broadcast", param, shape=sizes))


# ---- reductions and element-wise instructions -----------------------------------------------------------


def reduction(op: str) -> Move:
    def move(d: Draft) -> int:
        x = d.pick(lambda t: t.rank > 1)
        count = d.integer(1, 2)
        axes = sorted(d.rng.permutation(d.sized_axes(x))[:count].tolist())
        d.require(bool(axes))
        return d.emit(op, x, axes=tuple(axes), keepdims=d.integer(0, 1))

    return move


def unary(op: str) -> Move:
    return lambda d: d.emit(op, d.pick())


def binary(op: str) -> Move:
    def move(d: Draft) -> int:
        x = d.pick()
        operands = [x, _partner(d, x)]
        if d.chance(0.3):
            operands.reverse()
        return d.emit(op, *operands)

    return move


def _partner(d: Draft, x: int) -> int:
    """Something that broadcasts with x: a number, a parameter per channel, or a value of the same type."""
    form, shape = d.rng.random(), d.shape(x)
    if form < 0.15 and "const" in d.allowed:
        return d.number(d.choose([0.5, -1.5, 2.0]), d.choose([(), (1,)]))
    if form < 0.4 and "param" in d.allowed and len(shape) > 1:
        axis = d.choose(d.sized_axes(x))
        after = (1,) * (len(shape) - axis - 1)
        return d.param("s", (d.size(x, axis), *after))
    return d.pick(lambda t: t.shape == shape)


def mul(d: Draft) -> int:
    return binary("mul")(d)


def div(d: Draft) -> int:
    x = d.pick()
    below = d.emit("add", d.emit("abs", _partner(d, x)), d.number(0.5))
    return d.emit("div", x, below)


def from_half(op: str) -> Move:
    """log, sqrt, reciprocal of |x| + 1/2."""
    return lambda d: d.emit(op, d.emit("add", d.emit("abs", d.pick()), d.number(0.5)))


def exp(d: Draft) -> int:
    if d.chance(0.5) and "clip" in d.allowed:
        return d.emit("exp", d.emit("clip", d.pick(), min=-4.0, max=2.0))
    return d.emit("exp", d.emit("neg", d.emit("abs", d.pick())))


def clip(d: Draft) -> int:
    low, high = d.choose([(0.0, 6.0), (-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)])
    return d.emit("clip", d.pick(), min=low, max=high)


def param(d: Draft) -> int:
    """A parameter, perhaps laid out by structure instructions, added to or multiplied with a value."""
    x = d.pick(lambda t: t.rank > 1)
    axis = d.choose(d.sized_axes(x))
    rank, size = d.type(x).rank, d.size(x, axis)
    vector = d.param("p", (size,))
    spread = d.emit("reshape", vector, shape=tuple(size if a == axis else 1 for a in range(rank)))
    return d.emit(d.choose(["add", "mul", "sub", "maximum"]), x, spread)


def const(d: Draft) -> int:
    x = d.pick()
    sized = d.sized_axes(x)
    shape = tuple(d.size(x, a) if a in sized else 1 for a in range(d.type(x).rank))
    return d.emit(d.choose(["add", "mul", "minimum"]), x, d.number(d.choose([0.25, -1.0]), shape))


def where(d: Draft) -> int:
    """A choice by the sign of a value without rounding: elsewhere the sign of a zero would be chance."""
    x = d.pick()
    exact = [v for v, t in enumerate(d.builder.types) if d.exact[v] and t.shape == d.shape(x)]
    if exact and d.chance(0.6):
        return d.emit("where", d.choose(exact), x, _partner(d, x))
    slope = d.number(0.1) if d.chance(0.5) or d.type(x).rank < 2 else _slope(d, x)
    return d.emit("where", x, x, d.emit("mul", x, slope))


def _slope(d: Draft, x: int) -> int:
    axis = d.choose(d.sized_axes(x))
    return d.param("slope", (d.size(x, axis), *(1,) * (d.type(x).rank - axis - 1)))


# ---- operators of several instructions ------------------------------------------------------------------


def softmax(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 1)
    axis = d.choose(d.sized_axes(x))
    powers = d.emit("exp", d.emit("sub", x, d.emit("max", x, axes=(axis,), keepdims=1)))
    return d.emit("div", powers, d.emit("sum", powers, axes=(axis,), keepdims=1))


def gelu(d: Draft) -> int:
    x = d.pick()
    gate = d.emit("erf", d.emit("mul", x, d.number(0.70710678)))
    return d.emit("mul", d.emit("mul", x, d.number(0.5)), d.emit("add", gate, d.number(1.0)))


def swish(d: Draft) -> int:
    x = d.pick()
    return d.emit("mul", x, d.emit("sigmoid", x))


def hard_swish(d: Draft) -> int:
    x = d.pick()
    inner = d.emit("add", d.emit("mul", x, d.number(1 / 6)), d.number(0.5))
    gate = d.emit("clip", inner, min=0.0, max=1.0)
    return d.emit("mul", x, gate) if d.chance(0.5) else gate


def standardise(d: Draft) -> int:
    """Layer normalisation over the last axis, with scale and shift."""
    x = d.pick(lambda t: t.rank > 1 and t.shape[-1] != BATCH and t.shape[-1] != 1)
    axes, width = (d.type(x).rank - 1,), d.size(x, d.type(x).rank - 1)
    centred = d.emit("sub", x, d.emit("mean", x, axes=axes, keepdims=1))
    variance = d.emit("mean", d.emit("square", centred), axes=axes, keepdims=1)
    scaled = d.emit("div", centred, d.emit("sqrt", d.emit("add", variance, d.number(0.1))))
    return d.emit("add", d.emit("mul", scaled, d.param("g", (width,))), d.param("b", (width,)))


def normalize(d: Draft) -> int:
    x = d.pick(lambda t: t.rank > 0)
    sized = d.sized_axes(x)
    axis = 1 if 1 in sized and d.chance(0.7) else d.choose(sized)
    stats = [d.param(stem, (d.size(x, axis),)) for stem in ("scale", "shift", "mean", "var")]
    return d.emit("normalize", x, *stats, axis=axis, eps=1e-5)


def bounded_square(d: Draft) -> int:
    return d.emit("square", d.emit("tanh", d.pick()))


_CONVOLUTIONS: tuple[Move, ...] = (kernel.dense, kernel.depthwise, kernel.grouped)

MOVES: Mapping[str, tuple[Move, ...]] = MappingProxyType(
    {
        "param": (param, *_CONVOLUTIONS, kernel.pointwise, kernel.gemm),
        "const": (const, binary("add"), hard_swish),
        "pad": (pad, *_CONVOLUTIONS, kernel.pool),
        "window": (kernel.window, *_CONVOLUTIONS, kernel.pool),
        "slice": (cut,),
        "shift": (shift, split),
        "subsample": (subsample, kernel.pointwise),
        "upsample": (upsample, kernel.half_resolution),
        "reshape": (reshape, kernel.grouped),
        "transpose": (transpose, kernel.attention),
        "concat": (concat, split),
        "split": (split,),
        "broadcast": (broadcast,),
        "contract": (
            *_CONVOLUTIONS,
            kernel.pointwise,
            kernel.gemm,
            kernel.squeeze_excite,
            kernel.attention,
            kernel.any_contraction,
            kernel.any_product,
        ),
        "sum": (reduction("sum"), softmax, kernel.pool),
        "mean": (reduction("mean"), kernel.pool, kernel.global_pool, kernel.squeeze_excite),
        "max": (reduction("max"), kernel.pool, softmax, kernel.global_pool),
        "add": (binary("add"),),
        "sub": (binary("sub"),),
        "mul": (mul, swish, hard_swish),
        "div": (div, softmax),
        "maximum": (binary("maximum"),),
        "minimum": (binary("minimum"),),
        "neg": (unary("neg"), exp),
        "abs": (unary("abs"),),
        "exp": (exp, softmax),
        "log": (from_half("log"),),
        "sqrt": (from_half("sqrt"), standardise),
        "reciprocal": (from_half("reciprocal"),),
        "square": (unary("square"), bounded_square, standardise),
        "relu": (unary("relu"),),
        "clip": (clip, hard_swish),
        "sigmoid": (unary("sigmoid"), swish, kernel.squeeze_excite),
        "tanh": (unary("tanh"),),
        "erf": (unary("erf"), gelu),
        "where": (where,),
        "normalize": (normalize,),
    }
)

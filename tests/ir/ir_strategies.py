"""Random valid programs: one way of adding a step per instruction of the table."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from hypothesis import strategies as st

from opadapt.errors import ProgramError
from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Builder, Program
from opadapt.ir.types import BATCH, Dim, TensorType

Draw = Callable[..., int]
MAX_ELEMENTS = 4096


def _value(draw: Draw, b: Builder) -> int:
    return draw(st.integers(0, len(b.types) - 1))


def _axis(draw: Draw, b: Builder, value: int) -> int:
    axes = [i for i, d in enumerate(b.types[value].shape) if d != BATCH]
    if not axes:
        raise ProgramError("no axis")
    return draw(st.sampled_from(axes))


def _size(b: Builder, value: int, axis: int) -> int:
    size = b.types[value].shape[axis]
    assert isinstance(size, int)
    return size


def _pad(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    pads = tuple(
        (0, 0) if d == BATCH else (draw(st.integers(0, 1)), draw(st.integers(0, 1))) for d in b.types[x].shape
    )
    return b.emit("pad", x, pads=pads, value=draw(st.sampled_from([0.0, -1.5, float("-inf")])))


def _window(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    axis = _axis(draw, b, x)
    small = st.integers(1, 2)
    return b.emit(
        "window",
        x,
        axes=(axis,),
        kernel=(draw(st.integers(1, 3)),),
        stride=(draw(small),),
        dilation=(draw(small),),
    )


def _slice(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    axis = _axis(draw, b, x)
    start = draw(st.integers(0, _size(b, x, axis) - 1))
    return b.emit("slice", x, axis=axis, start=start, stop=draw(st.integers(start + 1, _size(b, x, axis))))


def _shift(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    axis = _axis(draw, b, x)
    limit = _size(b, x, axis) - 1
    return b.emit("shift", x, axis=axis, offset=draw(st.integers(-limit, limit)))


def _subsample(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    return b.emit("subsample", x, axis=_axis(draw, b, x), step=draw(st.integers(1, 3)))


def _upsample(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    return b.emit("upsample", x, axis=_axis(draw, b, x), factor=draw(st.integers(1, 2)))


def _reshape(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    shape: list[Dim] = [BATCH] if b.types[x].batch_axis is not None else []
    rest = b.types[x].elements
    for divisor in (2, 3):
        if rest % divisor == 0 and draw(st.booleans()):
            shape.append(divisor)
            rest //= divisor
    return b.emit("reshape", x, shape=(*shape, rest))


def _transpose(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    return b.emit("transpose", x, perm=tuple(draw(st.permutations(range(b.types[x].rank)))))


def _concat(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    same = [v for v, t in enumerate(b.types) if t == b.types[x]]
    values = draw(st.lists(st.sampled_from(same), min_size=1, max_size=3))
    return b.emit("concat", *values, axis=_axis(draw, b, x))


def _split(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    axis = _axis(draw, b, x)
    parts = draw(st.sampled_from([p for p in (1, 2, 3) if _size(b, x, axis) % p == 0]))
    return b.emit("split", x, axis=axis, parts=parts, index=draw(st.integers(0, parts - 1)))


def _broadcast(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    shape = tuple(2 if d == 1 else d for d in b.types[x].shape)
    return b.emit("broadcast", x, shape=shape if BATCH in shape else (draw(st.integers(1, 2)), *shape))


def _contract(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    letters = "nabcdefg"[: b.types[x].rank]
    axis = _axis(draw, b, x)
    gone = letters[axis]
    w = b.param(f"w{len(b.types)}", (draw(st.integers(1, 3)), _size(b, x, axis)))
    return b.emit("contract", x, w, einsum=f"{letters},o{gone}->{letters.replace(gone, 'o')}")


def _reduction(op: str) -> Callable[[Draw, Builder], int]:
    def step(draw: Draw, b: Builder) -> int:
        x = _value(draw, b)
        return b.emit(op, x, axes=(_axis(draw, b, x),), keepdims=draw(st.integers(0, 1)))

    return step


def _elementwise(op: str) -> Callable[[Draw, Builder], int]:
    def step(draw: Draw, b: Builder) -> int:
        x = _value(draw, b)
        partners = [v for v, t in enumerate(b.types) if t.rank == 0 or t == b.types[x]]
        others = [draw(st.sampled_from(partners)) for _ in range((TABLE[op].arity or 1) - 1)]
        return b.emit(op, *draw(st.permutations([x, *others])))

    return step


def _clip(draw: Draw, b: Builder) -> int:
    low = draw(st.sampled_from([float("-inf"), -1.0, 0.0]))
    return b.emit("clip", _value(draw, b), min=low, max=draw(st.sampled_from([0.5, 6.0, float("inf")])))


def _normalize(draw: Draw, b: Builder) -> int:
    x = _value(draw, b)
    axis = _axis(draw, b, x)
    size, base = _size(b, x, axis), len(b.types)
    vectors = [b.param(f"{name}{base}", (size,)) for name in ("scale", "shift", "mean", "var")]
    return b.emit("normalize", x, *vectors, axis=axis, eps=1e-3)


def _param(draw: Draw, b: Builder) -> int:
    name = draw(st.sampled_from(["w", "a b", 'q"', "é\n"])) + str(len(b.types))
    return b.param(name, tuple(draw(st.lists(st.integers(1, 3), max_size=3))))


def _const(draw: Draw, b: Builder) -> int:
    value = draw(st.one_of(st.sampled_from([0.0, 1.0, -0.5]), st.floats(allow_nan=False, width=32)))
    return b.const(value, tuple(draw(st.lists(st.integers(1, 3), max_size=2))))


STEPS: dict[str, Callable[[Draw, Builder], int]] = {
    "pad": _pad,
    "window": _window,
    "slice": _slice,
    "shift": _shift,
    "subsample": _subsample,
    "upsample": _upsample,
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "split": _split,
    "broadcast": _broadcast,
    "contract": _contract,
    **{op: _reduction(op) for op in ("sum", "mean", "max")},
    **{op: _elementwise(op) for op, spec in TABLE.items() if spec.kind == "elementwise"},
    "clip": _clip,
    "normalize": _normalize,
    "param": _param,
    "const": _const,
}


@st.composite
def programs(draw: Draw, without: Collection[str] = (), steps: int = 8) -> Program:
    """A program of up to ``steps`` steps over one or two inputs; a step that does not type-check is left out."""
    sizes = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)
    inputs = [TensorType((BATCH, *draw(sizes)))]
    if draw(st.booleans()):
        inputs.append(draw(st.sampled_from([inputs[0], TensorType((3,)), TensorType(())])))
    b = Builder(inputs)
    for op in draw(st.lists(st.sampled_from([op for op in STEPS if op not in without]), max_size=steps)):
        try:
            value = STEPS[op](draw, b)
        except ProgramError:
            continue
        if b.types[value].elements > MAX_ELEMENTS or b.types[value].rank > 7:
            b.body.pop()
            b.types.pop()
    return b.build(draw(st.integers(0, len(b.types) - 1)))


def arrays(program: Program, seed: int) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Normal inputs at batch 2 and a binding (variances positive) for a program."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(t.at_batch(2)).astype(np.float32) for t in program.inputs]
    binding = {}
    for name, shape in program.params.items():
        value = rng.standard_normal(shape).astype(np.float32)
        binding[name] = np.abs(value) if name.startswith("var") else value
    return inputs, binding

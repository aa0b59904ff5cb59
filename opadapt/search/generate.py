"""Random valid programs, numerically tame, that use every instruction: for the search and for the truth test.

A program grows by moves (``opadapt.search.moves``): an instruction is drawn first, then a move that contains it,
so that rare instructions are as likely as frequent ones. Then the last value is brought to the demanded type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np

from opadapt.errors import ProgramError
from opadapt.ir.canonical import live_values
from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Builder, Instruction, Program, Signature
from opadapt.ir.spec import Array
from opadapt.ir.types import BATCH, TensorType
from opadapt.search.draft import Draft, Rng
from opadapt.search.moves import MOVES

ATTEMPTS = 40  # moves tried per instruction of the wanted length before giving up


def random_program(
    rng: Rng, signature: Signature | None, instructions: Collection[str], length: int
) -> Program:
    """A valid program of about ``length`` live instructions (a move adds up to ten at once), all of them allowed.

    Without a signature, inputs and output are drawn too. With one, the program's end is repaired to the
    demanded output type. Raises ProgramError where the allowed instructions cannot reach that type.
    """
    unknown = sorted(set(instructions) - set(TABLE))
    if unknown:
        raise ProgramError(f"no instruction '{unknown[0]}'", expected=", ".join(TABLE), found=str(unknown))
    inputs = signature.inputs if signature is not None else _random_inputs(rng)
    draft = Draft(rng, inputs, frozenset(instructions), None if signature is None else signature.output)
    names = sorted(set(instructions) & set(MOVES))
    last = _first_value(draft)
    for _ in range(ATTEMPTS * length):
        if draft.live_instructions(last) >= length or not names:
            break
        made = _grow(draft, names[int(rng.integers(len(names)))])
        if made is not None:
            last = made
    if signature is not None:
        last = _fit(draft, last, signature.output)
    return pruned(draft.program(last))


def _random_inputs(rng: Rng) -> tuple[TensorType, ...]:
    """One to three inputs: images, sequences, rows and vectors, mostly with a batch."""
    size: Callable[[int, int], int] = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    forms = (
        lambda: (BATCH, int(rng.choice([2, 3, 4, 6, 8, 12])), size(3, 9), size(3, 9)),
        lambda: (BATCH, int(rng.choice([2, 4, 6])), size(4, 12)),
        lambda: (BATCH, size(2, 6), size(2, 4), size(2, 6)),
        lambda: (BATCH, size(2, 12)),
        lambda: (size(1, 6), size(2, 6)),
    )
    weights = (0.5, 0.2, 0.1, 0.15, 0.05)
    inputs = [TensorType(forms[int(rng.choice(len(forms), p=weights))]()) for _ in range(size(1, 2))]
    if rng.random() < 0.3:
        inputs.append(inputs[0])
    return tuple(inputs)


def _first_value(draft: Draft) -> int:
    return int(draft.rng.integers(len(draft.builder.inputs)))


def _grow(draft: Draft, instruction: str) -> int | None:
    """One move containing the instruction; None where it does not apply here."""
    moves = MOVES[instruction]
    move = moves[int(draft.rng.integers(len(moves)))]
    try:
        return draft.tamed(move(draft))
    except ProgramError:
        return None


def pruned(program: Program) -> Program:
    """The program without the instructions its output does not need."""
    live = live_values(program)
    builder = Builder(program.inputs)
    numbers = {number: number for number in range(len(program.inputs))}
    for position, step in enumerate(program.body):
        value = program.number(position)
        if value in live:
            renumbered = Instruction(step.op, tuple(numbers[a] for a in step.args), step.attrs)
            numbers[value] = builder.append(renumbered)
    return builder.build(numbers[program.output])


# ---- repair of the output type --------------------------------------------------------------------------


def _fit(draft: Draft, last: int, target: TensorType) -> int:
    """Bring the last value that can be to the target type. Raises ProgramError where none can."""
    batched = target.batch_axis is not None
    older = [v for v in range(last, -1, -1) if v not in draft.hidden]
    found = [v for v in older if (draft.type(v).batch_axis is not None) == batched]
    refusal = ProgramError(
        f"random program: no value to make {target} from",
        expected="an input with the batch" if batched else "an input without the batch",
        found=", ".join(map(str, draft.builder.inputs)),
    )
    for value in found:
        try:
            return _fitted(draft, value, target)
        except ProgramError as error:
            refusal = error
    raise refusal


def _fitted(draft: Draft, last: int, target: TensorType) -> int:
    last = _fit_rank(draft, last, target)
    axes = [a for a in range(target.rank) if draft.shape(last)[a] != target.shape[a]]
    # shrink before growing, so that no intermediate is larger than it must be
    axes.sort(key=lambda a: int(target.shape[a]) / int(draft.shape(last)[a]))
    for axis in axes:
        last = _fit_axis(draft, last, axis, int(target.shape[axis]))
    return last


def _fit_rank(draft: Draft, value: int, target: TensorType) -> int:
    """Give a value as many axes as the target has, the batch at its place."""
    shape = list(draft.shape(value))
    if target.batch_axis is not None:
        perm = [a for a in range(len(shape)) if shape[a] != BATCH]
        perm.insert(min(target.batch_axis, len(perm)), shape.index(BATCH))
        if perm != list(range(len(perm))):
            value = draft.emit("transpose", value, perm=tuple(perm))
    while draft.type(value).rank > target.rank:
        axis = max(a for a, d in enumerate(draft.shape(value)) if d != BATCH)
        value = _first_way(draft, _DROPPING, value, axis, 0)
    shape = list(draft.shape(value))
    missing = target.rank - len(shape)
    if missing:
        at = len(shape)
        if target.batch_axis is not None:
            # axes of size 1 go before the batch until it is in place, the others last
            before = target.batch_axis - shape.index(BATCH)
            shape[:0] = [1] * before
            missing -= before
            at = len(shape)
        shape[at:at] = [1] * missing
        value = draft.emit("reshape", value, shape=tuple(shape))
    return value


def _fit_axis(draft: Draft, value: int, axis: int, size: int) -> int:
    """Change the size of one axis."""
    return _first_way(draft, _RESIZING, value, axis, size)


Way = Callable[[Draft, int, int, int], int]  # (draft, value, axis, new size; 0: the axis goes) -> value


def _first_way(draft: Draft, ways: tuple[Way, ...], value: int, axis: int, size: int) -> int:
    """The first way, in random order, that applies and is allowed. Raises ProgramError where none does."""
    for index in draft.rng.permutation(len(ways)):
        try:
            return ways[int(index)](draft, value, axis, size)
        except ProgramError:
            continue
    raise ProgramError(
        f"random program: cannot make axis {axis} of {draft.type(value)} have size {size}",
        expected="contract and param, or the structure instructions, among the allowed",
        found=", ".join(sorted(draft.allowed)),
    )


def _averaged(draft: Draft, value: int, axis: int, size: int) -> int:
    return draft.emit("mean", value, axes=(axis,), keepdims=0)


def _weighed(draft: Draft, value: int, axis: int, size: int) -> int:
    """A contraction of the axis with a vector."""
    letters = "nchwdefg"[: draft.type(value).rank]
    weight = draft.param("w", (draft.size(value, axis),))
    return draft.emit(
        "contract", value, weight, einsum=f"{letters},{letters[axis]}->{letters.replace(letters[axis], '')}"
    )


_DROPPING: tuple[Way, ...] = (_averaged, _weighed)


def _mixed(draft: Draft, value: int, axis: int, size: int) -> int:
    """A contraction with a parameter (a 1x1 convolution, where the axis is the channels)."""
    rank = draft.type(value).rank
    letters = "".join("nchwdefg"[i] for i in range(rank))
    old = letters[axis]
    weight = draft.param("w", (size, int(draft.shape(value)[axis])))
    return draft.emit("contract", value, weight, einsum=f"{letters},o{old}->{letters.replace(old, 'o')}")


def _pooled(draft: Draft, value: int, axis: int, size: int) -> int:
    old = int(draft.shape(value)[axis])
    draft.require(old > size and old % size == 0)
    factor = old // size
    window = draft.emit("window", value, axes=(axis,), kernel=(factor,), stride=(factor,), dilation=(1,))
    return draft.emit("mean", window, axes=(draft.type(window).rank - 1,), keepdims=0)


def _subsampled(draft: Draft, value: int, axis: int, size: int) -> int:
    old = int(draft.shape(value)[axis])
    step = math.ceil(old / size)
    draft.require(old > size and -(-old // step) == size)
    return draft.emit("subsample", value, axis=axis, step=step)


def _cut(draft: Draft, value: int, axis: int, size: int) -> int:
    draft.require(int(draft.shape(value)[axis]) > size)
    return draft.emit("slice", value, axis=axis, start=0, stop=size)


def _repeated(draft: Draft, value: int, axis: int, size: int) -> int:
    old = int(draft.shape(value)[axis])
    draft.require(size > old and size % old == 0)
    return draft.emit("upsample", value, axis=axis, factor=size // old)


def _padded(draft: Draft, value: int, axis: int, size: int) -> int:
    missing = size - int(draft.shape(value)[axis])
    draft.require(missing > 0)
    pads = [(0, 0)] * draft.type(value).rank
    pads[axis] = (missing // 2, missing - missing // 2)
    return draft.emit("pad", value, pads=tuple(pads), value=0.0)


_RESIZING: tuple[Way, ...] = (_mixed, _pooled, _subsampled, _cut, _repeated, _padded)


# ---- values ---------------------------------------------------------------------------------------------


def random_binding(program: Program, rng: Rng) -> dict[str, Array]:
    """Values for the parameters: normal, scaled by the fan-in; variances of ``normalize`` between 0.5 and 1.5."""
    variances = {
        program[step.args[4]].attr["name"]
        for step in program.body
        if step.op == "normalize"
        and step.args[4] >= len(program.inputs)
        and program[step.args[4]].op == "param"
    }
    binding = {}
    for name, shape in program.params.items():
        if name in variances:
            value = rng.uniform(0.5, 1.5, size=shape)
        else:
            value = rng.normal(size=shape) * param_scale(shape)
        binding[name] = value.astype(np.float32)
    return binding


def param_scale(shape: tuple[int, ...]) -> float:
    """The standard deviation of a random parameter: one over the root of the fan-in of its first axis."""
    return 1.0 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5


__all__ = ["param_scale", "pruned", "random_binding", "random_program"]

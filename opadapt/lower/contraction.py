"""Contractions that are no convolution: Gemm, MatMul, or a broadcasting Mul, with axes moved where needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opadapt.ir.compute import split_einsum
from opadapt.ir.types import Dim, TensorType
from opadapt.lower.emit import Emitter, Static, merged
from opadapt.lower.match import Match
from opadapt.lower.view import View


@dataclass(frozen=True)
class Operand:
    """One side of a product: axes to sum, axes to move, the shape after that, the shape to multiply in."""

    value: int
    summed: tuple[int, ...]
    perm: tuple[int, ...]
    moved: tuple[Dim, ...]
    shape: tuple[Dim, ...]

    def static(self, view: View) -> Static | None:
        if self.summed or not view.is_static(self.value):
            return None
        return Static(self.value, self.perm, tuple(int(d) for d in self.shape))

    def emit(self, view: View, out: Emitter) -> str:
        static = self.static(view)
        if static is not None:
            return out.static(static)
        current = out.names[self.value]
        if self.summed:
            current = out.node("ReduceSum", [current, out.ints(self.summed)], keepdims=0)
        return out.reshaped(out.transposed(current, self.perm), self.moved, self.shape)


@dataclass(frozen=True)
class Side:
    """A value with its letters, those left out that no other operand and no result has."""

    value: int
    all_letters: str
    lone: frozenset[str]

    @property
    def letters(self) -> str:
        return "".join(c for c in self.all_letters if c not in self.lone)

    def dim(self, view: View, letter: str) -> Dim:
        return view.shape(self.value)[self.all_letters.index(letter)]

    def operand(self, view: View, order: str, shape: list[Dim]) -> Operand:
        return Operand(
            self.value,
            tuple(self.all_letters.index(c) for c in self.all_letters if c in self.lone),
            tuple(self.letters.index(c) for c in order),
            tuple(self.dim(view, c) for c in order),
            tuple(shape),
        )

    def grouped(self, view: View, groups: list[str], merge: list[bool]) -> Operand:
        """The axes in the order of the groups, those groups merged to one axis that say so."""
        shape: list[Dim] = []
        for group, merging in zip(groups, merge, strict=True):
            dims = [self.dim(view, c) for c in group]
            shape.extend([merged(dims)] if merging else dims)
        return self.operand(view, "".join(groups), shape)


def _match(view: View, operands: list[Operand], emit: Callable[[Emitter, str], object]) -> Match:
    statics = [o.static(view) for o in operands]
    active = tuple(o.value for o, static in zip(operands, statics, strict=True) if static is None)
    return Match(active, emit, tuple(s for s in statics if s is not None))


def _product(view: View, sides: list[Side], result: str) -> Match:
    """Nothing is summed: the operands, axes in the result's order and 1 for what they lack, multiply."""
    operands = []
    for side in sides:
        order = "".join(c for c in result if c in side.letters)
        shape: list[Dim] = [side.dim(view, c) if c in order else 1 for c in result]
        # leading axes of size 1 are what broadcasting adds by itself
        lead = next((i for i, c in enumerate(result) if c in order), len(result))
        operands.append(side.operand(view, order, shape[lead:]))
    return _match(
        view, operands, lambda out, name: out.node("Mul", [o.emit(view, out) for o in operands], name)
    )


def plain_contract(view: View, value: int, bias: Static | None = None) -> Match:
    """Gemm for a matrix of activations and a weight (with the bias, if any), Mul or MatMul otherwise."""
    a, b, result = split_einsum(view.program[value].attr["einsum"])
    left, right = (
        Side(operand, own, frozenset(set(own) - set(other) - set(result)))
        for operand, own, other in zip(view.args(value), (a, b), (b, a), strict=True)
    )
    summed = "".join(c for c in left.letters if c not in result)
    if not summed:
        return _product(view, [left, right], result)
    batch = "".join(c for c in result if c in a and c in b)
    free = [c for c in result if c not in batch]
    if free and free[0] in right.letters:
        left, right = right, left
    rows = "".join(c for c in free if c in left.letters)
    columns = "".join(c for c in free if c in right.letters)
    one = left.grouped(view, [batch, rows, summed], [False, bool(batch) or not rows, True])
    two = right.grouped(view, [batch, summed, columns], [False, True, True])
    made = batch + rows + columns
    made_shape = [(left if c in left.letters else right).dim(view, c) for c in made]
    raw = [*one.shape[:-1], two.shape[-1]]
    weighted = two.static(view) is not None and one.static(view) is None
    op_type = "Gemm" if weighted and len(one.shape) == 2 else "MatMul"

    def emit(out: Emitter, name: str) -> None:
        inputs = [one.emit(view, out), two.emit(view, out)]
        if bias is not None:
            inputs.append(out.static(bias))
        reshapes, moves = raw != made_shape, made != result
        current = out.node(op_type, inputs, None if reshapes or moves else name)
        if reshapes:
            current = out.reshaped(current, raw, made_shape, None if moves else name)
        if moves:
            out.transposed(current, [made.index(c) for c in result], name)

    match = _match(view, [one, two], emit)
    return match if bias is None else Match(match.operands, match.emit, (*match.statics, bias))


def gemm_with_bias(view: View, value: int) -> Match | None:
    """add(contract "nk,km->nm" with a weight, vector over m) -> Gemm with C."""
    for inner, bias in (view.args(value), view.args(value)[::-1]):
        if not (view.is_op(inner, "contract") and view.private(inner) and view.is_static(bias)):
            continue
        a, b, result = split_einsum(view.program[inner].attr["einsum"])
        left, right = view.args(inner)
        if view.is_static(left):
            a, b, left, right = b, a, right, left
        plain_matrix = len(a) == len(b) == len(result) == 2 and result[0] in a and result[1] in b
        summed = set(a) & set(b) - set(result)
        vector = channel_vector(view, bias, view.type(value), 1)
        if (
            plain_matrix
            and len(summed) == 1
            and result[0] not in b
            and result[1] not in a
            and vector is not None
            and view.is_static(right)
            and not view.is_static(left)
            and view.keeps_shape(value, inner)
        ):
            return plain_contract(view, inner, vector)
    return None


def channel_vector(view: View, value: int, whole: TensorType, axis: int) -> Static | None:
    """A static operand that broadcasts over ``whole`` along one axis alone, as a vector; None otherwise."""
    shape = view.shape(value)
    aligned = (1,) * (whole.rank - len(shape)) + shape
    size = whole.shape[axis]
    if not view.is_static(value) or not isinstance(size, int) or len(aligned) != whole.rank:
        return None
    if any(d != (size if i == axis else 1) for i, d in enumerate(aligned)):
        return None
    return Static(value, tuple(range(len(shape))), (size,))


__all__ = ["channel_vector", "gemm_with_bias", "plain_contract"]

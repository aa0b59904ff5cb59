"""Repair: re-infer the shapes of parameters after an edit, so that a mutant type-checks or is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opadapt.errors import ProgramError
from opadapt.ir.compute import split_einsum
from opadapt.ir.instructions import spec_of
from opadapt.ir.program import Instruction, Program, make
from opadapt.ir.types import BATCH, Dim, TensorType


class _Repair:
    """One forward pass over the steps; leaves (a param, or a reshape of one) take the shape their reader needs."""

    def __init__(self, inputs: Sequence[TensorType], steps: Sequence[Instruction]) -> None:
        self.inputs = tuple(inputs)
        self.steps = list(steps)
        self.types: list[TensorType] = list(inputs)

    def step(self, value: int) -> Instruction | None:
        return self.steps[value - len(self.inputs)] if value >= len(self.inputs) else None

    def is_leaf(self, value: int) -> bool:
        step = self.step(value)
        return step is not None and (
            step.op == "param" or (step.op == "reshape" and self.is_leaf(step.args[0]))
        )

    def resize(self, value: int, shape: tuple[Dim, ...]) -> None:
        """Give a leaf another shape. Raises ProgramError where that is not possible."""
        step = self.step(value)
        if step is None or self.types[value].shape == shape:
            return
        sizes = [d for d in shape if isinstance(d, int)]
        if len(sizes) != len(shape):
            raise ProgramError("a parameter cannot have the batch's size", found=str(shape))
        if step.op == "param":
            new = make("param", name=step.attr["name"], shape=tuple(sizes))
        else:
            source = step.args[0]
            if self.types[source].rank == 1:
                self.resize(source, (math.prod(sizes),))
            new = make("reshape", step.args, shape=tuple(sizes))
        self.steps[value - len(self.inputs)] = new
        self.types[value] = TensorType(tuple(sizes))

    def fit_contract(self, step: Instruction) -> None:
        a, b, _ = split_einsum(step.attr["einsum"])
        for mine, other, leaf, fixed in (
            (b, a, step.args[1], step.args[0]),
            (a, b, step.args[0], step.args[1]),
        ):
            if self.is_leaf(leaf) and not self.is_leaf(fixed) and self.types[leaf].rank == len(mine):
                sizes = dict(zip(other, self.types[fixed].shape, strict=False))
                self.resize(
                    leaf, tuple(sizes.get(x, d) for x, d in zip(mine, self.types[leaf].shape, strict=True))
                )
                return

    def fit_elementwise(self, step: Instruction) -> None:
        for leaf in step.args:
            others = [self.types[v] for v in step.args if v != leaf and not self.is_leaf(v)]
            if not (self.is_leaf(leaf) and others):
                continue
            target = max(others, key=lambda t: t.rank).shape
            shape = self.types[leaf].shape
            tail = target[len(target) - len(shape) :]
            if len(shape) <= len(target):
                self.resize(leaf, tuple(d if d == 1 else t for d, t in zip(shape, tail, strict=True)))

    def fit_normalize(self, step: Instruction) -> None:
        size = self.types[step.args[0]].shape[step.attr["axis"]]
        for leaf in step.args[1:]:
            if self.is_leaf(leaf):
                self.resize(leaf, (size,))

    def fit_reshape(self, position: int, step: Instruction) -> None:
        """An activation's reshape whose element count changed: one axis near the channels takes the change."""
        source = self.types[step.args[0]]
        shape = list(step.attr["shape"])
        if self.is_leaf(step.args[0]) or math.prod(d for d in shape if d != BATCH) == source.elements:
            return
        for axis in (1, 2, 0):
            if axis >= len(shape) or shape[axis] == BATCH:
                continue
            rest = math.prod(d for i, d in enumerate(shape) if d != BATCH and i != axis)
            if source.elements % rest == 0:
                shape[axis] = source.elements // rest
                self.steps[position] = make("reshape", step.args, shape=tuple(shape))
                return
        raise ProgramError(
            "no axis of the reshape can take the change", expected=str(source), found=str(shape)
        )

    def run(self) -> None:
        fits = {"contract": self.fit_contract, "normalize": self.fit_normalize}
        for position in range(len(self.steps)):
            step = self.steps[position]
            spec = spec_of(step.op)
            if step.op == "reshape":
                self.fit_reshape(position, step)
            elif step.op in fits:
                fits[step.op](step)
            elif spec.kind == "elementwise" and len(step.args) > 1:
                self.fit_elementwise(step)
            step = self.steps[position]
            self.types.append(spec.infer([self.types[a] for a in step.args], step.attr))


def reinfer(
    inputs: Sequence[TensorType], steps: Sequence[Instruction], output: int, wanted: TensorType
) -> Program:
    """The program of the steps with parameter shapes made to fit. Raises ProgramError where nothing fits."""
    if any(not 0 <= a < len(inputs) + i for i, step in enumerate(steps) for a in step.args):
        raise ProgramError("an operand is used before it is made")
    repair = _Repair(inputs, steps)
    repair.run()
    program = Program(tuple(inputs), tuple(repair.steps), output)
    if program.signature.output != wanted:
        raise ProgramError(
            "the edit changes the output", expected=str(wanted), found=str(program.signature.output)
        )
    return program

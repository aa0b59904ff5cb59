"""Static costs of a program at batch 1: what can be known without a device. They bound, they do not rank."""

from __future__ import annotations

import math

from opadapt.ir.canonical import live_values
from opadapt.ir.compute import split_einsum
from opadapt.ir.instructions import spec_of
from opadapt.ir.program import Program

BYTES_PER_ELEMENT = 4


def count_macs(program: Program) -> int:
    """Multiply-accumulates of the live contractions at batch 1: the product of the sizes of all letters."""
    total = 0
    for value in _steps(program):
        step = program[value]
        if step.op == "contract":
            sizes: dict[str, int] = {}
            for letters, arg in zip(split_einsum(step.attr["einsum"])[:2], step.args, strict=True):
                sizes.update(zip(letters, program.types[arg].at_batch(1), strict=True))
            total += math.prod(sizes.values())
    return total


def count_params(program: Program) -> int:
    """Number of elements of the live parameters, each name counted once."""
    live = {
        program[v].attr["name"]: program[v].attr["shape"] for v in _steps(program) if _is_param(program, v)
    }
    return sum(math.prod(shape) for shape in live.values())


def count_bytes(program: Program) -> int:
    """Bytes moved at batch 1: activations written and read by the computing instructions, and the parameters.

    Structure instructions are views: what reads one reads the tensors it was made from, so a sliding window
    counts its input once and not once per tap.
    """
    reads: list[int] = [t.elements for t in program.inputs]
    total = 0
    live = live_values(program)
    for position, step in enumerate(program.body):
        number = program.number(position)
        kind = spec_of(step.op).kind
        size = program.types[number].elements
        operands = sum(reads[a] for a in step.args)
        if kind == "leaf":
            reads.append(0)
        elif kind == "structure":
            reads.append(min(size, operands))
        else:
            reads.append(size)
            total += size + operands if number in live else 0
    return BYTES_PER_ELEMENT * (total + count_params(program))


def _steps(program: Program) -> list[int]:
    return [v for v in sorted(live_values(program)) if v >= len(program.inputs)]


def _is_param(program: Program, value: int) -> bool:
    return program[value].op == "param"

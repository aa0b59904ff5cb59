"""Static costs of a program at batch 1: what can be known without a device. They bound, they do not rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from opadapt.ir.canonical import live_values
from opadapt.ir.compute import split_einsum
from opadapt.ir.instructions import spec_of
from opadapt.ir.program import Program
from opadapt.ir.spec import Kind

BYTES_PER_ELEMENT = 4


def count_macs(program: Program) -> int:
    """Multiply-accumulates of the live contractions at batch 1: the product of the sizes of all letters."""
    return sum(macs for macs, _ in _contractions(program))


def count_batched_macs(program: Program) -> int:
    """Those of contractions whose operands share an axis with the result (grouped, depthwise, attention): many small
    products, which hardware computes more slowly than one large product."""
    return sum(macs for macs, batched in _contractions(program) if batched)


def count_kinds(program: Program) -> Counter[Kind]:
    """Numbers of live instructions by their kind."""
    return Counter(spec_of(program[v].op).kind for v in _steps(program))


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


def _contractions(program: Program) -> Iterator[tuple[int, bool]]:
    """Of each live contraction the multiply-accumulates at batch 1, and whether it is batched."""
    for value in _steps(program):
        step = program[value]
        if step.op == "contract":
            sizes: dict[str, int] = {}
            first, second, result = split_einsum(step.attr["einsum"])
            for letters, arg in zip((first, second), step.args, strict=True):
                sizes.update(zip(letters, program.types[arg].at_batch(1), strict=True))
            shared = set(first) & set(second) & set(result)
            yield math.prod(sizes.values()), any(sizes[letter] > 1 for letter in shared)


def _steps(program: Program) -> list[int]:
    return [v for v in sorted(live_values(program)) if v >= len(program.inputs)]


def _is_param(program: Program, value: int) -> bool:
    return program[value].op == "param"

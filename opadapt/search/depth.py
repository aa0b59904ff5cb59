"""Depth: programs that are equal parts in a row, and the same with fewer of them.

Before -> after, parts 0 and 2 of 4 kept: ``x -> p0 -> p1 -> p2 -> p3`` -> ``x -> p0 -> p2``. Removing layers instead of
filters: Elkerdawy et al. 2020, arXiv 2007.05667. Parts are found on the SSA program, by structure alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from opadapt.errors import ProgramError
from opadapt.ir.canonical import canonical, digest, live_values
from opadapt.ir.program import Builder, Instruction, Program

Part = tuple[int, int]  # the value that goes into a part, and the one that comes out


def cut_points(program: Program) -> tuple[int, ...]:
    """The values through which everything flows from the inputs to the output, in order, the output last.

    What is made of parameters and constants alone does not flow. Without a live input there are none.
    """
    live = sorted(live_values(program))
    inputs = [v for v in live if v < len(program.inputs)]
    flowing = set(inputs)
    last_read = dict.fromkeys(live, -1)
    for value in live[len(inputs) :]:
        args = program[value].args
        last_read.update((a, value) for a in args)
        if not flowing.isdisjoint(args):
            flowing.add(value)
    # a value is one if nothing made before it is read after it; several inputs are all there from the start
    reach = max(last_read[v] for v in inputs) if len(inputs) > 1 else -1
    found: list[int] = []
    for value in sorted(flowing):
        if reach <= value:
            found.append(value)
        reach = max(reach, last_read[value])
    return tuple(found)


def parts(program: Program) -> tuple[Part, ...]:
    """The most equal parts in a row that lie between the program's first and last cut point; empty without two."""
    stretches = list(pairwise(cut_points(program)))
    forms = [digest(_between(program, *stretch)) for stretch in stretches]
    for period in range(1, len(forms) // 2 + 1):
        if len(forms) % period == 0 and forms[period:] == forms[:-period]:
            ends = [before for before, _ in stretches[::period]] + [stretches[-1][1]]
            return tuple(pairwise(ends))
    return ()


def _between(program: Program, start: int, end: int) -> Program:
    """What makes a cut point of an earlier one."""
    builder = Builder([program.types[start]])
    numbers = {start: 0}
    for value in sorted(live_values(program, end, given=start) - {start}):
        step = program[value]
        numbers[value] = builder.append(
            Instruction(step.op, tuple(numbers[a] for a in step.args), step.attrs)
        )
    return builder.build(numbers[end])


def shortened(program: Program, keep: Collection[int]) -> Program:
    """The program with these of its equal parts alone, counted from 0, in canonical form; its parameters keep their
    names. Raises ProgramError where it has no such parts."""
    row = parts(program)
    if not row or not all(0 <= part < len(row) for part in keep):
        raise ProgramError("no such equal parts", expected=f"some of {len(row)}", found=str(sorted(keep)))
    stands = list(range(len(program.types)))
    for number, (before, after) in enumerate(row):
        if number not in keep:
            stands[after] = stands[before]
    steps = tuple(Instruction(s.op, tuple(stands[a] for a in s.args), s.attrs) for s in program.body)
    return canonical(Program(program.inputs, steps, stands[program.output]))


def depths(count: int, percents: Sequence[int]) -> list[int]:
    """How many of ``count`` parts to keep for these shares: some, not all, each number once, largest first."""
    kept = {max(1, round(count * percent / 100)) for percent in percents}
    return sorted((keep for keep in kept if keep < count), reverse=True)


def evenly(count: int, keep: int) -> tuple[int, ...]:
    """Which of ``count`` parts to keep, the first among them and spread evenly, as in pruning every other layer (Fan et
    al. 2019, arXiv 1909.11556). Any others would make the same program with other weights, which is not searched twice.
    """
    return tuple(number * count // keep for number in range(keep))

"""What recorded samples of a program's inputs make of its other values."""

from __future__ import annotations

from opadapt.ir.canonical import live_values
from opadapt.ir.interpret import run
from opadapt.ir.program import Builder, Instruction, Program
from opadapt.ir.spec import Array
from opadapt.search.candidate import Candidate
from opadapt.search.kept import Kept


class Seen:
    """A candidate's values on the samples that go with it, computed when they are asked for and kept while there is
    room: the rules ask for the same few, once for each of their choices and members."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._kept = Kept()

    def __call__(self, member: int, value: int) -> Array | None:
        """A value of one member [rows, ...], not to be written to; None where no samples go with the candidate."""
        if not self.candidate.samples:
            return None
        return self._kept((member, value), lambda: (self._computed(member, value),))[0]

    def _computed(self, member: int, value: int) -> Array:
        program = ending_in(self.candidate.program, value)
        return run(program, self.candidate.samples[member], self.candidate.bindings[member])


def ending_in(program: Program, value: int) -> Program:
    """The program of one of a program's values: the instructions that it depends on, and no others."""
    builder = Builder(program.inputs)
    numbers = {number: number for number in range(len(program.inputs))}
    for number in sorted(live_values(program, value) - set(numbers)):
        step = program[number]
        args = tuple(numbers[a] for a in step.args)
        numbers[number] = builder.append(Instruction(step.op, args, step.attrs))
    return builder.build(numbers[value])

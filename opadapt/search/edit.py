"""What the point mutations share: where they find something to edit, what they draw, and how an edit ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np

from opadapt.errors import ProgramError
from opadapt.ir.program import Instruction, Program
from opadapt.search.reinfer import reinfer
from opadapt.search.space import Space

Rng = np.random.Generator
Mutation = Callable[[Program, Rng, Space], Program]
T = TypeVar("T")


class DoesNotApply(ProgramError):
    """A variation finds nothing to work on: no candidate was made, so none was refused."""


def pick(rng: Rng, items: Sequence[T], what: str) -> T:
    """One of the items. Raises DoesNotApply if there are none."""
    if not items:
        raise DoesNotApply(f"nothing to choose from: no {what}")
    return items[int(rng.integers(len(items)))]


def pick_choice(rng: Rng, space: Space, name: str) -> int:
    """One of the space's choices of a name. Raises DoesNotApply if it has none."""
    return pick(rng, space.choices.get(name, ()), f"{name} among the choices of the space")


def positions(program: Program, ops: Collection[str]) -> list[int]:
    """Where in the body instructions of these names are."""
    return [i for i, step in enumerate(program.body) if step.op in ops]


def is_param(program: Program, value: int) -> bool:
    return value >= len(program.inputs) and program[value].op == "param"


def finish(program: Program, steps: Sequence[Instruction], output: int | None = None) -> Program:
    """The program with its body edited (and another output value, if given), its parameters made to fit.

    Raises ProgramError where that does not type-check, and DoesNotApply where nothing is changed.
    """
    output = program.output if output is None else output
    if (tuple(steps), output) == (program.body, program.output):
        raise DoesNotApply("the edit changes nothing")
    return reinfer(program.inputs, steps, output, program.signature.output)


__all__ = ["DoesNotApply", "Mutation", "Rng", "finish", "is_param", "pick", "pick_choice", "positions"]

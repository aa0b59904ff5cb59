"""Constants folded: what constants alone make is one constant, and a constant has one form."""

from __future__ import annotations

import numpy as np

from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Instruction, Program, make
from opadapt.ir.spec import Array

# Of operands that are each filled with one number, these make a result filled with one number.
_FOLDABLE = frozenset({name for name, spec in TABLE.items() if spec.kind == "elementwise"}) | frozenset(
    {"const", "reshape", "broadcast"}
)


def fold_constants(program: Program) -> Program:
    """``mul(const 2, const 3)`` -> ``const 6``: equal types, equal numbering; the operands stay, as dead code.

    What gives NaN stays as it is: ``const`` cannot state it.
    """
    arrays: dict[int, Array] = {}
    body: list[Instruction] = []
    for position, step in enumerate(program.body):
        if step.op in _FOLDABLE and all(a in arrays for a in step.args):
            with np.errstate(all="ignore"):
                array = np.asarray(
                    TABLE[step.op].meaning([arrays[a] for a in step.args], step.attr), np.float32
                )
            if (array == array.flat[0]).all():
                arrays[program.number(position)] = array
                step = make("const", value=_shortest(array.flat[0]), shape=array.shape)
        body.append(step)
    return Program(program.inputs, tuple(body), program.output) if arrays else program


def _shortest(value: np.float32) -> float:
    """The shortest decimal that rounds to the same float32, without the sign of a zero."""
    return float(str(value)) + 0.0


__all__ = ["fold_constants"]

"""The meaning of a program: every instruction's numpy meaning, in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opadapt.errors import ProgramError
from opadapt.ir.instructions import spec_of
from opadapt.ir.program import Binding, Program
from opadapt.ir.spec import Array


def run(program: Program, inputs: Sequence[Array], binding: Binding) -> Array:
    """Evaluate a program on float32 arrays (batch free). Raises ProgramError where an array does not fit."""
    return run_all(program, inputs, binding)[program.output]


def run_all(program: Program, inputs: Sequence[Array], binding: Binding) -> list[Array]:
    """All values of a program, by number. Raises ProgramError where an array does not fit."""
    if len(inputs) != len(program.inputs):
        raise ProgramError("number of inputs", expected=str(len(program.inputs)), found=str(len(inputs)))
    batch: int | None = None  # the first input that has one decides
    for number, (expected, array) in enumerate(zip(program.inputs, inputs, strict=True)):
        if batch is None and expected.batch_axis is not None and array.ndim == expected.rank:
            batch = array.shape[expected.batch_axis]
        if array.shape != expected.at_batch(batch or 1):
            raise ProgramError(f"input {number}", expected=str(expected), found=str(array.shape))
    values: list[Array] = [np.asarray(a, dtype=np.float32) for a in inputs]
    for step in program.body:
        if step.op == "param":
            value = binding.get(step.attr["name"])
            if value is None or value.shape != step.attr["shape"]:
                found = "nothing" if value is None else str(value.shape)
                raise ProgramError(
                    f"param '{step.attr['name']}'", expected=str(step.attr["shape"]), found=found
                )
            values.append(np.asarray(value, dtype=np.float32))
        else:
            with np.errstate(all="ignore"):  # values that are not finite mean something, too
                values.append(spec_of(step.op).meaning([values[a] for a in step.args], step.attr))
    return values

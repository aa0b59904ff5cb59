"""How far rounding errors can grow: the magnitude of what was added up to make each value.

An implementation may be off by ``Spec.rtol`` at every instruction, relative to the magnitude of what it added up,
not of what was left of it: x - mean(x) may be nearly 0 and off by the rounding of x. ``magnitude`` follows that
through a program to first order, so that (sum of rtol) * magnitude bounds the error of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Program
from opadapt.ir.spec import Attrs

Array = np.ndarray
# (magnitudes of the operands, the operands, the result, attributes, instruction) -> magnitude of the result
Rule = Callable[[Sequence[Array], Sequence[Array], Array, Attrs, str], Array]


def _same(m: Sequence[Array], x: Sequence[Array], y: Array, at: Attrs, op: str) -> Array:
    """Linear with coefficients of 0 and more, or a selection: the instruction itself."""
    return np.abs(TABLE[op].meaning(m, at))


def _sum(m: Sequence[Array], x: Sequence[Array], y: Array, at: Attrs, op: str) -> Array:
    return m[0] + m[1]


def _largest(m: Sequence[Array], x: Sequence[Array], y: Array, at: Attrs, op: str) -> Array:
    return np.broadcast_to(np.maximum(m[-1], m[-2]), y.shape) if len(m) > 1 else m[0]


def _pad(m: Sequence[Array], x: Sequence[Array], y: Array, at: Attrs, op: str) -> Array:
    # padding with -inf is no magnitude: only the maximum follows, which does not choose it
    value = at["value"] if np.isfinite(at["value"]) else 0.0
    return np.abs(TABLE["pad"].meaning(m, {**at, "value": value}))


def _normalize(m: Sequence[Array], x: Sequence[Array], y: Array, at: Attrs, op: str) -> Array:
    scale, shift, mean, var = x[1:]
    return TABLE[op].meaning([m[0], np.abs(scale), np.abs(shift), -np.abs(mean), var], at)


def slope(derivative: Callable[[Array, Array], Array | float]) -> Rule:
    """|y| plus what the operand's magnitude becomes by the derivative, given (x, y)."""

    def rule(m: Sequence[Array], x: Sequence[Array], y: Array, at: Attrs, op: str) -> Array:
        with np.errstate(all="ignore"):
            return np.maximum(np.abs(y), np.abs(derivative(x[0], y)) * m[0])

    return rule


RULES: dict[str, Rule] = {
    **{op: _same for op, spec in TABLE.items() if spec.kind in ("structure", "reduction", "contraction")},
    "pad": _pad,
    "add": _sum,
    "sub": _sum,
    "mul": lambda m, x, y, at, op: m[0] * np.abs(x[1]) + m[1] * np.abs(x[0]),
    "div": lambda m, x, y, at, op: (m[0] + np.abs(y) * m[1]) / np.abs(x[1]),
    "maximum": _largest,
    "minimum": _largest,
    "where": _largest,
    "normalize": _normalize,
    "exp": slope(lambda x, y: y),
    "log": slope(lambda x, y: 1 / x),
    "sqrt": slope(lambda x, y: 0.5 / y),
    "reciprocal": slope(lambda x, y: y * y),
    "square": slope(lambda x, y: 2 * x),
    "sigmoid": slope(lambda x, y: 0.25),
    "erf": slope(lambda x, y: 1.13),
    **{op: slope(lambda x, y: 1.0) for op in ("neg", "abs", "relu", "clip", "tanh")},
}


def magnitude(program: Program, inputs: Sequence[Array], binding: dict[str, Array]) -> float:
    """The largest magnitude that errors of the program's result are relative to."""
    values = [np.asarray(a) for a in inputs]
    sizes = [np.abs(a) for a in values]
    for step in program.body:
        if step.op in ("param", "const"):
            value = (
                binding[step.attr["name"]] if step.op == "param" else TABLE["const"].meaning([], step.attr)
            )
            values.append(value)
            sizes.append(np.abs(value))
            continue
        operands = [values[a] for a in step.args]
        values.append(TABLE[step.op].meaning(operands, step.attr))
        sizes.append(RULES[step.op]([sizes[a] for a in step.args], operands, values[-1], step.attr, step.op))
    return float(np.max(sizes[program.output]))

"""Every row of the instruction table: its type, and its meaning by an independent formula."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from opadapt.errors import ProgramError
from opadapt.ir.instructions import TABLE, spec_of
from opadapt.ir.interpret import run
from opadapt.ir.program import Builder, Program
from opadapt.ir.types import BATCH, TensorType

Array = np.ndarray
# op -> operand shapes, attributes, result shape (all with N), the result's element at an index
Case = tuple[list[tuple[Any, ...]], dict[str, Any], tuple[Any, ...], Callable[..., float]]
INF = float("inf")


def pointwise(function: Callable[..., float], arity: int = 1, **attrs: float) -> Case:
    return [(BATCH, 3)] * arity, attrs, (BATCH, 3), lambda *xs, at: function(*(float(x[at]) for x in xs))


def at_or(x: Array, index: tuple[int, ...], default: float) -> float:
    inside = all(0 <= i < n for i, n in zip(index, x.shape, strict=True))
    return float(x[index]) if inside else default


def normalized(x: Array, scale: Array, shift: Array, mean: Array, var: Array, at: tuple[int, ...]) -> float:
    c = at[1]
    return float((x[at] - mean[c]) / math.sqrt(var[c] + 1e-3) * scale[c] + shift[c])


CASES: dict[str, list[Case]] = {
    "pad": [
        (
            [(BATCH, 2, 3)],
            {"pads": ((0, 0), (1, 0), (0, 2)), "value": -2.0},
            (BATCH, 3, 5),
            lambda x, at: at_or(x, (at[0], at[1] - 1, at[2]), -2.0),
        ),
        ([()], {"pads": (), "value": 1.0}, (), lambda x, at: float(x)),
    ],
    "window": [
        (
            [(BATCH, 2, 7, 9)],
            {"axes": (2, 3), "kernel": (3, 2), "stride": (2, 1), "dilation": (1, 3)},
            (BATCH, 2, 3, 6, 3, 2),
            lambda x, at: x[at[0], at[1], 2 * at[2] + at[4], at[3] + 3 * at[5]],
        ),
        (
            [(4, 5)],
            {"axes": (1, 0), "kernel": (2, 3), "stride": (1, 1), "dilation": (1, 1)},
            (2, 4, 2, 3),
            lambda x, at: x[at[0] + at[3], at[1] + at[2]],
        ),
    ],
    "slice": [
        (
            [(BATCH, 6)],
            {"axis": 1, "start": 2, "stop": 5},
            (BATCH, 3),
            lambda x, at: x[at[0], at[1] + 2],
        )
    ],
    "shift": [
        (
            [(BATCH, 5)],
            {"axis": 1, "offset": offset},
            (BATCH, 5),
            lambda x, at, offset=offset: at_or(x, (at[0], at[1] - offset), 0.0),
        )
        for offset in (-2, 0, 4)
    ],
    "subsample": [([(BATCH, 7)], {"axis": 1, "step": 3}, (BATCH, 3), lambda x, at: x[at[0], 3 * at[1]])],
    "upsample": [([(BATCH, 3)], {"axis": 1, "factor": 2}, (BATCH, 6), lambda x, at: x[at[0], at[1] // 2])],
    "reshape": [
        (
            [(BATCH, 2, 6)],
            {"shape": (BATCH, 4, 3)},
            (BATCH, 4, 3),
            lambda x, at: x[at[0], (at[1] * 3 + at[2]) // 6, (at[1] * 3 + at[2]) % 6],
        )
    ],
    "transpose": [
        (
            [(BATCH, 2, 3)],
            {"perm": (2, 0, 1)},
            (3, BATCH, 2),
            lambda x, at: x[at[1], at[2], at[0]],
        )
    ],
    "concat": [
        (
            [(BATCH, 2), (BATCH, 3), (BATCH, 1)],
            {"axis": 1},
            (BATCH, 6),
            lambda x, y, z, at: [*x[at[0]], *y[at[0]], *z[at[0]]][at[1]],
        )
    ],
    "split": [
        (
            [(BATCH, 6)],
            {"axis": 1, "parts": 3, "index": 1},
            (BATCH, 2),
            lambda x, at: x[at[0], 2 + at[1]],
        )
    ],
    "broadcast": [
        (
            [(3, 1)],
            {"shape": (2, 3, 4)},
            (2, 3, 4),
            lambda x, at: x[at[1], 0],
        )
    ],
    "contract": [
        (
            [(BATCH, 3, 4), (5, 3)],
            {"einsum": "nci,oc->noi"},
            (BATCH, 5, 4),
            lambda x, w, at: sum(float(x[at[0], c, at[2]]) * float(w[at[1], c]) for c in range(3)),
        ),
        (
            [(BATCH, 3, 4), (BATCH, 3)],
            {"einsum": "nci,nc->ni"},
            (BATCH, 4),
            lambda x, y, at: sum(float(x[at[0], c, at[1]]) * float(y[at[0], c]) for c in range(3)),
        ),
    ],
    "sum": [
        (
            [(BATCH, 2, 3)],
            {"axes": (1, 2), "keepdims": 0},
            (BATCH,),
            lambda x, at: math.fsum(float(v) for v in x[at[0]].ravel()),
        )
    ],
    "mean": [
        (
            [(BATCH, 2, 3)],
            {"axes": (2,), "keepdims": 1},
            (BATCH, 2, 1),
            lambda x, at: math.fsum(float(v) for v in x[at[0], at[1]]) / 3,
        )
    ],
    "max": [
        (
            [(BATCH, 2, 3)],
            {"axes": (1,), "keepdims": 0},
            (BATCH, 3),
            lambda x, at: max(float(x[at[0], i, at[1]]) for i in range(2)),
        )
    ],
    "add": [
        pointwise(lambda a, b: a + b, 2),
        ([(BATCH, 3, 2), (3, 1)], {}, (BATCH, 3, 2), lambda x, y, at: float(x[at] + y[at[1], 0])),
    ],
    "sub": [pointwise(lambda a, b: a - b, 2)],
    "mul": [pointwise(lambda a, b: a * b, 2)],
    "div": [pointwise(lambda a, b: a / b, 2)],
    "maximum": [pointwise(max, 2)],
    "minimum": [pointwise(min, 2)],
    "neg": [pointwise(lambda a: -a)],
    "abs": [pointwise(lambda a: a if a > 0 else -a)],
    "exp": [pointwise(math.exp)],
    "log": [pointwise(lambda a: math.log(a) if a > 0 else math.nan)],
    "sqrt": [pointwise(lambda a: math.sqrt(a) if a >= 0 else math.nan)],
    "reciprocal": [pointwise(lambda a: 1 / a)],
    "square": [pointwise(lambda a: a * a)],
    "relu": [pointwise(lambda a: a if a > 0 else 0.0)],
    "clip": [pointwise(lambda a: sorted((-0.5, a, 0.25))[1], min=-0.5, max=0.25)],
    "sigmoid": [pointwise(lambda a: 1 / (1 + math.exp(-a)))],
    "tanh": [pointwise(math.tanh)],
    "erf": [pointwise(math.erf)],
    "where": [pointwise(lambda c, a, b: a if c > 0 else b, 3)],
    "normalize": [
        ([(BATCH, 3, 2), (3,), (3,), (3,), (3,)], {"axis": 1, "eps": 1e-3}, (BATCH, 3, 2), normalized)
    ],
    "param": [([], {"name": "p", "shape": (2, 3)}, (2, 3), lambda at: float(3 * at[0] + at[1]))],
    "const": [([], {"value": 1.5, "shape": (2, 1)}, (2, 1), lambda at: 1.5)],
}

# What each instruction refuses.
REFUSALS: list[tuple[str, list[tuple[Any, ...]], dict[str, Any]]] = [
    ("pad", [(BATCH, 2)], {"pads": ((1, 0), (0, 0)), "value": 0.0}),
    ("pad", [(BATCH, 2)], {"pads": ((0, 0), (-1, 0)), "value": 0.0}),
    ("pad", [(BATCH, 2)], {"pads": ((0, 0),), "value": 0.0}),
    ("window", [(BATCH, 4)], {"axes": (1,), "kernel": (5,), "stride": (1,), "dilation": (1,)}),
    ("window", [(BATCH, 4)], {"axes": (0,), "kernel": (1,), "stride": (1,), "dilation": (1,)}),
    ("window", [(BATCH, 4)], {"axes": (1,), "kernel": (2,), "stride": (0,), "dilation": (1,)}),
    ("window", [(BATCH, 4)], {"axes": (1, 1), "kernel": (1, 1), "stride": (1, 1), "dilation": (1, 1)}),
    ("slice", [(BATCH, 4)], {"axis": 1, "start": 2, "stop": 2}),
    ("slice", [(BATCH, 4)], {"axis": 1, "start": 0, "stop": 5}),
    ("slice", [(BATCH, 4)], {"axis": 2, "start": 0, "stop": 1}),
    ("shift", [(BATCH, 4)], {"axis": 1, "offset": 4}),
    ("subsample", [(BATCH, 4)], {"axis": 1, "step": 0}),
    ("upsample", [(BATCH, 4)], {"axis": 0, "factor": 2}),
    ("reshape", [(BATCH, 4)], {"shape": (BATCH, 5)}),
    ("reshape", [(BATCH, 4)], {"shape": (4,)}),
    ("transpose", [(BATCH, 4)], {"perm": (0, 0)}),
    ("concat", [(BATCH, 4), (BATCH, 4, 1)], {"axis": 1}),
    ("concat", [(BATCH, 4), (BATCH, 4)], {"axis": 0}),
    ("split", [(BATCH, 4)], {"axis": 1, "parts": 3, "index": 0}),
    ("split", [(BATCH, 4)], {"axis": 1, "parts": 2, "index": 2}),
    ("broadcast", [(2,)], {"shape": (3,)}),
    ("broadcast", [(1,)], {"shape": (BATCH,)}),
    ("contract", [(BATCH, 3), (4, 3)], {"einsum": "nc,cm->nm"}),
    ("contract", [(BATCH, 3), (3, 4)], {"einsum": "nc,cm->m"}),
    ("contract", [(BATCH, 3), (3, 4)], {"einsum": "nc,cm"}),
    ("contract", [(BATCH, 3), (3, 4)], {"einsum": "nn,cm->nm"}),
    ("contract", [(BATCH, 3), (3, 4)], {"einsum": "nc,cm->nz"}),
    ("sum", [(BATCH, 3)], {"axes": (0,), "keepdims": 0}),
    ("mean", [(BATCH, 3)], {"axes": (), "keepdims": 0}),
    ("max", [(BATCH, 3)], {"axes": (1, 1), "keepdims": 0}),
    ("add", [(BATCH, 3), (BATCH, 2)], {}),
    ("add", [(BATCH, 3), (4, 3)], {}),
    ("clip", [(BATCH, 3)], {"min": 1.0, "max": 0.0}),
    ("normalize", [(BATCH, 3), (3,), (3,), (3,), (2,)], {"axis": 1, "eps": 1e-3}),
    ("normalize", [(BATCH, 3), (3,), (3,), (3,), (3,)], {"axis": 1, "eps": 0.0}),
    ("param", [], {"name": "p", "shape": (BATCH, 3)}),
    ("const", [], {"value": 0.0, "shape": (0,)}),
    ("relu", [(BATCH, 3)], {"slope": 1.0}),
    ("relu", [(BATCH, 3), (BATCH, 3)], {}),
    ("convolve", [(BATCH, 3)], {}),
]


def build(op: str, shapes: list[tuple[Any, ...]], attrs: dict[str, Any]) -> Program:
    builder = Builder([TensorType(shape) for shape in shapes])
    return builder.build(builder.emit(op, *range(len(shapes)), **attrs))


def test_every_row_of_the_table_is_covered() -> None:
    assert set(CASES) == set(TABLE)
    leaves = {"add", "relu", "sub", "mul", "div", "maximum", "minimum", "where"}
    rest = {op for op, spec in TABLE.items() if spec.kind != "elementwise"} | leaves
    assert {op for op, _, _ in REFUSALS} >= rest - {"sub", "mul", "div", "maximum", "minimum", "where"}


@pytest.mark.parametrize(("op", "case"), [(op, c) for op, cases in CASES.items() for c in cases])
def test_type_and_meaning(op: str, case: Case) -> None:
    shapes, attrs, expected_shape, element = case
    program = build(op, shapes, attrs)
    assert program.signature.output == TensorType(expected_shape)
    rng = np.random.default_rng(7)
    inputs = [rng.standard_normal(TensorType(s).at_batch(2)).astype(np.float32) for s in shapes]
    if op == "normalize":
        inputs[4] = np.abs(inputs[4])
    binding = {"p": np.arange(6, dtype=np.float32).reshape(2, 3)}
    result = run(program, inputs, binding)
    assert result.dtype == np.float32
    assert result.shape == TensorType(expected_shape).at_batch(2)
    expected = np.zeros(result.shape)
    for at in itertools.product(*map(range, result.shape)):
        expected[at] = element(*inputs, at=at)
    scale = np.nanmax(np.abs(expected))
    np.testing.assert_allclose(result, expected, rtol=0, atol=spec_of(op).rtol * scale)


@pytest.mark.parametrize(("op", "shapes", "attrs"), REFUSALS)
def test_refusals(op: str, shapes: list[tuple[Any, ...]], attrs: dict[str, Any]) -> None:
    with pytest.raises(ProgramError) as caught:
        build(op, shapes, attrs)
    assert caught.value.message
    assert caught.value.expected is not None and caught.value.found is not None


def test_pad_with_minus_infinity() -> None:
    program = build("pad", [(2,)], {"pads": ((1, 0),), "value": -INF})
    np.testing.assert_array_equal(run(program, [np.ones(2, np.float32)], {}), [-INF, 1.0, 1.0])


def test_values_that_are_not_finite_pass_without_a_word() -> None:
    """What is searched for meets them often; whoever reads the progress has no use for numpy's warnings."""
    builder = Builder([TensorType((BATCH, 2)), TensorType((2, 3))])
    total = builder.emit("sum", builder.emit("contract", 0, 1, einsum="nc,ck->nk"), axes=(1,), keepdims=0)
    program = builder.build(builder.emit("mul", total, total))
    x = np.array([[INF, -INF], [3e38, 3e38]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(run(program, [x, np.ones((2, 3), np.float32)], {}), [np.nan, INF])


def test_elementwise_instructions_broadcast_the_batch_with_one_only() -> None:
    assert build("add", [(BATCH, 3), (1, 3)], {}).signature.output == TensorType((BATCH, 3))


def test_run_refuses_arrays_that_do_not_fit() -> None:
    program = build("add", [(BATCH, 3), (BATCH, 3)], {})
    good = np.zeros((2, 3), np.float32)
    with pytest.raises(ProgramError, match="input 1"):
        run(program, [good, np.zeros((3, 3), np.float32)], {})
    with pytest.raises(ProgramError, match="input 0"):
        run(program, [np.zeros((2, 3, 1), np.float32), good], {})
    with pytest.raises(ProgramError, match="number of inputs"):
        run(program, [good], {})


def test_run_refuses_missing_and_misshapen_parameters() -> None:
    program = build("param", [], {"name": "p", "shape": (2,)})
    with pytest.raises(ProgramError, match="param 'p'"):
        run(program, [], {})
    with pytest.raises(ProgramError, match="param 'p'"):
        run(program, [], {"p": np.zeros(3, np.float32)})


def test_one_parameter_name_has_one_shape() -> None:
    builder = Builder([])
    builder.param("w", (2,))
    builder.param("w", (3,))
    with pytest.raises(ProgramError, match="two shapes"):
        builder.build(0)

"""The canonical form keeps the meaning, is idempotent, and its digest is blind to what does not matter."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_strategies import arrays, programs

from opadapt.ir.canonical import canonical, digest, live_values, plain_einsum
from opadapt.ir.instructions import COMMUTATIVE
from opadapt.ir.interpret import run
from opadapt.ir.program import Builder, Instruction, Program
from opadapt.ir.text import parse_program, print_program
from opadapt.ir.types import TensorType


def renamed(program: Program) -> Program:
    body = tuple(
        Instruction(s.op, s.args, tuple((k, f"other {v}" if k == "name" else v) for k, v in s.attrs))
        for s in program.body
    )
    return Program(program.inputs, body, program.output)


def swapped(program: Program, chooser: random.Random) -> Program:
    body = tuple(
        Instruction(s.op, s.args[::-1], s.attrs) if s.op in COMMUTATIVE and chooser.random() < 0.7 else s
        for s in program.body
    )
    return Program(program.inputs, body, program.output)


def relettered(program: Program) -> Program:
    letters = str.maketrans("nabcdefgo", "zyxwvutsr")
    body = tuple(
        Instruction(s.op, s.args, (("einsum", s.attr["einsum"].translate(letters)),))
        if s.op == "contract"
        else s
        for s in program.body
    )
    return Program(program.inputs, body, program.output)


# division tells 0.0 from -0.0, which x + 0 -> x may change
@settings(max_examples=120, deadline=None)
@given(programs(without=("div", "reciprocal")), st.integers(0, 100))
def test_meaning_and_signature_are_kept(program: Program, seed: int) -> None:
    form = canonical(program)
    assert form.signature == program.signature
    assert set(form.params.items()) <= set(program.params.items())
    inputs, binding = arrays(program, seed)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(run(form, inputs, binding), run(program, inputs, binding))


@settings(max_examples=120, deadline=None)
@given(programs(steps=12))
def test_idempotent_without_dead_code(program: Program) -> None:
    form = canonical(program)
    assert canonical(form) == form
    made = set(range(len(form.inputs), len(form.types)))
    assert made <= live_values(form)
    assert len(set(form.body)) == len(form.body)


@settings(max_examples=120, deadline=None)
@given(programs(steps=12), st.randoms(use_true_random=False))
def test_digest_is_blind_to_names_letters_and_operand_order(program: Program, chooser: random.Random) -> None:
    assert digest(renamed(program)) == digest(program)
    assert digest(swapped(program, chooser)) == digest(program)
    assert digest(relettered(program)) == digest(program)
    assert digest(canonical(program)) == digest(program)


def test_digest_tells_programs_apart() -> None:
    texts = [
        "program(f32[N,4]) -> f32[N,4]\n%1 = relu %0\nreturn %1",
        "program(f32[N,4]) -> f32[N,4]\n%1 = abs %0\nreturn %1",
        "program(f32[N,5]) -> f32[N,5]\n%1 = relu %0\nreturn %1",
        "program(f32[N,4]) -> f32[N,4]\n%1 = clip %0 max=6.0 min=0.0\nreturn %1",
        "program(f32[N,4]) -> f32[N,4]\n%1 = clip %0 max=5.0 min=0.0\nreturn %1",
    ]
    assert len({digest(parse_program(t)) for t in texts}) == len(texts)


def test_digest_tells_shared_weights_from_separate_ones() -> None:
    def twice(names: tuple[str, str]) -> Program:
        b = Builder([TensorType(("N", 4))])
        x = 0
        for name in names:
            x = b.emit("relu", b.emit("contract", x, b.param(name, (4, 4)), einsum="nk,km->nm"))
        return b.build(x)

    assert digest(twice(("a", "a"))) != digest(twice(("a", "b")))
    assert digest(twice(("a", "b"))) == digest(twice(("b", "a")))


def test_order_of_independent_instructions_does_not_matter() -> None:
    first = parse_program(
        "program(f32[N,4]) -> f32[N,4]\n%1 = relu %0\n%2 = abs %0\n%3 = add %1 %2\nreturn %3"
    )
    second = parse_program(
        "program(f32[N,4]) -> f32[N,4]\n%1 = abs %0\n%2 = relu %0\n%3 = add %1 %2\nreturn %3"
    )
    assert canonical(first) == canonical(second)


@pytest.mark.parametrize(
    "line",
    [
        "pad %0 pads=((0,0),(0,0)) value=0.0",
        "slice %0 axis=1 start=0 stop=4",
        "shift %0 axis=1 offset=0",
        "subsample %0 axis=1 step=1",
        "upsample %0 axis=1 factor=1",
        "reshape %0 shape=(N,4)",
        "transpose %0 perm=(0,1)",
        "concat %0 axis=1",
        "split %0 axis=1 index=0 parts=1",
        "broadcast %0 shape=(N,4)",
        "clip %0 max=inf min=-inf",
    ],
)
def test_trivial_instructions_go(line: str) -> None:
    program = parse_program(f"program(f32[N,4]) -> f32[N,4]\n%1 = {line}\n%2 = relu %1\nreturn %2")
    assert print_program(canonical(program)) == "program(f32[N,4]) -> f32[N,4]\n%1 = relu %0\nreturn %1"


@pytest.mark.parametrize(
    ("line", "value"),
    [("add %0 %1", 0.0), ("add %1 %0", 0.0), ("sub %0 %1", 0.0), ("mul %1 %0", 1.0), ("div %0 %1", 1.0)],
)
def test_neutral_constants_go(line: str, value: float) -> None:
    head = f"program(f32[N,4]) -> f32[N,4]\n%1 = const shape=() value={value}\n"
    assert canonical(parse_program(f"{head}%2 = {line}\nreturn %2")).body == ()


def test_a_neutral_constant_that_broadcasts_stays() -> None:
    text = "program(f32[4]) -> f32[2,4]\n%1 = const shape=(2,1) value=0.0\n%2 = add %0 %1\nreturn %2"
    program = parse_program(text)
    assert canonical(program).signature == program.signature


def test_zero_minus_x_stays() -> None:
    text = "program(f32[4]) -> f32[4]\n%1 = const shape=() value=0.0\n%2 = sub %1 %0\nreturn %2"
    assert len(canonical(parse_program(text)).body) == 2


def test_bias_comes_second() -> None:
    b = Builder([TensorType(("N", 4, 2, 2))])
    bias = b.emit("reshape", b.param("b", (4,)), shape=(1, 4, 1, 1))
    form = canonical(b.build(b.emit("add", bias, b.emit("relu", 0))))
    assert form.body[form[form.output].args[0] - 1].op == "relu"
    assert form[form[form.output].args[1]].op == "reshape"


def test_plain_einsum() -> None:
    assert plain_einsum("nchwij,ocij->nohw") == "abcdef,gbef->agcd"


@pytest.mark.parametrize(
    ("lines", "shape", "value"),
    [
        ("%1 = const shape=() value=2.0\n%2 = const shape=() value=3.0\n%3 = mul %1 %2", "()", 6.0),
        (
            "%1 = const shape=() value=0.1\n%2 = broadcast %1 shape=(4,)\n%3 = reshape %2 shape=(1,4)",
            "(1,4)",
            0.1,
        ),
        ("%1 = const shape=(4,) value=3.0\n%2 = neg %1\n%3 = clip %2 max=1.0 min=-2.0", "(4,)", -2.0),
        ("%1 = const shape=() value=-1.0\n%2 = const shape=(4,) value=5.0\n%3 = where %1 %1 %2", "(4,)", 5.0),
        ("%1 = const shape=() value=0.0\n%2 = reciprocal %1\n%3 = sub %1 %2", "()", float("-inf")),
    ],
)
def test_constants_fold(lines: str, shape: str, value: float) -> None:
    head = "program(f32[N,4]) -> f32[N,4]\n"
    program = parse_program(f"{head}{lines}\n%4 = maximum %0 %3\nreturn %4")
    folded = f"{head}%1 = const shape={shape} value={value}\n%2 = maximum %0 %1\nreturn %2"
    assert print_program(canonical(program)) == folded
    assert digest(program) == digest(parse_program(folded))


def test_a_folded_constant_may_be_neutral() -> None:
    lines = "%1 = const shape=() value=2.0\n%2 = div %1 %1\n%3 = mul %0 %2\nreturn %3"
    assert canonical(parse_program(f"program(f32[N,4]) -> f32[N,4]\n{lines}")).body == ()


@pytest.mark.parametrize(
    "line", ["log %1", "pad %1 pads=((1,0),(0,0)) value=0.0"], ids=["NaN", "not one number"]
)
def test_what_no_constant_can_state_stays(line: str) -> None:
    head = "program(f32[2,4]) -> f32[2,4]\n%1 = const shape=(1,4) value=-1.0\n"
    program = parse_program(f"{head}%2 = {line}\n%3 = maximum %0 %2\nreturn %3")
    assert {step.op for step in canonical(program).body} == {"const", line.split()[0], "maximum"}


@pytest.mark.parametrize(("one", "other"), [(0.1, float(np.float32(0.1))), (0.0, -0.0)])
def test_equal_constants_have_one_form(one: float, other: float) -> None:
    programs = (
        parse_program(f"program(f32[4]) -> f32[4]\n%1 = const shape=() value={v}\n%2 = mul %0 %1\nreturn %2")
        for v in (one, other)
    )
    assert len({digest(program) for program in programs}) == 1

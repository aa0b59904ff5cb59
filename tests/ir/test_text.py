"""The textual form: exact round trips, and errors that say where."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from ir_strategies import STEPS, programs

from opadapt.errors import ProgramError
from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Builder, Program, make
from opadapt.ir.text import parse_program, print_program
from opadapt.ir.types import TensorType

EXAMPLE = """program(f32[N,2,4,4], f32[16]) -> f32[N,16,4,4]
%2 = pad %0 pads=((0,0),(0,0),(1,1),(1,1)) value=0.0
%3 = window %2 axes=(2,3) dilation=(1,1) kernel=(3,3) stride=(1,1)
%4 = param name="w" shape=(16,2,3,3)
%5 = contract %3 %4 einsum="nchwij,ocij->nohw"
%6 = reshape %1 shape=(1,16,1,1)
%7 = add %5 %6
return %7"""


@settings(max_examples=150, deadline=None)
@given(programs())
def test_round_trip(program: Program) -> None:
    text = print_program(program)
    assert parse_program(text) == program
    assert print_program(parse_program(text)) == text


def test_the_strategy_knows_every_instruction() -> None:
    assert set(STEPS) == set(TABLE)


def test_example_is_printed_as_written() -> None:
    assert print_program(parse_program(EXAMPLE)) == EXAMPLE


def test_comments_and_blank_lines() -> None:
    text = "\n\n# a convolution\n" + EXAMPLE.replace("\n%5", "  # the weights\n\n  # and then\n%5") + "\n"
    assert parse_program(text) == parse_program(EXAMPLE)


@pytest.mark.parametrize("value", [0.1, 1e-7, 1e30, -2.5, float("inf"), float("-inf"), 1 / 3, 5e-324])
def test_floats_are_exact(value: float) -> None:
    builder = Builder([])
    program = builder.build(builder.const(value))
    assert parse_program(print_program(program)) == program


def test_nan_is_refused() -> None:
    with pytest.raises(ProgramError, match="value"):
        make("const", value=float("nan"), shape=())


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("f32[N,2,4,4]", "f32[N,2,4,0]", "line 1, column", "no dimension"),
        ("program(", "programme(", "line 1, column 8", "does not parse"),
        ("%5 = contract", "%6 = contract", "line 5, column 1", "numbered in order"),
        ("%5 = contract", "%5 = convolve", "line 5, column 6", "no instruction"),
        ("contract %3 %4", "contract %3 %9", "line 5, column", "before it is made"),
        ("value=0.0", "value=0.0 value=1.0", "line 2, column", "given twice"),
        ("value=0.0", "value=nan", "line 2, column 50", "does not parse"),
        ("value=0.0", "value=zero", "line 2, column", "does not parse"),
        ("kernel=(3,3)", "kernel=(9,9)", "line 3, column 6", "does not fit"),
        ("kernel=(3,3)", "kernel=(3)", "line 3, column", "does not parse"),
        ("kernel=(3,3) ", "", "line 3, column 6", "wrong attributes"),
        ("(16,2,3,3)", "(16,3,3,3)", "line 5, column 6", "sizes of"),
        ("-> f32[N,16,4,4]", "-> f32[N,16,4,5]", "line 8, column 8", "returned type differs"),
        ("return %7", "return %8", "line 8, column 8", "never made"),
        ("return %7", "", "line 7", "does not parse"),
        ('"w"', '"\\q"', "line 4, column", "does not parse"),
    ],
)
def test_errors_say_where(old: str, new: str, line: str, message: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(ProgramError) as caught:
        parse_program(EXAMPLE.replace(old, new, 1))
    assert caught.value.message.startswith(line)
    assert message in caught.value.message


def test_a_syntax_error_says_what_may_stand_there() -> None:
    with pytest.raises(ProgramError) as caught:
        parse_program("program(f32[2]) -> f32[2]\n%1 relu %0\nreturn %1")
    assert caught.value.message == "line 2, column 4: text that does not parse"
    assert caught.value.expected == "'='"
    assert caught.value.found == "'relu'"


def test_rank_zero() -> None:
    program = Program((TensorType(()),), (), 0)
    assert print_program(program) == "program(f32[]) -> f32[]\nreturn %0"
    assert parse_program(print_program(program)) == program

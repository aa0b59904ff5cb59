"""Static costs against hand counts."""

from __future__ import annotations

from opadapt.ir.cost import count_batched_macs, count_bytes, count_kinds, count_macs, count_params
from opadapt.ir.program import Builder, Program
from opadapt.ir.types import TensorType


def conv(channels: int = 16, out: int = 8, size: int = 10, bias: bool = True) -> Program:
    b = Builder([TensorType(("N", channels, size, size))])
    x = b.emit("pad", 0, pads=((0, 0), (0, 0), (1, 1), (1, 1)), value=0.0)
    x = b.emit("window", x, axes=(2, 3), kernel=(3, 3), stride=(1, 1), dilation=(1, 1))
    x = b.emit("contract", x, b.param("w", (out, channels, 3, 3)), einsum="nchwij,ocij->nohw")
    if bias:
        x = b.emit("add", x, b.emit("reshape", b.param("b", (out,)), shape=(1, out, 1, 1)))
    return b.build(x)


def test_macs_and_params_of_a_convolution() -> None:
    assert count_macs(conv()) == 16 * 8 * 9 * 100
    assert count_params(conv()) == 16 * 8 * 9 + 8


def test_bytes_read_the_input_once_and_not_once_per_tap() -> None:
    padded = 16 * 12 * 12
    read = min(padded, 16 * 10 * 10)
    assert count_bytes(conv(bias=False)) == 4 * (read + 8 * 100 + 16 * 8 * 9)


def test_bytes_of_the_bias_add() -> None:
    assert count_bytes(conv()) - count_bytes(conv(bias=False)) == 4 * (800 + 800 + 8)


def test_dead_code_costs_nothing() -> None:
    b = Builder([TensorType(("N", 4))])
    kept = b.emit("relu", 0)
    b.emit("contract", 0, b.param("w", (4, 4)), einsum="nk,km->nm")
    program = b.build(kept)
    assert (count_macs(program), count_params(program)) == (0, 0)
    assert count_bytes(program) == 4 * 8


def test_a_shared_parameter_counts_once() -> None:
    b = Builder([TensorType(("N", 4))])
    x = b.emit("contract", 0, b.param("w", (4, 4)), einsum="nk,km->nm")
    x = b.emit("contract", x, b.param("w", (4, 4)), einsum="nk,km->nm")
    assert count_params(b.build(x)) == 16
    assert count_macs(b.build(x)) == 32


def test_grouped_contractions_are_batched_and_dense_ones_are_not() -> None:
    b = Builder([TensorType(("N", 6, 10))])
    x = b.emit("reshape", 0, shape=("N", 3, 2, 10))
    x = b.emit("contract", x, b.param("w", (3, 4, 2)), einsum="ngcx,goc->ngox")
    x = b.emit("reshape", x, shape=("N", 12, 10))
    one = b.emit("reshape", x, shape=("N", 1, 12, 10))
    b.emit("contract", one, b.param("v", (1, 5, 12)), einsum="ngcx,goc->ngox")
    grouped, dense = 3 * 4 * 2 * 10, 5 * 12 * 10
    program = b.build(len(b.types) - 1)
    assert count_macs(program) == grouped + dense and count_batched_macs(program) == grouped
    assert count_batched_macs(conv()) == 0


def test_live_instructions_by_kind() -> None:
    assert count_kinds(conv()) == {"structure": 3, "contraction": 1, "elementwise": 1, "leaf": 2}

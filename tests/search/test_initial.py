"""The small closed forms from which new parameters come."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from rule_checks import SPACE

from opadapt.errors import ProgramError
from opadapt.search import initial
from opadapt.search.expression import calls
from opadapt.search.initial import FUNCTIONS


def call(name: str, *args: object, **named: object) -> object:
    return FUNCTIONS[name](np.random.default_rng(0), *args, **named)


def test_every_function_takes_the_rng_first() -> None:
    assert all(next(iter(inspect.signature(f).parameters)) == "rng" for f in FUNCTIONS.values())


def test_what_no_shipped_rule_uses_is_said_to_be_there_for_others() -> None:
    used = {c.name for rule in SPACE.rules for expr in rule.init.values() for c in calls(expr)}
    paragraph = (initial.__doc__ or "").split("\n\n")[-1]
    assert set(FUNCTIONS) - used == set(re.findall(r"``(\w+)``", paragraph))


def test_pieces_of_weights() -> None:
    w = np.arange(24.0).reshape(2, 3, 4)
    assert call("keep", w) is w
    np.testing.assert_array_equal(call("slice", w, 1, 1, 3), w[:, 1:3])
    np.testing.assert_array_equal(call("take", w, np.array([2.0, 0.0]), 1), w[:, [2, 0]])
    np.testing.assert_array_equal(call("mean", w, (0, 2)), w.mean(axis=(0, 2)))
    np.testing.assert_array_equal(call("sum", w, (1,)), w.sum(axis=1))
    np.testing.assert_array_equal(call("reshape", w, (6, 4)), w.reshape(6, 4))
    np.testing.assert_array_equal(call("crop", np.arange(25.0).reshape(5, 5), (3, 0)), [7, 12, 17])


def test_fresh_weights() -> None:
    assert not np.any(call("zeros", (2, 3)))
    np.testing.assert_array_equal(call("full", (2, 3), 0.25), np.ones((2, 3)) / 4)
    sample = np.asarray(call("kaiming", (200, 100), fan=50))
    assert sample.std() == pytest.approx(0.2, rel=0.02)
    np.testing.assert_array_equal(call("identity", 3), np.eye(3))
    kernel = np.asarray(call("identity", 2, (3, 3)))
    np.testing.assert_array_equal(kernel[:, :, 1, 1], np.eye(2))
    assert kernel.sum() == 2


def test_channels_are_those_of_the_largest_norms_in_order() -> None:
    first = np.array([[1.0], [-9.0], [2.0], [5.0]])
    second = np.array([[1.0, 1.0], [0.0, 0.0], [4.0, 4.0], [-3.0, 3.0]])
    np.testing.assert_array_equal(call("channels", 2, first, second), [2, 3])
    np.testing.assert_array_equal(call("channels", 3, first, second), [0, 2, 3])


def test_factor_in_a_batch_of_a_shared_letter() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(5, 3, 4))
    a, b = call("factor", w, "ocj->orc,crj", rank=4)  # type: ignore[misc]
    np.testing.assert_allclose(np.einsum("orc,crj->ocj", a, b), w, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "rank"),
    [("oc->or,rc", 0), ("oc->or,rc", 4), ("oc->o,r", 1), ("oc->os,rc", 1), ("ocj->or,rcj", 1)],
)
def test_factor_refuses_other_letters_and_ranks(text: str, rank: int) -> None:
    with pytest.raises(ProgramError, match="factor"):
        call("factor", np.ones((4, 3)), text, rank=rank)


def test_tucker_refuses_ranks_above_the_channels() -> None:
    with pytest.raises(ProgramError, match="ranks"):
        call("tucker", np.ones((4, 3, 3, 3)), 5, 3)


def test_tucker_is_nearer_than_the_higher_order_svd_alone() -> None:
    w = np.random.default_rng(4).normal(size=(12, 10, 3, 3))
    for out_rank, in_rank in ((3, 2), (6, 5), (9, 3)):
        reduce, core, expand = call("tucker", w, out_rank, in_rank)  # type: ignore[misc]
        a, b = (
            np.linalg.svd(rows)[0][:, :rank]
            for rows, rank in ((w.reshape(12, -1), out_rank), (np.moveaxis(w, 1, 0).reshape(10, -1), in_rank))
        )
        svd_alone = np.einsum("op,cq,pcij->oqij", a @ a.T, b @ b.T, w)
        error = np.square(np.einsum("os,srij,rc->ocij", expand, core, reduce) - w).sum()
        assert error < np.square(svd_alone - w).sum()


def test_blocks_are_those_on_the_diagonal() -> None:
    w = np.random.default_rng(5).normal(size=(4, 6, 3, 3))
    blocks = np.asarray(call("blocks", w, 2))
    assert blocks.shape == (2, 2, 3, 3, 3)
    np.testing.assert_array_equal(blocks[0], w[:2, :3])
    np.testing.assert_array_equal(blocks[1], w[2:, 3:])


def test_unfold_gives_every_tap_to_a_position_of_the_block() -> None:
    w = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    block = np.asarray(call("unfold", w, (1, 1), 2)).reshape(2, 2, 2, 2)  # of the output, then of the input
    np.testing.assert_array_equal(block.sum(axis=(2, 3)), [[45, 45], [45, 45]])
    np.testing.assert_array_equal(block[0, 0], [[1 + 2 + 4 + 5, 3 + 6], [7 + 8, 9]])
    np.testing.assert_array_equal(block[1, 1], [[1, 2 + 3], [4 + 7, 5 + 6 + 8 + 9]])


def test_diagonals_of_a_band_matrix_give_the_kernel_back() -> None:
    w = np.eye(5) * 2 + np.eye(5, k=1) * 3 - np.eye(5, k=-1)
    np.testing.assert_array_equal(call("diagonals", w, 3), [-1, 2, 3])


@pytest.mark.parametrize("stride", [1, 2])
def test_compose_is_the_two_convolutions(stride: int) -> None:
    """In one dimension of interest, against direct convolution of an impulse response."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 3, 3, 1)), rng.normal(size=(4, 2, 3, 1))
    extent = 3 + 2 * stride
    kernel = call("compose", first, second, stride=(stride, 1), offset=(0, 0), size=(extent, 1), gain=1.0)
    x = rng.normal(size=(3, extent))
    hidden = [np.einsum("mci,ci->m", first[..., 0], x[:, t : t + 3]) for t in range(0, extent - 2, stride)]
    expected = sum(second[:, :, k, 0] @ hidden[k] for k in range(3))
    np.testing.assert_allclose(np.einsum("oci,ci->o", np.asarray(kernel)[..., 0], x), expected)


def test_compose_outside_of_the_kernel_is_zero() -> None:
    w = np.ones((1, 1, 1, 1))
    kernel = np.asarray(call("compose", w, w, stride=(1, 1), offset=(-1, -1), size=(3, 3), gain=0.5))
    assert kernel[0, 0, 1, 1] == 0.5
    assert kernel.sum() == 0.5
    far = np.asarray(call("compose", w, w, stride=(1, 1), offset=(5, -5), size=(3, 3), gain=1.0))
    assert not far.any()


def test_norm_scale_rows_and_friends() -> None:
    scale, var = np.array([1.0, 2.0]), np.array([3.0, 15.0])
    np.testing.assert_allclose(call("norm_scale", scale, var, 1.0), [0.5, 0.5])
    np.testing.assert_array_equal(call("rows", np.ones((2, 2)), scale), [[1, 1], [2, 2]])
    np.testing.assert_array_equal(call("add", scale, var), [4, 17])
    np.testing.assert_array_equal(call("subtract", var, scale), [2, 13])
    np.testing.assert_array_equal(call("multiply", var, 2.0), [6, 30])
    np.testing.assert_array_equal(call("divide", var, 3.0), [1, 5])

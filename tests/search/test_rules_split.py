"""What the initial values of the splitting, grouping, shifting and unfolding rules keep."""

from __future__ import annotations

import numpy as np
import pytest
from rule_checks import SPACE, changed_error, first, rng, single_conv, squared_error
from rule_programs import image, sample, weights

from opadapt.ir.canonical import canonical
from opadapt.ir.interpret import run
from opadapt.lower import to_model
from opadapt.search.rewrite import variants


def block_mask(out: int, inner: int, groups: int) -> np.ndarray:
    """[out, inner, 1, 1]: 1 where output and input are in the same of ``groups`` blocks."""
    mine, theirs = np.arange(out) * groups // out, np.arange(inner) * groups // inner
    return (mine[:, None] == theirs[None, :])[:, :, None, None].astype(np.float64)


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_is_exact_for_blocks(groups: int) -> None:
    w = rng().normal(size=(16, 16, 3, 3)) * block_mask(16, 16, groups)
    assert changed_error("grouped", single_conv(), {"w": w}, g=groups) < 1e-5


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_split_groups_is_exact_for_blocks_of_both_sizes(groups: int, stride: int) -> None:
    w = rng().normal(size=(16, 16, 3, 3))
    w[:8] *= block_mask(8, 16, groups // 2)
    w[8:] *= block_mask(8, 16, groups)
    assert changed_error("split_groups", single_conv(stride=stride), {"w": w}, g=groups) < 1e-5


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_unrolled_groups_is_exact_for_dense_outputs_and_blocks(groups: int, stride: int) -> None:
    w = rng().normal(size=(16, 16, 3, 3))
    w[4:, :4] = 0
    w[4:, 4:] *= block_mask(12, 12, groups)
    assert changed_error("unrolled_groups", single_conv(stride=stride), {"w": w}, g=groups) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_split_input_is_exact_where_half_is_read_at_the_centre(stride: int) -> None:
    w = rng().normal(size=(16, 16, 3, 3))
    w[:, 8:] *= np.eye(3)[1][:, None] * np.eye(3)[1]
    assert changed_error("split_input", single_conv(stride=stride), {"w": w}) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_split_output_is_exact_where_half_reads_the_centre(stride: int) -> None:
    w = rng().normal(size=(16, 16, 3, 3))
    w[8:] *= np.eye(3)[1][:, None] * np.eye(3)[1]
    assert changed_error("split_output", single_conv(stride=stride), {"w": w}) < 1e-5


def test_groups_become_grouped_kernels() -> None:
    program = single_conv()
    kernels = {}
    for name in ("grouped", "split_groups", "unrolled_groups", "decoupling"):
        changed, new = first(SPACE.rule(name), program, weights(program))
        nodes = to_model(changed, new, 1).graph.node
        kernels[name] = [n.op_type for n in nodes]
    assert kernels == {
        "grouped": ["Conv"],
        "split_groups": ["Conv", "Conv", "Concat"],
        "unrolled_groups": ["Conv", "Slice", "Conv", "Concat"],
        "decoupling": ["Conv", "Conv"],
    }


@pytest.mark.parametrize("stride", [1, 2])
def test_decoupling_is_exact_for_two_kernels_per_channel(stride: int) -> None:
    r = rng()
    w = np.einsum("ocm,cmij->ocij", r.normal(size=(16, 16, 2)), r.normal(size=(16, 2, 3, 3)))
    assert changed_error("decoupling", single_conv(stride=stride), {"w": w}) < 1e-5


def test_two_kernels_per_channel_are_nearer_than_one() -> None:
    program = single_conv()
    binding = weights(program)
    one, two = (
        squared_error(program, binding, *first(SPACE.rule(name), program, binding))
        for name in ("depthwise_pointwise", "decoupling")
    )
    assert two < one


def test_fewer_shifts_are_exact_where_their_channels_read_their_tap() -> None:
    values = rng().normal(size=(16, 16))
    w = np.zeros((16, 16, 3, 3))
    for part, (i, j) in enumerate([(0, 1), (2, 1), (1, 0), (1, 2)]):
        w[:, 2 * part : 2 * part + 2, i, j] = values[:, 2 * part : 2 * part + 2]
    w[:, 8:, 1, 1] = values[:, 8:]
    assert changed_error("shift_pointwise", single_conv(), {"w": w}, q=2) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_shift_column_is_exact_where_each_part_reads_its_column(stride: int) -> None:
    values = rng().normal(size=(16, 16, 3))
    w = np.zeros((16, 16, 3, 3))
    w[:, :4, :, 0], w[:, 4:8, :, 2], w[:, 8:, :, 1] = values[:, :4], values[:, 4:8], values[:, 8:]
    assert changed_error("shift_column", single_conv(stride=stride), {"w": w}) < 1e-5


def test_unfold_blocks_is_exact_for_a_centre_tap() -> None:
    w = np.zeros((16, 16, 3, 3))
    w[:, :, 1, 1] = rng().normal(size=(16, 16))
    assert changed_error("unfold_blocks", single_conv(), {"w": w}) < 1e-5


def test_unfold_blocks_is_exact_inside_for_constant_images() -> None:
    program = single_conv()
    binding = weights(program)
    changed, new = first(SPACE.rule("unfold_blocks"), program, binding)
    inputs = [np.broadcast_to(rng().normal(size=(1, 16, 1, 1)), (2, 16, 12, 12)).astype(np.float32)]
    before, after = run(program, inputs, binding), run(changed, inputs, new)
    np.testing.assert_allclose(after[:, :, 1:-1, 1:-1], before[:, :, 1:-1, 1:-1], atol=1e-5)


def test_spatial_bottleneck_interpolates_between_every_second_position() -> None:
    program = single_conv()
    binding = weights(program)
    changed, new = first(SPACE.rule("spatial_bottleneck"), program, binding)
    inputs = sample(program)
    before, after = run(program, inputs, binding), run(changed, inputs, new)
    kept = before[:, :, ::2, ::2]
    np.testing.assert_allclose(after[:, :, ::2, ::2], kept, atol=1e-5)
    between = (kept[:, :, :, :-1] + kept[:, :, :, 1:]) / 2
    np.testing.assert_allclose(after[:, :, ::2, 1:-1:2], between, atol=1e-5)
    # zeros lie beyond the border
    np.testing.assert_allclose(after[:, :, ::2, -1], kept[:, :, :, -1] / 2, atol=1e-5)
    np.testing.assert_allclose(after[:, :, -1, -1], kept[:, :, -1, -1] / 4, atol=1e-5)


def test_half_of_the_channels_may_be_passed_on() -> None:
    w = np.zeros((16, 16, 3, 3))
    w[:8, :8] = rng().normal(size=(8, 8, 3, 3))
    w[range(8, 16), range(8, 16), 1, 1] = 1
    assert changed_error("partial", single_conv(), {"w": w}, q=8) < 1e-5
    assert changed_error("partial", single_conv(), {"w": w}, q=4) > 0.01


def test_collapse_excitation_is_half_the_product_where_that_is_a_band() -> None:
    """w2 w1 = a shared kernel of 3 taps; the ReLU passes all."""
    b = image(6, 1)
    hidden = b.relu(b.pointwise(0, "w1", 6))
    program = canonical(b.build(b.pointwise(hidden, "w2", 6)))
    band = np.eye(6) * 2 + np.eye(6, k=1) + np.eye(6, k=-1) * 3
    binding = {"w1": np.eye(6, dtype=np.float32), "w2": band.astype(np.float32)}
    changed, new = first(SPACE.rule("collapse_excitation"), program, binding)
    inputs = [np.abs(sample(program)[0])]
    np.testing.assert_allclose(2 * run(changed, inputs, new), run(program, inputs, binding), atol=1e-5)


def test_collapse_excitation_leaves_images_alone() -> None:
    b = image(6, 2)
    program = canonical(b.build(b.pointwise(b.relu(b.pointwise(0, "w1", 6)), "w2", 6)))
    assert not list(variants(SPACE.rule("collapse_excitation"), program))

"""Every shipped rule on realistic programs: types, bindings, exactness, and what its initial values keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from rule_checks import (
    SPACE,
    changed_error,
    error,
    exactly_reduced,
    first,
    rng,
    single_conv,
    squared_error,
    unconditional,
)
from rule_programs import PROGRAMS, Net, image, sample, weights

from opadapt.errors import ProgramError, Refused
from opadapt.ir.canonical import canonical, digest
from opadapt.ir.cost import count_macs
from opadapt.ir.interpret import run
from opadapt.ir.program import Binding
from opadapt.ir.text import parse_program, print_program
from opadapt.ir.types import TensorType
from opadapt.lower import to_model
from opadapt.search.rewrite import Choice, Match, apply, matches, variants
from opadapt.search.space import Rule

# Rules of which a result of the same or more multiply-accumulates is no surprise.
NOT_CHEAPER = {
    "branch_removal",  # may keep the branch
    "chain_to_relu",
    "clip_to_relu",
    "hard_sigmoid",
    "hard_tanh",
    "pad_to_pointwise",  # a copy has no MACs
    "sigmoid_to_relu",
    "tanh_to_relu",
    "drop_activation",
}


def everywhere(rule: Rule) -> Iterator[tuple[str, Match, Choice]]:
    for name, program in PROGRAMS.items():
        for match, choice in variants(rule, program):
            yield name, match, choice


@pytest.mark.parametrize("rule", SPACE.rules, ids=lambda r: r.name)
def test_rule_keeps_types_and_binds_every_parameter(rule: Rule) -> None:
    applied = 0
    for name, match, choice in everywhere(rule):
        program = PROGRAMS[name]
        binding = weights(program)
        changed, new = apply(rule, program, match, choice, binding, rng())
        applied += 1
        assert changed.signature == program.signature
        assert canonical(changed) == changed
        assert {k: v.shape for k, v in new.items()} == changed.params
        assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in new.values())
        for kept in set(new) & set(binding):
            np.testing.assert_array_equal(new[kept], binding[kept])
        assert parse_program(print_program(changed)) == changed
        assert np.isfinite(run(changed, sample(program, batch=1), new)).all()
        if rule.exact:
            assert error(program, binding, changed, new) < 1e-5
        if rule.name not in NOT_CHEAPER:
            assert count_macs(changed) <= count_macs(program)
        assert apply(rule, program, match, choice, None, rng()) == (changed, {})
    assert applied


def test_the_residual_block_has_many_variants_and_they_differ() -> None:
    program = PROGRAMS["residual_block"]
    digests = [
        digest(apply(rule, program, match, choice, None, rng())[0])
        for rule in SPACE.rules
        for match, choice in variants(rule, program)
    ]
    assert len(set(digests)) > 50
    assert digest(program) not in digests


def test_exact_rules_chain_down_to_one_layer() -> None:
    """linear_pairs: after every exact rule, three convolutions with three biases are left."""
    program = PROGRAMS["linear_pairs"]
    binding = weights(program)
    left, values = exactly_reduced(program, binding)
    assert sum(step.op == "contract" for step in left.body) == 3
    assert len(left.params) == 6
    assert error(program, binding, left, values) < 1e-5


def test_padded_channels_become_one_strided_convolution() -> None:
    """What pads channels leaves ONNX Runtime's blocked layout, and all residual blocks after it do."""
    program = PROGRAMS["padded_shortcut"]
    binding = weights(program)
    left, values = exactly_reduced(program, binding)
    assert error(program, binding, left, values) < 1e-6
    made = [node.op_type for node in to_model(left, values, None).graph.node]
    assert sorted(made) == ["Add", "Conv", "Conv", "Conv", "Relu", "Relu"]


# ---- SVD ------------------------------------------------------------------------------------------------

FULL_RANK = [
    ("low_rank_pointwise", "pointwise_pair", 16),
    ("low_rank_dense", "perceptron", 24),
    ("low_rank_sequence", "feed_forward", 24),
    ("low_rank_output", "residual_block", 16),
    ("low_rank_output_1d", "conv_1d", 12),
    ("low_rank_input", "residual_block", 16),
    ("separable", "residual_block", 48),
    ("separable", "strided_block", 24),
]


@pytest.mark.parametrize(("name", "program_name", "rank"), FULL_RANK)
def test_full_rank_reproduces_and_the_error_falls_with_the_rank(
    name: str, program_name: str, rank: int
) -> None:
    program = PROGRAMS[program_name]
    binding = weights(program)
    ranks = (1, rank // 4, rank // 2, rank * 3 // 4, rank)
    rule = unconditional(name, r=ranks)
    results = [first(rule, program, binding, r=r) for r in ranks]
    assert error(program, binding, *results[-1]) < 1e-4
    errors = [squared_error(program, binding, *result) for result in results]
    assert errors == sorted(errors, reverse=True)
    assert errors[-2] > 1e-4


def test_a_rank_above_the_matrix_is_refused() -> None:
    program = PROGRAMS["pointwise_pair"]
    with pytest.raises(ProgramError, match="rank"):
        first(unconditional("low_rank_pointwise", r=(17,)), program, weights(program))


def test_full_tucker_ranks_reproduce() -> None:
    program = PROGRAMS["residual_block"]
    binding = weights(program)
    rule = unconditional("bottleneck", d=(1, 2, 4))
    errors = [error(program, binding, *first(rule, program, binding, d=d)) for d in (1, 2, 4)]
    assert errors[0] < 1e-4
    assert errors == sorted(errors)


# ---- initial values that keep what they can --------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_pointwise_is_exact_for_separable_weights(stride: int) -> None:
    program = single_conv(stride=stride)
    r = rng()
    w = np.einsum("oc,cij->ocij", r.normal(size=(16, 16)), r.normal(size=(16, 3, 3)))
    assert changed_error("depthwise_pointwise", program, {"w": w}) < 1e-5


def test_pointwise_depthwise_is_exact_for_its_weights() -> None:
    r = rng()
    w = np.einsum("oc,oij->ocij", r.normal(size=(16, 16)), r.normal(size=(16, 3, 3)))
    assert changed_error("pointwise_depthwise", single_conv(), {"w": w}) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_kernel_to_pointwise_is_exact_for_a_centre_tap(stride: int) -> None:
    w = np.zeros((16, 16, 3, 3))
    w[:, :, 1, 1] = rng().normal(size=(16, 16))
    assert changed_error("kernel_to_pointwise", single_conv(stride=stride), {"w": w}) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_kernel_to_three_is_exact_for_an_empty_rim(stride: int) -> None:
    w = np.zeros((16, 16, 5, 5))
    w[:, :, 1:4, 1:4] = rng().normal(size=(16, 16, 3, 3))
    assert changed_error("kernel_to_three", single_conv(stride=stride, kernel=5), {"w": w}) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_shift_is_exact_where_each_fifth_reads_its_tap(stride: int) -> None:
    values = rng().normal(size=(16, 16))
    w = np.zeros((16, 16, 3, 3))
    for part, (i, j) in enumerate([(0, 1), (2, 1), (1, 0), (1, 2)]):
        w[:, 3 * part : 3 * part + 3, i, j] = values[:, 3 * part : 3 * part + 3]
    w[:, 12:, 1, 1] = values[:, 12:]
    assert changed_error("shift_pointwise", single_conv(stride=stride), {"w": w}) < 1e-5


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_shuffle_is_exact_for_shuffled_blocks(groups: int) -> None:
    out = np.arange(16) % groups
    inside = np.arange(16) // (16 // groups)
    w = rng().normal(size=(16, 16, 3, 3)) * (out[:, None] == inside[None, :])[:, :, None, None]
    assert changed_error("grouped_shuffle", single_conv(), {"w": w}, g=groups) < 1e-5


def test_partial_is_exact_where_the_rest_is_the_identity() -> None:
    w = np.zeros((16, 16, 3, 3))
    w[:4, :4] = rng().normal(size=(4, 4, 3, 3))
    w[range(4, 16), range(4, 16), 1, 1] = 1
    assert changed_error("partial", single_conv(), {"w": w}) < 1e-5


def test_ghost_is_exact_where_the_second_half_is_a_multiple_of_the_first() -> None:
    r = rng()
    half = r.normal(size=(8, 16, 3, 3))
    w = np.concatenate([half, half * r.normal(size=(8, 1, 1, 1))])
    assert changed_error("ghost", single_conv(), {"w": w}) < 1e-5


def test_ghost_of_an_odd_number_of_channels() -> None:
    program = single_conv(out=7)
    binding = weights(program)
    changed, new = first(SPACE.rule("ghost"), program, binding)
    inputs = sample(program)
    np.testing.assert_allclose(
        run(changed, inputs, new)[:, :4], run(program, inputs, binding)[:, :4], atol=1e-5
    )


def test_output_cut_keeps_the_first_channels_and_fills_zeros() -> None:
    program = single_conv()
    binding = weights(program)
    changed, new = first(SPACE.rule("output_cut"), program, binding, m=8)
    inputs = sample(program)
    after = run(changed, inputs, new)
    np.testing.assert_allclose(after[:, :8], run(program, inputs, binding)[:, :8], atol=1e-5)
    assert not after[:, 8:].any()


def test_input_cut_is_exact_where_the_rest_is_not_read() -> None:
    w = rng().normal(size=(16, 16, 3, 3))
    w[:, 8:] = 0
    assert changed_error("input_cut", single_conv(), {"w": w}, m=8) < 1e-5


def test_half_resolution_by_stride_keeps_every_second_position() -> None:
    program = single_conv()
    binding = weights(program)
    changed, new = first(SPACE.rule("half_resolution_stride"), program, binding)
    inputs = sample(program)
    before, after = run(program, inputs, binding), run(changed, inputs, new)
    np.testing.assert_allclose(after[:, :, ::2, ::2], before[:, :, ::2, ::2], atol=1e-5)
    np.testing.assert_array_equal(after[:, :, 1::2, 1::2], after[:, :, ::2, ::2])


def test_half_resolution_by_pooling_is_exact_inside_for_constant_images() -> None:
    program = single_conv()
    binding = weights(program)
    changed, new = first(SPACE.rule("half_resolution_pool"), program, binding)
    inputs = [np.broadcast_to(rng().normal(size=(1, 16, 1, 1)), (2, 16, 12, 12)).astype(np.float32)]
    before, after = run(program, inputs, binding), run(changed, inputs, new)
    np.testing.assert_allclose(after[:, :, 2:-2, 2:-2], before[:, :, 2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "program_name", "first_layer", "second_layer", "bias"),
    [
        ("hidden_cut_conv_conv", "residual_block", "w1", ("w2", 1), "b1"),
        ("hidden_cut_conv_conv", "strided_block", "w1", ("w2", 1), "b1"),
        ("hidden_cut_pointwise", "pointwise_pair", "w1", ("w2", 1), "b1"),
        ("hidden_cut_pointwise_conv", "bottleneck_block", "w1", ("w2", 1), "b1"),
        ("hidden_cut_conv_pointwise", "bottleneck_block", "w2", ("w3", 1), "b2"),
        ("hidden_cut_inverted", "inverted_residual", "w1", ("w3", 1), "b1"),
        ("hidden_cut_dense", "perceptron", "w1", ("w2", 0), "w1_bias"),
        ("hidden_cut_sequence", "feed_forward", "w1", ("w2", 0), "w1_bias"),
    ],
)
def test_hidden_cut_is_exact_where_half_of_the_channels_do_nothing(
    name: str, program_name: str, first_layer: str, second_layer: tuple[str, int], bias: str
) -> None:
    program = PROGRAMS[program_name]
    binding = weights(program)
    hidden = binding[bias].shape[0]
    dead = np.arange(hidden) % 2 == 0
    layer, axis = second_layer
    np.moveaxis(binding[layer], axis, 0)[dead] = 0  # nothing reads them
    rule = SPACE.rule(name)
    changed, new = first(rule, program, binding, t=hidden // 2)
    assert error(program, binding, changed, new) < 1e-5
    changed, new = first(rule, program, binding, t=hidden // 4)
    assert error(program, binding, changed, new) > 0.01


@pytest.mark.parametrize(("stride", "second_stride"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize(
    ("name", "support"), [("collapse_conv", 3), ("collapse_separable", 3), ("collapse_pointwise", 1)]
)
def test_collapse_is_half_the_product_where_the_relu_passes_all(
    name: str, support: int, stride: int, second_stride: int
) -> None:
    b = image(8, 16)
    x = b.relu(b.conv(0, "w1", 8, stride=stride))
    program = canonical(b.build(b.conv(x, "w2", 8, stride=second_stride)))
    r = rng()
    low, high = (0, 3) if support == 3 else (1, 2)
    w1, w2 = np.zeros((8, 8, 3, 3)), np.zeros((8, 8, 3, 3))
    mixing = np.abs(r.normal(size=(8, 8)))
    w1[range(8), range(8), low:high, low:high] = np.abs(r.normal(size=(high - low, high - low)))
    w2[:, :, 1, 1] = mixing
    binding = {"w1": w1.astype(np.float32), "w2": w2.astype(np.float32)}
    changed, new = first(SPACE.rule(name), program, binding)
    inputs = [np.abs(sample(program)[0])]
    before, after = run(program, inputs, binding), run(changed, inputs, new)
    np.testing.assert_allclose(2 * after, before, atol=1e-4 * before.max())


def test_collapse_depthwise_takes_the_diagonal() -> None:
    program = PROGRAMS["residual_block"]
    binding = weights(program)
    whole = first(SPACE.rule("collapse_conv"), program, binding)[1]["collapsed"]
    diagonal = first(SPACE.rule("collapse_depthwise"), program, binding)[1]["depthwise"]
    np.testing.assert_allclose(diagonal, np.einsum("ccij->cij", whole), rtol=1e-6)


def test_chains_become_relu_whole() -> None:
    for make in ("gelu", "hard_swish", "silu"):
        b = image(4, 4)
        program = canonical(b.build(getattr(b, make)(b.bias(b.pointwise(0, "w", 4), "b"))))
        found = list(variants(SPACE.rule("chain_to_relu"), program))
        assert len(found) == 1
        changed, _ = apply(SPACE.rule("chain_to_relu"), program, *found[0], None, rng())
        expected = canonical(b.build(b.relu(b.bias(b.pointwise(0, "w", 4), "b"))))
        assert digest(changed) == digest(expected)


def test_branch_removal_offers_both_sides_and_no_bias() -> None:
    program = PROGRAMS["residual_block"]
    rule = SPACE.rule("branch_removal")
    results = {digest(apply(rule, program, m, c, None, rng())[0]) for m, c in variants(rule, program)}
    only_skip = image()
    assert digest(canonical(only_skip.build(only_skip.relu(0)))) in results
    assert len(results) == 2


# ---- matching and applying -------------------------------------------------------------------------------


def test_matches_are_deterministic_and_ordered() -> None:
    program = PROGRAMS["residual_block"]
    for rule in SPACE.rules:
        found = matches(rule, program)
        assert found == matches(rule, program)
        assert [m.root for m in found] == sorted(m.root for m in found)


def test_operand_order_and_letters_do_not_matter() -> None:
    text = print_program(PROGRAMS["residual_block"])
    other = parse_program(text.replace("nchwij,ocij->nohw", "abcdef,zbef->azcd"))
    swapped = "\n".join(
        f"{head} = add {right} {left}" if line.split(" = ")[-1].startswith("add ") else line
        for line in print_program(other).splitlines()
        for head, _, rest in [line.partition(" = ")]
        for _, left, right in [(*rest.split(), "", "", "")[:3]]
    )
    for rule in SPACE.rules:
        assert len(matches(rule, parse_program(swapped))) == len(matches(rule, PROGRAMS["residual_block"]))


def test_no_match_where_an_interior_result_is_used_elsewhere() -> None:
    b = image(8, 8)
    hidden = b.relu(b.conv(0, "w1", 8))
    program = canonical(b.build(b.emit("add", b.conv(hidden, "w2", 8), hidden)))
    assert not matches(SPACE.rule("hidden_cut_conv_conv"), program)
    assert not matches(SPACE.rule("collapse_conv"), program)
    assert len(matches(SPACE.rule("separable"), program)) == 2


def test_a_convolution_without_padding_matches() -> None:
    b = image(8, 8)
    x = b.emit("window", 0, axes=(2, 3), kernel=(3, 3), stride=(1, 1), dilation=(1, 1))
    x = b.emit("contract", x, b.param("w", (8, 8, 3, 3)), einsum="nchwij,ocij->nohw")
    program = b.build(x)
    (match,) = matches(SPACE.rule("separable"), program)
    assert [match.metas[k] for k in ("pt", "pb", "pl", "pr")] == [0, 0, 0, 0]
    assert match.values["p"] == match.values["x"] == 0
    changed, new = first(unconditional("separable", r=(24,)), program, weights(program))
    assert error(program, weights(program), changed, new) < 1e-4
    assert not any(step.op == "pad" for step in changed.body)


def test_a_padding_of_other_values_is_no_convolution() -> None:
    text = print_program(single_conv()).replace("value=0.0", "value=1.0")
    (match,) = matches(SPACE.rule("separable"), parse_program(text))
    assert match.values["x"] == 1  # the padded image, taken as it is


def test_new_names_are_unique() -> None:
    program = PROGRAMS["residual_block"]
    binding: Binding = weights(program)
    rule = SPACE.rule("low_rank_output")
    for _ in range(2):
        *_, (match, choice) = variants(rule, program)
        program, binding = apply(rule, program, match, choice, binding, rng())
    # the second time it was the first one's "reduce" that gave way
    assert {"w1", "expand", "reduce_2", "expand_2"} <= set(program.params)
    assert "reduce" not in program.params


def test_shared_weights_stay_where_only_one_user_changes() -> None:
    b = image(8, 8)
    x = b.relu(b.conv(0, "w", 8))
    program = canonical(b.build(b.conv(x, "w", 8)))
    changed, new = first(SPACE.rule("kernel_to_pointwise"), program, weights(program))
    assert set(changed.params) == {"w", "pointwise"} == set(new)


def test_a_failing_condition_is_refused_by_name() -> None:
    program = PROGRAMS["residual_block"]
    rule = SPACE.rule("grouped_shuffle")
    (match, *_) = matches(rule, program)
    with pytest.raises(Refused, match=r"grouped_shuffle: \(\?c % \?g\) == 0"):
        apply(rule, program, match, {"g": 3}, None, rng())


def test_a_replacement_of_another_type_is_an_error() -> None:
    rule = replace(SPACE.rule("drop_depthwise"), where=())
    b = image(8, 8)
    program = canonical(b.build(b.depthwise(0, "w", stride=2)))
    (match,) = matches(rule, program)
    with pytest.raises(ProgramError, match="another type"):
        apply(rule, program, match, {}, None, rng())


def test_a_static_batch_works_too() -> None:
    b = Net([TensorType((1, 16, 8, 8))])
    program = canonical(b.build(b.conv(0, "w", 16)))
    binding = weights(program)
    for rule in SPACE.rules:
        for match, choice in variants(rule, program):
            changed, new = apply(rule, program, match, choice, binding, rng())
            assert run(changed, sample(program), new).shape == (1, 16, 8, 8)


def test_identical_arguments_give_identical_results() -> None:
    program = PROGRAMS["residual_block"]
    binding = weights(program)
    for rule in SPACE.rules:
        for match, choice in variants(rule, program):
            one, other = (apply(rule, program, match, choice, binding, rng()) for _ in range(2))
            assert one[0] == other[0]
            assert all(np.array_equal(one[1][k], other[1][k]) for k in one[1])

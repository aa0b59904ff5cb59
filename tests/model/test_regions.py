"""Regions and groups of real and of small models; putting programs in their place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from opadapt.errors import ModelError, ProgramError
from opadapt.ir.interpret import run as interpret
from opadapt.model import validate
from opadapt.model.fold import fold
from opadapt.model.graph import Model, Source
from opadapt.model.load import load
from opadapt.model.normalise import normalise
from opadapt.model.regions import Region, expand_region, groups, regions, unsupported
from opadapt.model.splice import splice, splice_parts


def _small(build, rows, constants=None, shape=("N", 8, 6, 6), outputs=("y",)) -> Model:
    proto = build(rows, {"x": shape}, list(outputs), constants, 20, 9)
    return normalise(proto, Source(None, 20, 9))


def _kinds(found: list[Region]) -> Counter[str]:
    return Counter(r.kind for r in found)


def _block(found: list[Region], *nodes: str) -> Region | None:
    return next((r for r in found if set(r.nodes) == set(nodes)), None)


def _w(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 0.3).astype(np.float32)


def test_residual_blocks_of_a_cifar_resnet(shared_models: Path) -> None:
    model = load(shared_models / "cifar10_resnet56.onnx")
    found = regions(model)
    assert _kinds(found) == {"operator": 146, "chain": 28, "block": 54, "stage": 3}
    assert unsupported(model) == {}
    sizes = Counter((len(g.members), len(g.members[0].region.nodes)) for g in groups(model, found))
    assert sizes[9, 5] == 1  # stage 1: conv relu conv add relu, nine times
    assert sizes[8, 5] == 2  # stages 2 and 3: the first block of each has a shortcut of its own
    assert sizes[9, 3] == 1  # and their branches without the add
    assert sizes[8, 3] == 2
    shortcut = [r for r in found if r.kind == "block" and any("Pad" in n for n in r.nodes)]
    assert [len(r.nodes) for r in shortcut] == [8, 8]
    assert all(len(r.inputs) == 1 for r in found if r.kind != "operator")


def test_regions_are_closed_and_unique(shared_models: Path) -> None:
    model = load(shared_models / "ppocr_cls.onnx", {"x": ["N", 3, 48, 192]})
    found = regions(model)
    assert len({r.name for r in found}) == len({r.nodes for r in found}) == len(found)
    for region in found:
        inside = set(region.nodes)
        assert list(region.nodes) == sorted(region.nodes, key=model.position.__getitem__)
        assert 1 <= len(region.inputs) <= 2
        made = {t for n in region.nodes for t in model.nodes[n].output}
        assert region.output in made
        for tensor in made - {region.output}:
            assert set(model.consumers.get(tensor, ())) <= inside
            assert tensor not in model.outputs


@pytest.mark.parametrize(
    "name", ["cifar10_resnet20", "mlperf_tiny_kws_dscnn", "mlperf_tiny_vww_mobilenetv1_025"]
)
def test_every_region_put_back_as_its_own_program_changes_nothing(shared_models: Path, name: str) -> None:
    model = load(shared_models / f"{name}.onnx")
    feeds = validate.random_feeds(model.proto, np.random.default_rng(2), batch=2)
    wanted = validate.run(model.proto, feeds)
    for group in groups(model, regions(model)):
        for member in group.members:
            assert member.expanded.program == group.program
            spliced = splice(model, {member.region: (group.program, member.expanded.binding)})
            got = validate.run(spliced.proto, feeds)
            error = max(validate.relative_error(a, b) for a, b in zip(wanted, got, strict=True))
            assert error < 1e-5, member.region.name


@pytest.mark.parametrize("name", ["beliefppg_full", "ppocr_cls", "ultralight_face_rfb320", "basic_pitch"])
def test_many_regions_at_once(shared_models: Path, name: str) -> None:
    model = fold(
        load(shared_models / f"{name}.onnx", {"x": ["N", 3, 48, 192]} if name == "ppocr_cls" else None)
    )
    taken: set[str] = set()
    chosen = {}
    for region in sorted(regions(model), key=lambda r: -len(r.nodes)):
        if not taken & set(region.nodes):
            taken |= set(region.nodes)
            expanded = expand_region(model, region)
            chosen[region] = expanded.program, expanded.binding
    spliced = splice_parts(model, chosen)
    assert set(spliced.lowered) == set(chosen)
    assert validate.compare_outputs(model.proto, spliced.model.proto, batch=2) < 1e-5
    again = regions(spliced.model)  # an adapted model is a model
    assert len(again) > len(chosen)


def test_an_lstm_passes_through_untouched(shared_models: Path) -> None:
    model = load(shared_models / "beliefppg_full.onnx")
    reasons = unsupported(model)
    lstm = [name for name, node in model.nodes.items() if node.op_type == "LSTM"]
    assert len(lstm) == 2
    assert all("LSTM" in reasons[name] for name in lstm)
    assert not {n for r in regions(model) for n in r.nodes} & set(lstm)


def test_a_member_computes_its_own_region(shared_models: Path) -> None:
    model = load(shared_models / "cifar10_resnet20.onnx")
    group = next(g for g in groups(model, regions(model)) if len(g.members[0].region.nodes) == 5)
    for member in group.members:
        x = np.random.default_rng(0).standard_normal((2, 16, 32, 32)).astype(np.float32)
        alone = interpret(group.program, [x], member.expanded.binding)
        part = model.with_proto(model.proto)
        proto = type(model.proto)()
        proto.CopyFrom(part.proto)
        del proto.graph.node[:], proto.graph.input[:], proto.graph.output[:], proto.graph.value_info[:]
        proto.graph.node.extend(model.nodes[n] for n in member.region.nodes)
        from onnx import TensorProto, helper

        for where, tensor in (
            (proto.graph.input, member.region.inputs[0]),
            (proto.graph.output, member.region.output),
        ):
            where.append(
                helper.make_tensor_value_info(tensor, TensorProto.FLOAT, list(model.types[tensor].shape))
            )
        wanted = validate.run(proto, {member.region.inputs[0]: x})[0]
        assert validate.relative_error(wanted, alone) < 1e-5


# Structures in small: what is found does not depend on names or on one framework's patterns

SE = [
    ("GlobalAveragePool", "x", "p"),
    ("Conv", "p w1", "a"),
    ("Relu", "a", "b"),
    ("Conv", "b w2", "c"),
    ("HardSigmoid", "c", "g"),
    ("Mul", "x g", "y"),
]
HARD_SWISH = [
    ("Conv", "x w", "h"),
    ("Add", "h three", "a"),
    ("Clip", "a zero six", "b"),
    ("Mul", "h b", "c"),
    ("Div", "c six", "d"),
    ("Conv", "d w", "y"),
]
GELU = [
    ("MatMul", "x m", "h"),
    ("Add", "h b", "k"),
    ("Div", "k r2", "e0"),
    ("Erf", "e0", "e"),
    ("Add", "e one", "f"),
    ("Mul", "k f", "g"),
    ("Mul", "g half", "z"),
    ("MatMul", "z m", "y"),
]
SCALARS = {
    "three": np.float32(3),
    "zero": np.float32(0),
    "six": np.float32(6),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "r2": np.float32(2**0.5),
}


def test_squeeze_and_excitation_is_a_block(build) -> None:
    model = _small(build, SE, {"w1": _w(2, 8, 1, 1), "w2": _w(8, 2, 1, 1)})
    block = _block(regions(model), *model.nodes)
    assert block is not None
    assert block.kind == "block"
    assert block.inputs == ("x",)


def test_composite_activations_belong_to_their_chain(build) -> None:
    model = _small(build, HARD_SWISH, {"w": _w(8, 8, 1, 1)} | SCALARS)
    names = list(model.nodes)
    found = regions(model)
    chain = _block(found, *names[:5])
    assert chain is not None
    assert chain.kind == "chain"
    assert _block(found, *names[1:5]) is not None  # the hard swish alone
    assert _block(found, *names) is not None  # two chains in a row
    gelu = _small(build, GELU, {"m": _w(8, 8), "b": _w(8)} | SCALARS, ("N", 5, 8))
    found = regions(gelu)
    assert _block(found, *list(gelu.nodes)[:7]) is not None
    assert _block(found, *list(gelu.nodes)[2:7]) is not None


def test_downsampling_shortcut_by_a_convolution(build) -> None:
    rows = [
        ("Conv", "x w", "a", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Relu", "a", "b"),
        ("Conv", "b w", "c", {"pads": [1, 1, 1, 1]}),
        ("Conv", "x s", "d", {"strides": [2, 2]}),
        ("Add", "c d", "e"),
        ("Relu", "e", "y"),
    ]
    model = _small(build, rows, {"w": _w(8, 8, 3, 3), "s": _w(8, 8, 1, 1)})
    found = regions(model)
    assert _block(found, *model.nodes) is not None
    assert _block(found, *list(model.nodes)[:3]) is not None


def test_depthwise_separable_pairs_and_bottlenecks(build) -> None:
    rows = [
        ("Conv", "x up", "a"),
        ("Relu", "a", "b"),
        ("Conv", "b dw", "c", {"group": 16, "pads": [1, 1, 1, 1]}),
        ("Relu", "c", "d"),
        ("Conv", "d down", "y"),
    ]
    constants = {"up": _w(16, 8, 1, 1), "dw": _w(16, 1, 3, 3), "down": _w(8, 16, 1, 1)}
    model = _small(build, rows, constants)
    names, found = list(model.nodes), regions(model)
    assert all(_block(found, *part) is not None for part in (names[:4], names[2:], names))


def test_a_tensor_used_elsewhere_closes_no_region(build) -> None:
    rows = [("Conv", "x w", "a"), ("Relu", "a", "b"), ("Conv", "b w", "y"), ("Neg", "a", "z")]
    model = _small(build, rows, {"w": _w(8, 8, 1, 1)}, outputs=("y", "z"))
    found = regions(model)
    assert _block(found, "conv_0", "relu_1") is None
    output = _small(build, rows[:3], {"w": _w(8, 8, 1, 1)}, outputs=("y", "a"))
    assert _block(regions(output), "conv_0", "relu_1") is None


# Splicing


def _conv_relu(build) -> tuple[Model, dict[str, Region]]:
    rows = [("Conv", "x w", "a"), ("Relu", "a", "b"), ("Conv", "b w", "y")]
    model = _small(build, rows, {"w": _w(8, 8, 1, 1)})
    return model, {r.name: r for r in regions(model)}


def test_new_names_are_fresh_and_dead_weights_go(build) -> None:
    model, found = _conv_relu(build)
    first = found["conv_0..relu_1"]
    expanded = expand_region(model, first)
    once = splice(model, {first: (expanded.program, expanded.binding)})
    assert all(n == "conv_2" or n.startswith("adapted_0/") for n in once.nodes)
    assert "b" in once.producer
    assert "w" in once.initializers  # the second convolution still reads it
    last = next(r for r in regions(once) if r.nodes == ("conv_2",))
    expanded = expand_region(once, last)
    twice = splice(once, {last: (expanded.program, expanded.binding)})
    assert "w" not in twice.initializers
    assert {n.split("/")[0] for n in twice.nodes} == {"adapted_0", "adapted_1"}
    assert validate.compare_outputs(model.proto, twice.proto, batch=3) < 1e-5


def test_wrong_replacements_are_refused(build) -> None:
    model, found = _conv_relu(build)
    program = {name: expand_region(model, r) for name, r in found.items()}
    chain, conv = found["conv_0..relu_1"], found["conv_0"]
    both = {r: (program[r.name].program, program[r.name].binding) for r in (chain, conv)}
    with pytest.raises(ModelError, match="overlap"):
        splice(model, both)
    stranger = Region("s", ("gone",), ("x",), "y", "operator")
    with pytest.raises(ModelError, match="not of this model"):
        splice(model, {stranger: both[conv]})
    other = _small(build, [("Conv", "x w", "y")], {"w": _w(4, 8, 1, 1)})
    wrong = expand_region(other, regions(other)[0])
    with pytest.raises(ProgramError, match="does not fit"):
        splice(model, {conv: (wrong.program, wrong.binding)})
    with pytest.raises(ProgramError):
        splice(model, {conv: (program["conv_0"].program, {})})


def test_an_attention_block_is_found_from_its_one_input(build) -> None:
    heads, width, length = 2, 8, 5
    rows = []
    for name in "qkv":
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        rows += [
            ("MatMul", f"x w{name}", f"{name}0"),
            ("Add", f"{name}0 b{name}", f"{name}1"),
            ("Reshape", f"{name}1 split", f"{name}2"),
            ("Transpose", f"{name}2", f"{name}3", {"perm": perm}),
        ]
    rows += [
        ("MatMul", "q3 k3", "s0"),
        ("Mul", "s0 scale", "s1"),
        ("Softmax", "s1", "s2", {"axis": -1}),
        ("MatMul", "s2 v3", "a0"),
        ("Transpose", "a0", "a1", {"perm": [0, 2, 1, 3]}),
        ("Reshape", "a1 merge", "a2"),
        ("MatMul", "a2 wo", "a3"),
        ("Add", "a3 x", "y"),
    ]
    constants = {f"w{n}": _w(width, width) for n in "qkvo"} | {f"b{n}": _w(width) for n in "qkv"}
    constants |= {
        "split": np.array([0, length, heads, width // heads]),
        "merge": np.array([0, length, width]),
        "scale": np.float32(0.5),
    }
    model = _small(build, rows, constants, ("N", length, width))
    names, found = list(model.nodes), regions(model)
    assert unsupported(model) == {}
    whole = _block(found, *names)
    assert whole is not None
    assert whole.inputs == ("x",)
    assert _block(found, *names[:16]) is not None  # up to softmax(q k) v
    assert _block(found, *names[:-1]) is not None  # the branch without the add
    expanded = expand_region(model, whole)
    spliced = splice(model, {whole: (expanded.program, expanded.binding)})
    assert validate.compare_outputs(model.proto, spliced.proto, batch=2) < 1e-5


def test_members_of_a_group_share_no_node(build) -> None:
    """In a row of equal layers, windows of two overlap: replaced at once they must not."""
    rows, constants, tensor = [], {}, "x"
    for k in range(5):
        constants[f"w{k}"] = _w(8, 8, 3, 3)
        last = "y" if k == 4 else f"r{k}"
        rows.append(("Conv", f"{tensor} w{k}", f"c{k}", {"pads": [1, 1, 1, 1]}))
        rows.append(("Relu", f"c{k}", last))
        tensor = last
    model = _small(build, rows, constants)
    found = groups(model, regions(model))
    pairs = [g for g in found if len(g.members[0].region.nodes) == 4]
    assert pairs and all(len(g.members) >= 2 for g in pairs)
    for group in found:
        nodes = [n for m in group.members for n in m.region.nodes]
        assert len(nodes) == len(set(nodes))
        splice(model, {m.region: (group.program, m.expanded.binding) for m in group.members})

"""Shapes, constants, the batch, names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from opadapt.errors import ModelError
from opadapt.model import validate
from opadapt.model.graph import Model, Source
from opadapt.model.load import load
from opadapt.model.normalise import normalise

INT = np.int64


def _normalise(proto, shapes=None) -> Model:
    return normalise(proto, Source(None, proto.opset_import[0].version, proto.ir_version), shapes)


def _operators(model: Model) -> list[str]:
    return [n.op_type for n in model.nodes.values()]


def test_pads_computed_by_a_chain_become_one_static_pad(shared_models: Path) -> None:
    model = load(shared_models / "cifar10_resnet20.onnx")
    assert Counter(_operators(model)) == Counter(
        Conv=19, Relu=19, Add=9, Slice=4, Pad=2, AveragePool=1, Reshape=1, Gemm=1
    )
    for node in model.nodes.values():
        if node.op_type in ("Pad", "Slice", "Reshape"):
            assert all(name in model.initializers for name in node.input[1:] if name)
    pad = next(n for n in model.nodes.values() if n.op_type == "Pad")
    assert list(model.initializers[pad.input[1]]) == [0, 8, 0, 0, 0, 8, 0, 0]
    assert all(t in model.types for n in model.nodes.values() for t in n.output)


def test_names_that_are_there_and_unique_are_kept(shared_models: Path) -> None:
    assert "/layer1/layer1.0/conv1/Conv" in load(shared_models / "cifar10_resnet20.onnx").nodes


def test_missing_and_double_names_become_unique_and_stable(build) -> None:
    proto = build(
        [("Relu", "x", "a"), ("Neg", "a", "b"), ("Abs", "b", "y")], {"x": ("N", 4)}, ["y"], names=False
    )
    proto.graph.node[0].name = proto.graph.node[2].name = "same"
    first, second = _normalise(proto), _normalise(proto)
    assert list(first.nodes) == list(second.nodes)
    assert len(set(first.nodes)) == 3
    assert "same" in first.nodes


def test_a_model_that_took_its_own_normal_form_stays_as_it_is(shared_models: Path) -> None:
    once = load(shared_models / "mlperf_tiny_ic_resnet8.onnx")
    twice = _normalise(once.proto)
    assert list(once.nodes) == list(twice.nodes)
    assert once.types == twice.types


def test_open_dimension_names_the_input_and_the_flag(shared_models: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(shared_models / "ppocr_cls.onnx")
    text = str(caught.value)
    assert "'x'" in text
    assert "--shape x=N,3,D2,D3" in text
    assert "2 ('?')" in text


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ({"z": [1, 2]}, "no input"),
        ({"x": ["N", 3]}, "contradicts"),
        ({"x": ["N", 5, 8, 8]}, "contradicts"),
        ({"x": ["N", 3, "H", 8]}, "open dimension"),
        ({"x": ["N", 3, "N", 8]}, "open dimension"),
        ({"x": ["N", 3, 0, 8]}, "no shape"),
    ],
)
def test_wrong_shapes_are_refused(build, shapes, word: str) -> None:
    proto = build([("Relu", "x", "y")], {"x": ("b", 3, "h", "w")}, ["y"])
    with pytest.raises(ModelError, match=word):
        _normalise(proto, shapes)


def test_a_fixed_batch_becomes_free_where_the_model_allows(shared_models: Path) -> None:
    model = load(shared_models / "ultralight_face_rfb320.onnx")
    assert model.has_batch
    assert [str(model.types[t]) for t in model.outputs] == ["f32[N,4420,2]", "f32[N,4420,4]"]
    feeds = validate.random_feeds(model.proto, np.random.default_rng(1), batch=4)
    whole = validate.run(model.proto, feeds)
    single = validate.run(model.proto, {k: v[2:3] for k, v in feeds.items()})
    assert all(validate.relative_error(s, w[2:3]) < 1e-5 for s, w in zip(single, whole, strict=True))


def test_a_fixed_batch_stays_where_samples_mix(build) -> None:
    proto = build([("Softmax", "x", "y", {"axis": 0})], {"x": (1, 5)}, ["y"])
    assert not _normalise(proto).has_batch
    tied = build(
        [("Add", "x c", "h"), ("Reshape", "h s", "y")],
        {"x": (1, 4)},
        ["y"],
        {"c": np.ones((1, 4), np.float32), "s": np.array([4], INT)},
    )
    model = _normalise(tied)
    assert not model.has_batch
    assert str(model.types["y"]) == "f32[4]"


def test_an_open_batch_that_does_not_run_at_3_is_fixed_at_1(build) -> None:
    proto = build([("Reshape", "x s", "y")], {"x": ("N", 4)}, ["y"], {"s": np.array([2, 2], INT)})
    model = _normalise(proto)
    assert not model.has_batch
    assert str(model.types["x"]) == "f32[1,4]"


def test_inputs_without_a_batch_beside_one_with(build) -> None:
    proto = build([("Mul", "x s", "y")], {"x": ("N", 4), "s": (4,)}, ["y"])
    model = _normalise(proto)
    assert str(model.types["x"]) == "f32[N,4]"
    assert str(model.types["s"]) == "f32[4]"
    assert str(model.types["y"]) == "f32[N,4]"


def test_flatten_by_shape_arithmetic_becomes_static(build) -> None:
    rows = [
        ("Shape", "x", "s"),
        ("Gather", "s zero", "n"),
        ("Unsqueeze", "n zeros", "n1"),
        ("Concat", "n1 rest", "target", {"axis": 0}),
        ("Reshape", "x target", "flat"),
        ("Gemm", "flat w", "y"),
    ]
    constants = {
        "zero": np.array(0),
        "zeros": np.array([0]),
        "rest": np.array([-1]),
        "w": np.ones((12, 2), np.float32),
    }
    model = _normalise(build(rows, {"x": ("N", 3, 2, 2)}, ["y"], constants))
    assert _operators(model) == ["Reshape", "Gemm"]
    assert str(model.types["flat"]) == "f32[N,12]"


def test_an_if_with_a_constant_condition_becomes_its_branch(build) -> None:
    def branch(op: str):
        value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["h"], ["z"], "inner")], op, [], [value])

    proto = build([("Relu", "x", "h")], {"x": ("N", 4)}, ["y"], {"c": np.array(False)})
    proto.graph.node.append(
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("Neg"), else_branch=branch("Exp"))
    )
    assert _operators(_normalise(proto)) == ["Relu", "Exp"]


def test_an_if_on_data_stays_opaque_and_keeps_what_it_captures(build) -> None:
    def branch(op: str):
        value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["h"], ["z"], "inner")], op, [], [value])

    proto = build(
        [("Relu", "x", "h"), ("ReduceSum", "h", "s", {"keepdims": 0}), ("Greater", "s zero", "c")],
        {"x": (1, 4)},
        ["y"],
        {"zero": np.float32(1)},
    )
    proto.graph.node.append(
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("Neg"), else_branch=branch("Exp"))
    )
    model = _normalise(proto)
    assert _operators(model) == ["Relu", "ReduceSum", "Greater", "If"]
    assert "if" in model.consumers["h"]


def test_outputs_keep_their_names_through_identities(build) -> None:
    rows = [("Relu", "x", "h"), ("Identity", "h", "y"), ("Identity", "x", "z"), ("Neg", "h", "k")]
    model = _normalise(build(rows, {"x": ("N", 4)}, ["y", "z", "k"]))
    assert model.outputs == ("y", "z", "k")
    assert model.nodes[model.producer["y"]].op_type == "Relu"


@pytest.mark.parametrize(("end", "step", "kept"), [(-9, -1, ["Slice"]), (9, 1, [])])
def test_a_slice_of_everything_goes_but_a_flip_stays(build, end: int, step: int, kept: list[str]) -> None:
    constants = {"s": np.array([0 if step > 0 else -1]), "e": np.array([end]), "ax": np.array([1])}
    rows = [("Relu", "x", "h"), ("Slice", "h s e ax step", "k"), ("Neg", "k", "y")]
    model = _normalise(build(rows, {"x": ("N", 4)}, ["y"], {**constants, "step": np.array([step])}))
    assert _operators(model) == ["Relu", *kept, "Neg"]


def test_weights_in_8_bits_stay_quantised(build) -> None:
    constants = {"q": np.ones((3, 4, 1, 1), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    rows = [("DequantizeLinear", "q s z", "w"), ("Conv", "x w", "y")]
    assert _operators(_normalise(build(rows, {"x": ("N", 4, 5, 5)}, ["y"], constants))) == [
        "DequantizeLinear",
        "Conv",
    ]


def test_a_conversion_that_changes_the_outputs_is_refused(build, monkeypatch: pytest.MonkeyPatch) -> None:
    from opadapt.model import normalise as module

    def wrong(proto, opset, ir_version):
        proto.graph.node[0].op_type = "Neg"
        return proto

    monkeypatch.setattr(module, "to_opset", wrong)
    with pytest.raises(ModelError, match="does not compute"):
        _normalise(build([("Abs", "x", "y")], {"x": ("N", 4)}, ["y"], opset=20, ir_version=9))


def test_resize_to_sizes_computed_with_the_batch_gets_scales(build) -> None:
    rows = [
        ("Shape", "x", "s"),
        ("Slice", "s zero two", "nc"),
        ("Concat", "nc hw", "sizes", {"axis": 0}),
        ("Resize", "x _ _ sizes", "y", {"mode": "linear"}),
    ]
    constants = {"zero": np.array([0]), "two": np.array([2]), "hw": np.array([9, 14])}
    proto = build(rows, {"x": ("N", 3, 6, 7)}, ["y"], constants)
    model = _normalise(proto)
    assert _operators(model) == ["Resize"]
    assert str(model.types["y"]) == "f32[N,3,9,14]"
    assert validate.compare_outputs(proto, model.proto, batch=2) < 1e-6

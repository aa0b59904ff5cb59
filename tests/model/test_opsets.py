"""Opsets 9 to 23 in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opadapt.errors import ModelError
from opadapt.model import validate
from opadapt.model.graph import Source
from opadapt.model.load import load
from opadapt.model.normalise import normalise
from opadapt.model.save import export, exported
from opadapt.resources import WORKING_IR_VERSION, WORKING_OPSET

RNG = np.random.default_rng(0)
INT = np.int64


def _axes(
    opset: int, since: int, op: str, x: str, y: str, axes: list[int], constants: dict[str, Any]
) -> tuple:
    if opset < since:
        return (op, x, y, {"axes": axes})
    constants[f"{y}_axes"] = np.array(axes, INT)
    return (op, f"{x} {y}_axes", y)


def _versioned(opset: int) -> tuple[list[tuple], dict[str, Any]]:
    """A model whose operators changed often, written as each opset wants it. Input x [N, 4, 6, 6]."""
    c: dict[str, Any] = {
        "w": RNG.standard_normal((8, 4, 3, 3)).astype(np.float32) * 0.3,
        "scale": np.linspace(0.5, 1.5, 8, dtype=np.float32),
        "shift": np.linspace(-1, 1, 8, dtype=np.float32),
        "mean": np.zeros(8, np.float32),
        "var": np.ones(8, np.float32),
        "g": RNG.standard_normal((8, 5)).astype(np.float32),
        "gb": np.ones(5, np.float32),
    }
    rows: list[tuple] = [
        ("Conv", "x w", "conv"),
        ("BatchNormalization", "conv scale shift mean var", "bn", {"epsilon": 1e-3}),
    ]
    if opset < 11:
        rows.append(("Clip", "bn", "clip", {"min": -1.0, "max": 2.0}))
        rows.append(("Pad", "clip", "pad", {"pads": [0, 0, 1, 0, 0, 0, 0, 1], "value": 0.5}))
    else:
        c |= {"lo": np.float32(-1), "hi": np.float32(2), "half": np.float32(0.5)}
        c["pads"] = np.array([0, 0, 1, 0, 0, 0, 0, 1], INT)
        rows += [("Clip", "bn lo hi", "clip"), ("Pad", "clip pads half", "pad")]
    if opset < 10:
        rows.append(("Slice", "pad", "cut", {"starts": [0, 1], "ends": [4, 5], "axes": [2, 3]}))
        c["scales"] = np.array([1, 1, 2, 2], np.float32)
        rows.append(("Upsample", "cut scales", "up", {"mode": "nearest"}))
    else:
        c |= {"starts": np.array([0, 1], INT), "ends": np.array([4, 5], INT), "axes": np.array([2, 3], INT)}
        c |= {"scales": np.array([1, 1, 2, 2], np.float32), "roi": np.zeros(0, np.float32)}
        rows.append(("Slice", "pad starts ends axes", "cut"))
        floor = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "mode": "nearest"}
        rows.append(
            ("Resize", "cut scales", "up", {"mode": "nearest"})
            if opset < 11
            else ("Resize", "cut roi scales", "up", floor)
        )
    rows.append(
        ("ReduceMean", "up", "mean3", {"axes": [3], "keepdims": 1})
        if opset < 18
        else _axes(opset, 18, "ReduceMean", "up", "mean3", [3], c)
    )
    rows.append(_axes(opset, 13, "ReduceSum", "mean3", "sum2", [2], c))
    rows.append(_axes(opset, 13, "Squeeze", "sum2", "flat", [2, 3], c))
    rows.append(("Gemm", "flat g gb", "gemm", {"alpha": 0.5}))
    rows.append(("Softmax", "gemm", "soft", {"axis": 1}))
    rows.append(_axes(opset, 13, "Unsqueeze", "soft", "wide", [1], c))
    if opset < 13:
        rows.append(("Split", "flat", "a b", {"axis": 1, "split": [3, 5]}))
    else:
        c["sizes"] = np.array([3, 5], INT)
        rows.append(("Split", "flat sizes", "a b", {"axis": 1}))
    rows += [
        ("Dropout", "b", "kept"),
        ("Identity", "wide", "same"),
        ("Flatten", "same", "y0"),
        ("Mul", "y0 kept", "y"),
        ("Neg", "a", "z"),
    ]
    return rows, c


@pytest.mark.parametrize("opset", range(9, 24))
def test_every_opset_comes_in_and_goes_back(build, write, tmp_path: Path, opset: int) -> None:
    rows, constants = _versioned(opset)
    ir = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    proto = build(rows, {"x": ("batch", 4, 6, 6)}, ["y", "z"], constants, opset, ir)
    model = load(write(proto))
    assert (model.proto.opset_import[0].version, model.proto.ir_version) == (
        WORKING_OPSET,
        WORKING_IR_VERSION,
    )
    assert model.has_batch
    path = export(model, tmp_path / "out.onnx")
    back = onnx.load(path)
    assert (back.opset_import[0].version, back.ir_version) == (opset, ir)
    assert back.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    feeds = {"x": RNG.standard_normal((2, 4, 6, 6)).astype(np.float32)}
    assert validate.compare_outputs(proto, back, feeds) < 1e-5


def _working(build, rows, constants=None, shape=("N", 4, 6, 6)):
    proto = build(rows, {"x": shape}, ["y"], constants, WORKING_OPSET, WORKING_IR_VERSION)
    return normalise(proto, Source(None, WORKING_OPSET, WORKING_IR_VERSION))


FORMS = {
    "gelu": ([("Gelu", "x", "y")], {}),
    "gelu_tanh": ([("Gelu", "x", "y", {"approximate": "tanh"})], {}),
    "hard_swish": ([("HardSwish", "x", "y")], {}),
    "mish": ([("Mish", "x", "y")], {}),
    "layer_normalization": (
        [("LayerNormalization", "x s b", "y", {"axis": -1})],
        {"s": np.linspace(1, 2, 6, dtype=np.float32), "b": np.ones(6, np.float32)},
    ),
    "softmax_inner_axis": ([("Softmax", "x", "y", {"axis": 1})], {}),
    "reduce_negative_axes": ([("ReduceMax", "x a", "y")], {"a": np.array([-1, -2], INT)}),
    "gemm_without_bias": (
        [("Flatten", "x", "f"), ("Gemm", "f w", "y")],
        {"w": np.ones((144, 3), np.float32)},
    ),
    "pad_some_axes": ([("Pad", "x p _ a", "y")], {"p": np.array([1, 2], INT), "a": np.array([3], INT)}),
    "split_equal": ([("Split", "x", "a b", {"axis": 1, "num_outputs": 2}), ("Mul", "a b", "y")], {}),
    "upsample": (
        [("Resize", "x _ s", "y", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"})],
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
}


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 15, 17, 18, 19, 20, 21, 23])
@pytest.mark.parametrize("form", FORMS)
def test_what_programs_lower_to_exports_to_every_opset(build, form: str, opset: int) -> None:
    model = _working(build, *FORMS[form])
    proto = exported(model, opset)
    assert proto.opset_import[0].version == opset
    assert validate.compare_outputs(model.proto, proto, batch=2) < 2e-6


@pytest.mark.parametrize(
    ("rows", "constants", "opset", "words"),
    [
        ([("Einsum", "x x", "y", {"equation": "nchw,nchw->nc"})], {}, 11, ("Einsum", "opset 12")),
        (
            [("Slice", "x s e a k", "y")],
            {"s": np.array([0]), "e": np.array([6]), "a": np.array([3]), "k": np.array([2])},
            9,
            ("Slice", "opset 10"),
        ),
        (
            [("Resize", "x _ s", "y", {"mode": "linear"})],
            {"s": np.array([1, 1, 2, 2], np.float32)},
            10,
            ("Resize", "opset 11"),
        ),
        ([("Relu", "x", "y")], {}, 8, ("opset 8",)),
        ([("Relu", "x", "y")], {}, 99, ("opset 99",)),
    ],
)
def test_no_form_is_refused_with_the_operator_and_the_way_out(build, rows, constants, opset, words) -> None:
    with pytest.raises(ModelError) as caught:
        exported(_working(build, rows, constants), opset)
    assert all(w in str(caught.value) for w in words)
    assert "opset" in (caught.value.do or "")


def test_operators_newer_than_the_working_opset_become_older_ones(write, build) -> None:
    constants = {"s": np.linspace(1, 2, 6, dtype=np.float32)}
    proto = build(
        [("RMSNormalization", "x s", "y", {"axis": -1})], {"x": ("N", 4, 6)}, ["y"], constants, 23, 11
    )
    model = load(write(proto))
    assert "RMSNormalization" not in {n.op_type for n in model.nodes.values()}
    assert validate.compare_outputs(proto, model.proto, batch=2) < 1e-5
    attention = build(
        [("Attention", "x x x", "y", {"q_num_heads": 2, "kv_num_heads": 2})],
        {"x": ("N", 5, 8)},
        ["y"],
        None,
        23,
        11,
    )
    assert validate.compare_outputs(attention, load(write(attention)).proto, batch=2) < 1e-5
    swish = build([("Swish", "x", "y")], {"x": ("N", 4)}, ["y"], None, 24, 12)
    assert {n.op_type for n in load(write(swish)).nodes.values()} == {"Sigmoid", "Mul"}
    group = build(
        [("GroupNormalization", "x s b", "y", {"num_groups": 2})],
        {"x": ("N", 4, 6)},
        ["y"],
        {"s": np.arange(1, 5, dtype=np.float32), "b": np.arange(4, dtype=np.float32)},
        21,
        10,
    )
    assert validate.compare_outputs(group, load(write(group)).proto, batch=2) < 1e-5


def test_the_ai_onnx_alias_of_the_default_domain(build, write) -> None:
    proto = build([("Relu", "x", "y")], {"x": ("N", 4)}, ["y"])
    proto.graph.node[0].domain = "ai.onnx"
    proto.opset_import[0].domain = "ai.onnx"
    assert load(write(proto)).nodes["relu_0"].domain == ""


def test_initializers_stay_inputs_in_files_of_ir_version_3(tmp_path: Path) -> None:
    w = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 4)), ("w", (4, 3)))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    graph = helper.make_graph(
        [node], "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3))], [w]
    )
    path = tmp_path / "old.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3).SerializeToString()
    )
    back = onnx.load(export(load(path), tmp_path / "new.onnx"))
    assert back.ir_version == 3
    assert {i.name for i in back.graph.input} == {"x", "w"}
    assert [d.dim_value for d in back.graph.input[0].type.tensor_type.shape.dim] == [1, 4]

"""Forms of operators that the ONNX cases leave out, against ONNX Runtime: old opsets, free sizes, shape arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from opadapt.torchgraph import build

Node = tuple[str, list[str], list[str], dict[str, Any]]
FREE = ("N", "C", "H", "W")


@dataclass(frozen=True)
class Form:
    """Nodes from input x [2, 4, 6, 8] to output y, at an opset; ``shape`` is what the model declares for x."""

    nodes: list[Node]
    opset: int = 20
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    shape: tuple[int | str, ...] = FREE


def _int(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def _one(op: str, opset: int, more: dict[str, np.ndarray] | None = None, **attrs: Any) -> Form:
    """A single node whose further inputs are the stored tensors in order."""
    more = more or {}
    return Form([(op, ["x", *more], ["y"], attrs)], opset, {k: v for k, v in more.items() if k})


W = {"w": _floats(4, 4, 3, 3)}
FORMS: dict[str, Form] = {
    "clip-7": _one("Clip", 7, min=-0.5, max=0.25),
    "clip-11-low": _one("Clip", 11, {"low": np.array(-0.5, np.float32)}),
    "pad-7": _one("Pad", 7, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=1.5),
    "pad-7-edge": _one("Pad", 7, mode="edge", pads=[0, 0, 1, 2, 0, 0, 3, 1]),
    "pad-11-crop": _one("Pad", 11, {"p": _int(0, 0, -1, 2, 0, 0, 0, -3)}),
    "pad-11-reflect-crop": _one("Pad", 11, {"p": _int(0, 0, -1, 2, 0, 1, 0, 1)}, mode="reflect"),
    "slice-7": _one("Slice", 7, starts=[1, -3], ends=[100, -1], axes=[1, 3]),
    "slice-10-back": _one("Slice", 10, {"s": _int(-1), "e": _int(-(2**40)), "a": _int(-1), "t": _int(-3)}),
    "split-11": Form(
        [
            ("Split", ["x"], ["a", "b"], {"axis": 1, "split": [1, 3]}),
            ("Concat", ["b", "a"], ["y"], {"axis": 1}),
        ],
        11,
    ),
    "squeeze-11": Form(
        [("ReduceMax", ["x"], ["a"], {"axes": [1]}), ("Squeeze", ["a"], ["y"], {"axes": [1]})], 11
    ),
    "unsqueeze-11": _one("Unsqueeze", 11, axes=[0, 5]),
    "unsqueeze-13-mixed": _one("Unsqueeze", 13, {"a": _int(-1, 1)}),
    "reducesum-11": _one("ReduceSum", 11, axes=[-1, 1], keepdims=0),
    "reducemean-18": _one("ReduceMean", 18, {"a": _int(2, 3)}),
    "softmax-11": _one("Softmax", 11, axis=2),
    "logsoftmax-11": _one("LogSoftmax", 11),
    "dropout-7": _one("Dropout", 7, ratio=0.3),
    "upsample-9": _one("Upsample", 9, {"s": np.array([1, 1, 2, 3], np.float32)}),
    "upsample-9-linear": _one("Upsample", 9, {"s": np.array([1, 1, 2, 2], np.float32)}, mode="linear"),
    "resize-10": _one("Resize", 10, {"s": np.array([1, 1, 0.5, 2], np.float32)}),
    "resize-13-linear": _one(
        "Resize", 13, {"": _int(), "s": np.array([1, 1, 2, 2], np.float32)}, mode="linear"
    ),
    "resize-13-align": _one(
        "Resize",
        13,
        {"": _int(), "s": np.array([1, 1, 2, 2], np.float32)},
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "resize-19-nearest": _one(
        "Resize",
        19,
        {"": _int(), "s": np.array([1, 1, 2, 2], np.float32)},
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "conv-same-upper": _one("Conv", 20, W, auto_pad="SAME_UPPER", strides=[2, 3]),
    "conv-same-lower": _one("Conv", 20, W, auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv-valid": _one("Conv", 20, W, auto_pad="VALID", dilations=[2, 1]),
    "conv-groups": _one(
        "Conv", 20, {"w": _floats(8, 2, 3, 2), "b": _floats(8)}, group=2, pads=[2, 0, 1, 1], strides=[2, 1]
    ),
    "convtranspose-asymmetric": _one(
        "ConvTranspose", 20, {"w": _floats(4, 3, 3, 3), "b": _floats(3)}, pads=[1, 0, 0, 1], strides=[2, 2]
    ),
    "convtranspose-same": _one(
        "ConvTranspose", 20, {"w": _floats(4, 1, 3, 4)}, auto_pad="SAME_UPPER", strides=[2, 3], group=4
    ),
    "maxpool-ceil-asymmetric": _one(
        "MaxPool", 12, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0], ceil_mode=1
    ),
    "maxpool-same": _one("MaxPool", 12, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "averagepool-asymmetric": _one("AveragePool", 11, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 1, 0]),
    "averagepool-include": _one(
        "AveragePool", 11, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 1, 0], count_include_pad=1
    ),
    "averagepool-ceil-include": _one(
        "AveragePool",
        20,
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        count_include_pad=1,
        ceil_mode=1,
    ),
    "flatten-2": _one("Flatten", 13, axis=2),
    "gather-negative": _one("Gather", 13, {"i": _int(-1, 0, 2).reshape(1, 3)}, axis=2),
    "gather-scalar": _one("Gather", 13, {"i": np.array(-2, np.int64)}, axis=1),
    "depthtospace": _one("DepthToSpace", 13, blocksize=2),
    "gemm-plain": Form(
        [
            ("Flatten", ["x"], ["f"], {}),
            ("Gemm", ["f", "w", "b"], ["y"], {"alpha": 0.5, "beta": 2.0}),
        ],
        13,
        {"w": _floats(192, 5), "b": _floats(5)},
    ),
    "prelu": _one("PRelu", 16, {"s": _floats(4, 1, 1)}),
    "pow-int": _one("Pow", 15, {"e": np.array(2, np.int64)}),
    "reshape-from-shape": Form(
        [
            ("Shape", ["x"], ["s"], {}),
            ("Gather", ["s", "zero"], ["n"], {}),
            ("Gather", ["s", "three"], ["w"], {}),
            ("Mul", ["w", "two"], ["w2"], {}),
            ("Unsqueeze", ["n", "axis"], ["n1"], {}),
            ("Unsqueeze", ["w2", "axis"], ["w1"], {}),
            ("Concat", ["n1", "minus", "w1"], ["t"], {"axis": 0}),
            ("Reshape", ["x", "t"], ["y"], {}),
        ],
        13,
        {
            "zero": np.array(0, np.int64),
            "three": np.array(3, np.int64),
            "two": np.array(2, np.int64),
            "axis": _int(0),
            "minus": _int(-1),
        },
    ),
    "resize-to-shape-of": Form(
        [
            ("Shape", ["x"], ["s"], {}),
            ("Slice", ["s", "0", "2"], ["nc"], {}),
            ("Slice", ["s", "2", "4"], ["hw"], {}),
            ("Cast", ["hw"], ["hwf"], {"to": TensorProto.FLOAT}),
            ("Mul", ["hwf", "scale"], ["big"], {}),
            ("Floor", ["big"], ["whole"], {}),
            ("Cast", ["whole"], ["sizes"], {"to": TensorProto.INT64}),
            ("Concat", ["nc", "sizes"], ["t"], {"axis": 0}),
            ("Resize", ["x", "", "", "t"], ["y"], {"mode": "linear"}),
        ],
        18,
        {"0": _int(0), "2": _int(2), "4": _int(4), "scale": np.array([1.5, 2], np.float32)},
    ),
    "expand-with-where": Form(
        [
            ("Shape", ["x"], ["s"], {}),
            ("Size", ["s"], ["rank"], {}),
            ("Reshape", ["rank", "one"], ["r1"], {}),
            ("ConstantOfShape", ["r1"], ["ones"], {"value": numpy_helper.from_array(_int(1))}),
            ("Mul", ["ones", "minus"], ["minuses"], {}),
            ("Equal", ["s", "minuses"], ["eq"], {}),
            ("Where", ["eq", "ones", "s"], ["t"], {}),
            ("Expand", ["c", "t"], ["e"], {}),
            ("Add", ["x", "e"], ["y"], {}),
        ],
        13,
        {"one": _int(1), "minus": _int(-1), "c": _floats(1, 4, 1, 1)},
    ),
    "positions-from-range": Form(
        [
            ("Shape", ["x"], ["s"], {"start": 2, "end": 3}),
            ("Squeeze", ["s"], ["h"], {}),
            ("Range", ["zero", "h", "one"], ["r"], {}),
            ("Cast", ["r"], ["f"], {"to": TensorProto.FLOAT}),
            ("Unsqueeze", ["f", "axis"], ["u"], {}),
            ("Add", ["x", "u"], ["y"], {}),
        ],
        15,
        {"zero": np.array(0, np.int64), "one": np.array(1, np.int64), "axis": _int(-1)},
    ),
    "zeros-of-shape": Form(
        [
            ("Shape", ["x"], ["s"], {}),
            ("ConstantOfShape", ["s"], ["z"], {}),
            ("Concat", ["x", "z"], ["y"], {"axis": 1}),
        ],
        13,
    ),
    "slice-to-half": Form(
        [
            ("Shape", ["x"], ["s"], {"start": 3}),
            ("Div", ["s", "two"], ["half"], {}),
            ("Slice", ["x", "zero", "half", "three"], ["a"], {}),
            ("Slice", ["x", "half", "s", "three"], ["b"], {}),
            ("Sub", ["a", "b"], ["y"], {}),
        ],
        15,
        {"two": _int(2), "zero": _int(0), "three": _int(3)},
    ),
    "pad-from-shape": Form(
        [
            ("Shape", ["x"], ["s"], {"start": 2}),
            ("Mod", ["s", "five"], ["m"], {}),
            ("Sub", ["five", "m"], ["p"], {}),
            ("Concat", ["none", "p"], ["pads"], {"axis": 0}),
            ("Pad", ["x", "pads"], ["y"], {}),
        ],
        15,
        {"five": _int(5, 5), "none": _int(0, 0, 0, 0, 0, 0)},
    ),
    "tile-by-shape": Form(
        [
            ("Shape", ["x"], ["s"], {"end": 1}),
            ("Concat", ["s", "ones"], ["r"], {"axis": 0}),
            ("Tile", ["x", "r"], ["y"], {}),
        ],
        15,
        {"ones": _int(1, 2, 1)},
    ),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_form_equals_onnx_runtime(name: str) -> None:
    form = FORMS[name]
    graph = helper.make_graph(
        [helper.make_node(op, i, o, **attrs) for op, i, o, attrs in form.nodes],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, form.shape)],
        [onnx.ValueInfoProto(name="y", type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=1)))],
        [numpy_helper.from_array(v, n) for n, v in form.stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", form.opset)], ir_version=8)
    x = _floats(2, 4, 6, 8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    module = build(model)
    with torch.no_grad():
        result = module(torch.from_numpy(x)).numpy()
        on_meta = copy_to_meta(module)
    assert result.shape == expected.shape and result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert on_meta.shape == expected.shape


def copy_to_meta(module: torch.nn.Module) -> torch.Tensor:
    """The module's result on the meta device, which refuses to mix with the CPU as CUDA does."""
    result: torch.Tensor = module.to("meta")(torch.empty(2, 4, 6, 8, device="meta"))
    return result


@pytest.mark.parametrize("axes", [1, 3])
def test_convolution_of_one_and_three_axes(axes: int) -> None:
    sizes = (7, 6, 5)[:axes]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 0, 2, 1, 0, 1][: 2 * axes], group=2)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 4, *sizes))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(_floats(6, 2, *(3,) * axes), "w"),
            numpy_helper.from_array(_floats(6), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    x = _floats(2, 4, *sizes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    result = build(model)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)

"""Every operator: ONNX Runtime on the node = the program's numpy meaning = ONNX Runtime on it lowered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from opadapt.errors import Refused
from opadapt.expand import HANDLERS, Expanded, expand
from opadapt.ir.interpret import run
from opadapt.ir.types import TensorType
from opadapt.lower import to_model
from opadapt.resources import WORKING_IR_VERSION, WORKING_OPSET

Shape = tuple[int | str, ...]


@dataclass
class Case:
    """One node: operand shapes of activations ("N" = the batch) in ``inputs``, arrays in ``constants``.

    ``operands`` lists names in the node's order; activations are a, b, ...; "" leaves one out.
    """

    op: str
    operands: str
    inputs: tuple[Shape, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    positive: bool = False
    outputs: int = 1
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.note or '-'.join(f'{k}={v}' for k, v in self.attrs.items())}"

    @property
    def node(self) -> onnx.NodeProto:
        names = [n.strip() for n in self.operands.split(",")]
        outs = [f"y{i}" for i in range(self.outputs)]
        return helper.make_node(self.op, names, outs, name="the_node", **self.attrs)

    @property
    def names(self) -> list[str]:
        return list("abcd"[: len(self.inputs)])

    def expanded(self, output: str = "y0") -> Expanded:
        types = {n: TensorType(s) for n, s in zip(self.names, self.inputs, strict=True)}
        return expand([self.node], self.names, output, types, self.constants)

    def feeds(self, batch: int) -> list[np.ndarray]:
        rng = np.random.default_rng(3)
        arrays = [rng.normal(size=TensorType(s).at_batch(batch)).astype(np.float32) for s in self.inputs]
        return [np.abs(a) + 0.1 for a in arrays] if self.positive else arrays

    def reference(self, feeds: list[np.ndarray]) -> list[np.ndarray]:
        infos = [
            helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(s))
            for n, s in zip(self.names, self.inputs, strict=True)
        ]
        outs = [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in self.node.output]
        weights = [numpy_helper.from_array(v, n) for n, v in self.constants.items()]
        graph = helper.make_graph([self.node], "one", infos, outs, weights)
        opset = [helper.make_opsetid("", WORKING_OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=WORKING_IR_VERSION)
        return ort_run(model, dict(zip(self.names, feeds, strict=True)))


def ort_run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _w(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def _f(value: float) -> np.ndarray:
    return np.asarray(value, dtype=np.float32)


IMAGE: Shape = ("N", 6, 9, 8)
LINE: Shape = ("N", 6, 11)
_ROWS: Shape = ("N", 5, 12)


def conv(weight: tuple[int, ...], inputs: Shape = IMAGE, bias: bool = True, **attrs: Any) -> Case:
    constants = {"w": _w(*weight)} | ({"bias": _w(weight[0], seed=1)} if bias else {})
    return Case("Conv", "a,w,bias" if bias else "a,w", (inputs,), constants, attrs, note=f"{weight}{attrs}")


def pool(op: str, inputs: Shape = IMAGE, **attrs: Any) -> Case:
    return Case(op, "a", (inputs,), attrs=attrs)


REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    "ReduceLogSumExp",
)  # fmt: skip

CASES = [
    conv((4, 6, 3, 3)),
    conv((4, 6, 3, 3), bias=False, pads=[1, 1, 1, 1]),
    conv((4, 6, 3, 2), pads=[0, 1, 2, 0], strides=[2, 1], dilations=[1, 3]),
    conv((4, 6, 5, 5), pads=[4, 4, 4, 4]),
    conv((4, 6, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv((4, 6, 2, 3), auto_pad="SAME_LOWER", strides=[1, 2]),
    conv((4, 6, 2, 3), auto_pad="VALID"),
    conv((4, 6, 1, 1)),
    conv((4, 6, 1, 1), strides=[2, 2], bias=False),
    conv((4, 6, 1, 1), strides=[1, 3], pads=[1, 0, 0, 2]),
    conv((6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]),
    conv((6, 1, 3, 3), group=6, strides=[2, 2], bias=False),
    conv((12, 1, 3, 3), group=6),
    conv((9, 2, 3, 3), group=3, pads=[1, 1, 1, 1]),
    conv((9, 2, 1, 1), group=3, bias=False),
    conv((4, 6, 3), LINE, pads=[2, 0], dilations=[2]),
    conv((4, 6, 1), LINE, strides=[2]),
    conv((6, 1, 4), LINE, group=6, strides=[3]),
    conv((4, 3, 4), LINE, group=2, auto_pad="SAME_UPPER"),
    conv((4, 2, 2, 3, 2), ("N", 2, 4, 5, 6), strides=[1, 2, 1]),
    Case("Gemm", "a,w,c", (("N", 5),), {"w": _w(5, 7), "c": _w(7)}),
    Case("Gemm", "a,w,c", (("N", 5),), {"w": _w(7, 5), "c": _w(1, 7)}, {"transB": 1}),
    Case("Gemm", "a,w,c", (("N", 5),), {"w": _w(7, 5), "c": _w(7)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", "a,w", ((5, "N"),), {"w": _w(5, 7)}, {"transA": 1}),
    Case("Gemm", "a,b,c", (("N", 5), (4, 5)), {"c": _w(4)}, {"transB": 1}, note="two activations"),
    Case("Gemm", "a,w,c", (("N", 5),), {"w": _w(5, 1), "c": _w(1)}, note="one column"),
    Case("MatMul", "a,w", (("N", 5),), {"w": _w(5, 7)}, note="matrix"),
    Case("MatMul", "a,w", (_ROWS,), {"w": _w(12, 7)}, note="rows"),
    Case("MatMul", "a,w", (("N", 3, 4, 12),), {"w": _w(12, 7)}, note="deep rows"),
    Case("MatMul", "a,w", (_ROWS,), {"w": _w(12)}, note="vector"),
    Case("MatMul", "w,a", (_ROWS,), {"w": _w(3, 5)}, note="weight on the left"),
    Case("MatMul", "a,w", (("N", 4, 3, 5),), {"w": _w(4, 5, 2)}, note="a weight per head"),
    Case("MatMul", "a,b", (_ROWS, ("N", 12, 3)), note="batched"),
    Case("MatMul", "a,b", (("N", 2, 5, 4), ("N", 2, 4, 6)), note="heads"),
    Case("MatMul", "a,b", (("N", 2, 5, 4), ("N", 1, 4, 6)), note="broadcast heads"),
    Case(
        "BatchNormalization",
        "a,s,h,m,v",
        (IMAGE,),
        {"s": _w(6), "h": _w(6, seed=1), "m": _w(6, seed=2), "v": np.abs(_w(6, seed=3)) + np.float32(0.2)},
        {"epsilon": 1e-3},
    ),
    *(Case(op, "a", (IMAGE,)) for op in ("Relu", "Sigmoid", "Tanh", "Erf", "Neg", "Abs", "Exp", "Identity")),
    *(Case(op, "a", (IMAGE,), positive=True) for op in ("Log", "Sqrt", "Reciprocal")),
    Case("LeakyRelu", "a", (IMAGE,), attrs={"alpha": 0.1}),
    Case("PRelu", "a,w", (IMAGE,), {"w": _w(6, 1, 1)}),
    Case("PRelu", "a,w", (LINE,), {"w": _w(1)}, note="one slope"),
    Case("Clip", "a,lo,hi", (IMAGE,), {"lo": _f(-0.5), "hi": _f(0.7)}),
    Case("Clip", "a,,hi", (IMAGE,), {"hi": _f(0.7)}, note="no low"),
    Case("HardSigmoid", "a", (IMAGE,), attrs={"alpha": 0.3, "beta": 0.4}),
    Case("HardSwish", "a", (IMAGE,)),
    Case("Gelu", "a", (IMAGE,)),
    Case("Gelu", "a", (IMAGE,), attrs={"approximate": "tanh"}),
    Case("Softmax", "a", (_ROWS,)),
    Case("Softmax", "a", (IMAGE,), attrs={"axis": 1}),
    *(Case(op, "a,b", (IMAGE, IMAGE), note="same") for op in ("Add", "Sub", "Mul", "Max", "Min", "Sum")),
    *(Case(op, "a,w", (IMAGE,), {"w": _w(6, 1, 1)}, note="channels") for op in ("Add", "Mul", "Div", "Sub")),
    *(Case(op, "w,a", (IMAGE,), {"w": _f(1.5)}, note="number") for op in ("Add", "Mul", "Div", "Sub", "Max")),
    Case("Div", "a,b", (IMAGE, ("N", 6, 1, 1)), positive=True),
    *(
        Case("Pow", "a,e", (IMAGE,), {"e": _f(e)}, positive=True, note=str(e))
        for e in (2.0, 0.5, 1.0, 3.0, 4.0, -1.0, -0.5, -2.0)
    ),
    pool("MaxPool", kernel_shape=[3, 3]),
    pool("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    pool("MaxPool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    pool("MaxPool", kernel_shape=[2, 2], strides=[1, 2], dilations=[2, 3]),
    pool("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    pool("MaxPool", LINE, kernel_shape=[3], strides=[2]),
    pool("MaxPool", kernel_shape=[1, 1], strides=[2, 3]),
    pool("AveragePool", kernel_shape=[3, 3], strides=[2, 1]),
    pool("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    pool("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 1]),
    pool("AveragePool", kernel_shape=[2, 2], dilations=[2, 1]),
    pool("AveragePool", LINE, kernel_shape=[4], strides=[2], pads=[1, 2]),
    pool("GlobalAveragePool"),
    pool("GlobalAveragePool", LINE),
    pool("GlobalMaxPool"),
    *(Case(op, "a,x", (IMAGE,), {"x": _i(2, -1)}, positive=op == "ReduceLogSum") for op in REDUCTIONS),
    *(Case(op, "a,x", (IMAGE,), {"x": _i(1)}, {"keepdims": 0}, op == "ReduceLogSum") for op in REDUCTIONS),
    Case("ReduceMean", "a", (IMAGE,), attrs={"noop_with_empty_axes": 1}),
    Case("LayerNormalization", "a,s,h", (_ROWS,), {"s": _w(12), "h": _w(12, seed=1)}),
    Case("LayerNormalization", "a,s", (_ROWS,), {"s": _w(5, 12)}, {"axis": 1, "epsilon": 1e-3}),
    Case("Reshape", "a,s", (IMAGE,), {"s": _i(0, -1)}),
    Case("Reshape", "a,s", (IMAGE,), {"s": _i(-1, 3, 16, 9)}, note="free batch"),
    Case("Flatten", "a", (IMAGE,)),
    Case("Flatten", "a", (("N", 1, 6),), attrs={"axis": 2}),
    Case("Transpose", "a", (IMAGE,), attrs={"perm": [0, 2, 3, 1]}),
    Case("Transpose", "a", (IMAGE,), note="reversed"),
    Case("Squeeze", "a,x", (("N", 6, 1, 1),), {"x": _i(2, -1)}),
    Case("Squeeze", "a", ((3, 1, 4, 1),), note="all"),
    Case("Unsqueeze", "a,x", (LINE,), {"x": _i(0, -1)}),
    Case("Concat", "a,b", (IMAGE, ("N", 2, 9, 8)), attrs={"axis": 1}),
    Case("Split", "a", (IMAGE,), attrs={"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", "a,s", (IMAGE,), {"s": _i(1, 4, 1)}, {"axis": 1}, outputs=3, note="unequal"),
    Case("Split", "a", (IMAGE,), attrs={"axis": 2, "num_outputs": 2}, outputs=2, note="shorter last"),
    Case("Slice", "a,s,e,x,t", (IMAGE,), {"s": _i(1, 0), "e": _i(8, 2**62), "x": _i(2, 3), "t": _i(2, 3)}),
    Case("Slice", "a,s,e", (IMAGE,), {"s": _i(0, -3), "e": _i(2**31, -1)}, note="negative"),
    Case("Pad", "a,p", (IMAGE,), {"p": _i(0, 1, 2, 0, 0, 0, 1, 3)}),
    Case(
        "Pad", "a,p,v,x", (IMAGE,), {"p": _i(1, -1, 0, 2), "v": _f(1.5), "x": _i(-1, 1)}, note="value, axes"
    ),
    Case("Expand", "a,s", (("N", 6, 1, 8),), {"s": _i(6, 5, 1)}),
    Case(
        "Resize",
        "a,,s",
        (IMAGE,),
        {"s": np.asarray([1, 1, 2, 3], dtype=np.float32)},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        note="asymmetric",
    ),
    Case("Resize", "a,,s", (IMAGE,), {"s": np.asarray([1, 1, 4, 3], dtype=np.float32)}, note="half pixel"),
]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    scale = max(float(np.abs(expected).max()), 1e-6)
    assert float(np.abs(found - expected).max()) <= 1e-5 * scale


@pytest.mark.parametrize("case", CASES, ids=str)
def test_expansion_keeps_the_meaning(case: Case) -> None:
    for output in range(case.outputs):
        expanded = case.expanded(f"y{output}")
        lowered = to_model(expanded.program, expanded.binding, None)
        onnx.checker.check_model(lowered, full_check=True)
        for batch in (1, 3):
            feeds = case.feeds(batch)
            expected = case.reference(feeds)[output]
            assert_close(run(expanded.program, feeds, expanded.binding), expected)
            assert_close(ort_run(lowered, {f"x{i}": a for i, a in enumerate(feeds)})[0], expected)


def test_every_operator_of_the_table_has_a_case() -> None:
    assert {case.op for case in CASES} == set(HANDLERS)


FAST = [c for c in CASES if c.op in {"Conv", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"}]


@pytest.mark.parametrize("case", FAST, ids=str)
def test_kernel_comes_back_as_one_node(case: Case) -> None:
    expanded = case.expanded()
    graph = to_model(expanded.program, expanded.binding, None).graph
    assert [n.op_type for n in graph.node] == [case.op]
    returned = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for name, origin in expanded.origin.items():
        np.testing.assert_array_equal(returned[name], case.constants[origin])


ONE_NODE = {
    "AveragePool", "BatchNormalization", "Gelu", "Softmax", "LayerNormalization", "HardSigmoid", "HardSwish",
    "LeakyRelu", "PRelu", "Clip", "Resize", "Relu", "Sigmoid",
}  # fmt: skip


@pytest.mark.parametrize("case", [c for c in CASES if c.op in ONE_NODE], ids=str)
def test_composite_operator_comes_back_as_itself(case: Case) -> None:
    expanded = case.expanded()
    assert [n.op_type for n in to_model(expanded.program, expanded.binding, None).graph.node] == [case.op]


def test_gemm_with_bias_comes_back_as_one_gemm() -> None:
    weight, bias = _w(7, 5), _w(7, seed=1)
    case = Case("Gemm", "a,w,c", (("N", 5),), {"w": weight, "c": bias}, {"transB": 1})
    expanded = case.expanded()
    assert expanded.binding["weight0"].shape == (5, 7)
    graph = to_model(expanded.program, expanded.binding, 1).graph
    assert [n.op_type for n in graph.node] == ["Gemm"]


def test_log_sum_exp_does_not_overflow() -> None:
    case = Case("ReduceLogSumExp", "a,x", (IMAGE,), {"x": _i(1)})
    expanded, feeds = case.expanded(), [200 * a for a in case.feeds(2)]
    found = run(expanded.program, feeds, expanded.binding)
    assert np.isfinite(found).all()
    assert_close(found, case.reference(feeds)[0])


def test_origin_names_the_initializers() -> None:
    expanded = conv((4, 6, 3, 3)).expanded()
    assert expanded.origin == {"weight0": "w", "bias0": "bias"}
    assert set(expanded.program.params) == set(expanded.binding) == {"weight0", "bias0"}


def test_a_shared_initializer_is_one_parameter() -> None:
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["m"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Conv", ["m", "w"], ["y0"], pads=[1, 1, 1, 1], name="second"),
    ]
    weight = _w(6, 6, 3, 3)
    expanded = expand(nodes, ["a"], "y0", {"a": TensorType(IMAGE)}, {"w": weight})
    assert list(expanded.program.params) == ["weight0"]
    model = to_model(expanded.program, expanded.binding, None)
    feed = _w(2, 6, 9, 8, seed=5)
    assert_close(ort_run(model, {"x0": feed})[0], run(expanded.program, [feed], expanded.binding))


def test_nodes_the_output_does_not_need_leave_nothing() -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["y0"], name="wanted"),
        helper.make_node("Conv", ["a", "w"], ["other"], name="unwanted"),
    ]
    expanded = expand(nodes, ["a"], "y0", {"a": TensorType(IMAGE)}, {"w": _w(6, 6, 3, 3)})
    assert [step.op for step in expanded.program.body] == ["relu"]
    assert expanded.binding == {} and expanded.origin == {}


REFUSED = [
    (Case("ConvTranspose", "a,w", (IMAGE,), {"w": _w(6, 2, 3, 3)}), "ConvTranspose"),
    (Case("LSTM", "a", (_ROWS,)), "LSTM"),
    (pool("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), "ceil_mode"),
    (Case("Pow", "a,e", (IMAGE,), {"e": _f(2.5)}), "exponent"),
    (Case("Pad", "a,p", (IMAGE,), {"p": _i(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "reflect"}), "reflect"),
    (Case("Reshape", "a,s", (IMAGE,), {"s": _i(-1, 72)}), "batch"),
    (Case("Reshape", "a,b", (IMAGE, (2,))), "computed"),
    (Case("Slice", "a,s,e", (IMAGE,), {"s": _i(1), "e": _i(2)}), "batch"),
    (Case("Conv", "a,b", (IMAGE, (4, 6, 3, 3))), "computed"),
    (Case("ReduceMean", "a", (IMAGE,)), "batch"),
    (Case("ReduceL2", "a", (IMAGE,), attrs={"noop_with_empty_axes": 1}), "no axes"),
    (Case("ReduceLogSumExp", "a", (IMAGE,), attrs={"noop_with_empty_axes": 1}), "no axes"),
    (Case("Resize", "a,,s", (IMAGE,), {"s": np.asarray([1, 1, 1.5, 1], dtype=np.float32)}), "factor"),
    (conv((4, 6, 3, 3), auto_pad="SAME"), "auto_pad"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=[f"{c.op}-{r}" for c, r in REFUSED])
def test_refusals_name_operator_and_reason(case: Case, reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        case.expanded()
    assert refusal.value.stage == "expand"
    assert case.op in str(refusal.value) and reason in str(refusal.value)


def test_a_type_the_model_contradicts_is_refused() -> None:
    node = helper.make_node("Relu", ["a"], ["y0"], name="the_node")
    types = {"a": TensorType(IMAGE), "y0": TensorType(("N", 6, 9, 9))}
    with pytest.raises(Refused, match="the model says"):
        expand([node], ["a"], "y0", types, {})

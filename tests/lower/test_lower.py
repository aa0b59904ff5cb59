"""Lowering: which nodes a program becomes, how weights are laid out and raised again, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from opadapt.errors import ProgramError
from opadapt.ir.instructions import TABLE
from opadapt.ir.interpret import run
from opadapt.ir.program import Builder, Program
from opadapt.ir.text import parse_program
from opadapt.ir.types import TensorType
from opadapt.lower import lower, raise_model, raise_params, to_model
from opadapt.lower.plain import PLAIN
from opadapt.lower.recognise import RECOGNISERS

IMAGE = "f32[N,6,8,8]"


def program(body: str, inputs: str = IMAGE) -> Program:
    """A program from the text of its instructions; its output is the last of them."""
    first = inputs.split(", ")[0]
    lines = [line.strip() for line in body.strip().splitlines()]
    parsed = parse_program("\n".join([f"program({inputs}) -> {first}", *lines, "return %0"]))
    return Program(parsed.inputs, parsed.body, len(parsed.types) - 1)


def bind(p: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.uniform(0.2, 1.0, size=s).astype(np.float32) for n, s in p.params.items()}


def feeds(p: Program, batch: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=t.at_batch(batch)).astype(np.float32) for t in p.inputs]


def ort_run(model: onnx.ModelProto, arrays: list[np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{i}": a for i, a in enumerate(arrays)})[0]


def check(p: Program, batch: int | None = None) -> list[str]:
    """The operators of the lowered program, after comparing it with the meaning."""
    model = to_model(p, bind(p), batch)
    onnx.checker.check_model(model, full_check=True)
    arrays = feeds(p, batch or 2)
    expected, found = run(p, arrays, bind(p)), ort_run(model, arrays)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    return [n.op_type for n in model.graph.node]


def test_every_instruction_has_a_lowering() -> None:
    assert set(PLAIN) == set(TABLE)
    assert set(RECOGNISERS) <= set(TABLE)


WINDOW = "window %0 axes=(2,3) dilation=(1,1) kernel=(3,3) stride=(1,1)"
CASES = {
    "dense with bias": (
        ["Conv"],
        f"""%1 = {WINDOW}
        %2 = param name="w" shape=(4,6,3,3)
        %3 = contract %1 %2 einsum="nchwij,ocij->nohw"
        %4 = param name="b" shape=(4,)
        %5 = reshape %4 shape=(1,4,1,1)
        %6 = add %3 %5""",
    ),
    "bias first, weight first, other letters": (
        ["Conv"],
        f"""%1 = {WINDOW}
        %2 = param name="w" shape=(3,6,4,3)
        %3 = contract %2 %1 einsum="jcoi,nchwij->nohw"
        %4 = param name="b" shape=(4,1,1)
        %5 = add %4 %3""",
    ),
    "result read channels-last": (
        ["Conv", "Transpose"],
        f"""%1 = {WINDOW}
        %2 = param name="w" shape=(4,6,3,3)
        %3 = contract %1 %2 einsum="nchwij,ocij->nhwo\"""",
    ),
    "one windowed axis": (
        ["Conv"],
        """%1 = pad %0 pads=((0,0),(0,0),(0,0),(1,2)) value=0.0
        %2 = window %1 axes=(3,) dilation=(2,) kernel=(3,) stride=(2,)
        %3 = param name="w" shape=(4,6,3)
        %4 = contract %2 %3 einsum="nchwi,oci->nohw\"""",
    ),
    "axes in the other order": (
        ["Conv"],
        """%1 = window %0 axes=(3,2) dilation=(1,1) kernel=(3,2) stride=(2,1)
        %2 = param name="w" shape=(4,6,3,2)
        %3 = contract %1 %2 einsum="nchwji,ocji->nohw\"""",
    ),
    "depthwise": (
        ["Conv"],
        f"""%1 = {WINDOW}
        %2 = param name="w" shape=(6,3,3)
        %3 = contract %1 %2 einsum="nchwij,cij->nchw\"""",
    ),
    "grouped, read before the channels are merged": (
        ["Conv", "Reshape", "Relu"],
        f"""%1 = {WINDOW}
        %2 = reshape %1 shape=(N,3,2,6,6,3,3)
        %3 = param name="w" shape=(3,4,2,3,3)
        %4 = contract %2 %3 einsum="ngchwij,gocij->ngohw"
        %5 = relu %4""",
    ),
    "grouped 1x1": (
        ["Conv"],
        """%1 = reshape %0 shape=(N,2,3,8,8)
        %2 = param name="w" shape=(2,5,3)
        %3 = contract %1 %2 einsum="ngchw,goc->ngohw"
        %4 = reshape %3 shape=(N,10,8,8)""",
    ),
    "strided 1x1 with padding": (
        ["Conv"],
        """%1 = pad %0 pads=((0,0),(0,0),(1,0),(0,2)) value=0.0
        %2 = subsample %1 axis=2 step=2
        %3 = subsample %2 axis=3 step=3
        %4 = param name="w" shape=(4,6)
        %5 = contract %3 %4 einsum="nchw,oc->nohw\"""",
    ),
    "a window that two contractions read": (
        ["Conv", "Conv", "Add"],
        f"""%1 = {WINDOW}
        %2 = param name="w" shape=(4,6,3,3)
        %3 = param name="v" shape=(4,6,3,3)
        %4 = contract %1 %2 einsum="nchwij,ocij->nohw"
        %5 = contract %1 %3 einsum="nchwij,ocij->nohw"
        %6 = add %4 %5""",
    ),
    "a result that is read before its bias as well": (
        ["Conv", "Add", "Mul"],
        """%1 = param name="w" shape=(4,6)
        %2 = contract %0 %1 einsum="nchw,oc->nohw"
        %3 = param name="b" shape=(4,1,1)
        %4 = add %2 %3
        %5 = mul %2 %4""",
    ),
    "padding that is not zero stays": (
        ["Pad", "Conv"],
        """%1 = pad %0 pads=((0,0),(0,0),(1,1),(1,1)) value=1.0
        %2 = window %1 axes=(2,3) dilation=(1,1) kernel=(3,3) stride=(1,1)
        %3 = param name="w" shape=(6,3,3)
        %4 = contract %2 %3 einsum="nchwij,cij->nchw\"""",
    ),
    "max pool": (
        ["MaxPool"],
        """%1 = pad %0 pads=((0,0),(0,0),(1,1),(0,1)) value=-inf
        %2 = window %1 axes=(2,3) dilation=(1,1) kernel=(3,2) stride=(2,2)
        %3 = max %2 axes=(4,5) keepdims=0""",
    ),
    "max pool with zeros at the border": (
        ["Pad", "MaxPool"],
        """%1 = pad %0 pads=((0,0),(0,0),(1,1),(1,1)) value=0.0
        %2 = window %1 axes=(2,3) dilation=(1,1) kernel=(3,3) stride=(2,2)
        %3 = max %2 axes=(4,5) keepdims=0""",
    ),
    "average pool padded beyond its kernel": (
        ["Pad", "AveragePool"],
        """%1 = pad %0 pads=((0,0),(0,0),(2,0),(0,3)) value=0.0
        %2 = window %1 axes=(2,3) dilation=(1,1) kernel=(2,2) stride=(1,1)
        %3 = mean %2 axes=(4,5) keepdims=0""",
    ),
    "average pool after a shift": (
        ["Slice", "Pad", "AveragePool"],
        """%1 = shift %0 axis=2 offset=2
        %2 = window %1 axes=(2,3) dilation=(1,1) kernel=(2,2) stride=(1,1)
        %3 = mean %2 axes=(4,5) keepdims=0""",
    ),
    "sum of windows": (
        ["AveragePool", "Mul"],
        f"""%1 = {WINDOW}
        %2 = sum %1 axes=(4,5) keepdims=0""",
    ),
    "global pools": (
        ["GlobalAveragePool", "GlobalMaxPool", "Add"],
        """%1 = mean %0 axes=(2,3) keepdims=1
        %2 = max %0 axes=(2,3) keepdims=1
        %3 = add %1 %2""",
    ),
    "pieces of one operand": (
        ["Split", "Relu", "Concat"],
        """%1 = split %0 axis=1 index=0 parts=3
        %2 = split %0 axis=1 index=2 parts=3
        %3 = relu %2
        %4 = concat %3 %1 axis=1""",
    ),
    "one piece": (["Slice"], "%1 = split %0 axis=1 index=1 parts=3"),
    "slices along two axes": (
        ["Slice"],
        """%1 = slice %0 axis=2 start=1 stop=7
        %2 = subsample %1 axis=1 step=2""",
    ),
    "subsampled image": (
        ["MaxPool"],
        """%1 = subsample %0 axis=2 step=2
        %2 = subsample %1 axis=3 step=2""",
    ),
    "upsampled image": (
        ["Resize"],
        """%1 = upsample %0 axis=2 factor=2
        %2 = upsample %1 axis=3 factor=3""",
    ),
    "scale per sample and channel": (
        ["GlobalAveragePool", "Reshape", "Reshape", "Mul"],
        """%1 = mean %0 axes=(2,3) keepdims=0
        %2 = contract %0 %1 einsum="nchw,nc->nchw\"""",
    ),
    "batch normalisation": (
        ["BatchNormalization"],
        """%1 = param name="s" shape=(6,)
        %2 = param name="v" shape=(6,)
        %3 = normalize %0 %1 %1 %1 %2 axis=1 eps=1e-05""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_recognised(name: str) -> None:
    expected, body = CASES[name]
    assert check(program(body)) == expected


MATRIX = {
    "gemm": ("f32[N,5]", ["Gemm"], '%1 = param name="w" shape=(5,7)\n%2 = contract %0 %1 einsum="nk,km->nm"'),
    "gemm, transposed weight, bias": (
        "f32[N,5]",
        ["Gemm"],
        """%1 = param name="w" shape=(7,5)
        %2 = contract %0 %1 einsum="nk,mk->nm"
        %3 = param name="b" shape=(7,)
        %4 = add %3 %2""",
    ),
    "a gemm over several axes": (
        "f32[N,2,3,4]",
        ["Reshape", "Gemm"],
        '%1 = param name="w" shape=(2,3,4,7)\n%2 = contract %0 %1 einsum="nchw,chwm->nm"',
    ),
    "rows": (
        "f32[N,9,5]",
        ["MatMul", "Add"],
        """%1 = param name="w" shape=(5,7)
        %2 = contract %0 %1 einsum="nlk,km->nlm"
        %3 = param name="b" shape=(7,)
        %4 = add %2 %3""",
    ),
    "scores": (
        "f32[N,2,5,4], f32[N,2,6,4]",
        ["Transpose", "MatMul"],
        '%2 = contract %0 %1 einsum="nhqd,nhkd->nhqk"',
    ),
    "weighted rows": (
        "f32[N,2,5,6], f32[N,2,6,4]",
        ["MatMul"],
        '%2 = contract %0 %1 einsum="nhqk,nhkd->nhqd"',
    ),
    "an axis that one operand has alone": (
        "f32[N,5,3]",
        ["ReduceSum", "Gemm"],
        '%1 = param name="w" shape=(5,7)\n%2 = contract %0 %1 einsum="nkz,km->nm"',
    ),
    "everything summed but the batch": (
        "f32[N,5,3], f32[N,5,3]",
        ["Reshape", "Reshape", "MatMul", "Reshape"],
        '%2 = contract %0 %1 einsum="nab,nab->n"',
    ),
}


@pytest.mark.parametrize("name", MATRIX)
def test_products_are_recognised(name: str) -> None:
    inputs, expected, body = MATRIX[name]
    assert check(program(body, inputs)) == expected


def test_the_batch_may_be_fixed() -> None:
    body = CASES["grouped, read before the channels are merged"][1]
    assert check(program(body), batch=3) == ["Conv", "Reshape", "Relu"]
    model = to_model(program(body), bind(program(body)), 3)
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [3, 3, 4, 6, 6]


def test_a_weight_read_twice_stays_one_initializer() -> None:
    p = program(
        """%1 = param name="w" shape=(6,6)
        %2 = contract %0 %1 einsum="nchw,oc->nohw"
        %3 = contract %2 %1 einsum="nchw,co->nohw\""""
    )
    check(p)
    lowered = lower(p, bind(p), ["in"], "out", "r0/")
    assert [n for n in lowered.initializers if n in lowered.layout] == ["r0/w"]
    assert lowered.layout["r0/w"].shape == (6, 6)


def test_a_weight_read_twice_alike_is_laid_out_once() -> None:
    p = program(
        """%1 = param name="w" shape=(6,6)
        %2 = contract %0 %1 einsum="nchw,oc->nohw"
        %3 = contract %2 %1 einsum="nchw,oc->nohw\""""
    )
    assert check(p) == ["Conv", "Conv"]
    lowered = lower(p, bind(p), ["in"], "out", "r0/")
    assert lowered.layout["r0/w"].shape == (6, 6, 1, 1)


def _leaf(op: str) -> Program:
    builder = Builder([TensorType(("N", 2))])
    made: dict[str, Callable[[], int]] = {
        "param": lambda: builder.param("w", (2, 3)),
        "const": lambda: builder.const(1.5, (2, 3)),
        "input": lambda: 0,
    }
    return builder.build(made[op]())


@pytest.mark.parametrize("op", ["param", "const", "input"])
def test_a_program_may_return_what_it_did_not_compute(op: str) -> None:
    check(_leaf(op))


def test_names_begin_with_the_prefix_but_for_inputs_and_output() -> None:
    p = program(CASES["grouped, read before the channels are merged"][1])
    lowered = lower(p, bind(p), ["act_in"], "act_out", "region7/")
    tensors = {t for n in lowered.nodes for t in (*n.input, *n.output)} | {n.name for n in lowered.nodes}
    assert {t for t in tensors if not t.startswith("region7/")} == {"act_in", "act_out"}
    assert len({n.name for n in lowered.nodes}) == len(lowered.nodes)
    assert all(name.startswith("region7/") for name in lowered.initializers)
    assert lowered.types["act_out"] == p.signature.output


def test_constants_are_not_weights() -> None:
    p = program(
        """%1 = const shape=(6,1,1) value=0.25
        %2 = mul %0 %1
        %3 = param name="w" shape=(4,6)
        %4 = contract %2 %3 einsum="nchw,oc->nohw\""""
    )
    lowered = lower(p, bind(p), ["x"], "y", "")
    assert set(lowered.layout) == {"w"}
    assert lowered.constants == set(lowered.initializers) - {"w"}
    floats = [v for n, v in lowered.initializers.items() if v.dtype == np.float32 and n != "w"]
    assert all(v.size == 1 for v in floats)


def test_trained_initializers_return_in_program_layout() -> None:
    body = CASES["bias first, weight first, other letters"][1]
    p = program(body)
    model = to_model(p, bind(p), None)
    rng = np.random.default_rng(9)
    for tensor in model.graph.initializer:
        old = numpy_helper.to_array(tensor)
        if old.dtype == np.float32:
            new = rng.normal(size=old.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    raised = raise_model(p, bind(p), model)
    assert {n: v.shape for n, v in raised.items()} == p.params
    expected, arrays = ort_run(model, feeds(p)), feeds(p)
    assert np.abs(run(p, arrays, raised) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_lowering_then_raising_changes_no_bit() -> None:
    for _, body in CASES.values():
        p = program(body)
        binding = bind(p)
        lowered = lower(p, binding, ["x"], "y", "q/")
        raised = raise_params(lowered, lowered.initializers)
        assert set(raised) == set(binding)
        for name, value in binding.items():
            np.testing.assert_array_equal(raised[name], value)


def test_a_binding_that_does_not_fit_is_refused() -> None:
    p = program(CASES["depthwise"][1])
    with pytest.raises(ProgramError, match="param 'w'"):
        lower(p, {}, ["x"], "y", "")
    with pytest.raises(ProgramError, match="param 'w'"):
        lower(p, {"w": np.zeros((6, 3, 2), np.float32)}, ["x"], "y", "")
    with pytest.raises(ProgramError, match="input names"):
        lower(p, bind(p), [], "y", "")


def test_an_initializer_that_does_not_fit_is_refused() -> None:
    p = program(CASES["depthwise"][1])
    lowered = lower(p, bind(p), ["x"], "y", "")
    with pytest.raises(ProgramError, match="initializer 'w'"):
        raise_params(lowered, {})


def test_a_parameter_named_like_an_input_is_refused() -> None:
    p = program('%1 = param name="x0" shape=(6,1,1)\n%2 = mul %0 %1')
    with pytest.raises(ProgramError, match="named like"):
        to_model(p, bind(p), None)


def test_clip_leaves_infinite_bounds_out() -> None:
    builder = Builder([TensorType(("N", 4))])
    p = builder.build(builder.emit("clip", 0, min=-math.inf, max=1.0))
    assert check(p) == ["Clip"]
    assert to_model(p, {}, None).graph.node[0].input[1] == ""

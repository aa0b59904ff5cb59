"""Folding: fewer nodes, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opadapt.model import validate
from opadapt.model.fold import fold
from opadapt.model.graph import Source
from opadapt.model.load import load
from opadapt.model.normalise import normalise

RTOL = 2e-6
INT = np.int64
BN = {"scale": (4,), "shift": (4,), "mean": (4,)}


def _rng(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


C = {
    "w": _rng(4, 4, 3, 3),
    "w3": _rng(4, 4, 1),
    "wt": _rng(4, 2, 3, 3),
    "b": _rng(4),
    "m": _rng(5, 4),
    "mt": _rng(4, 5),
    "scale": _rng(4) + 2,
    "shift": _rng(4),
    "mean": _rng(4) * 0.1,
    "var": np.abs(_rng(4)) + 0.5,
    "ch": _rng(4, 1, 1),
    "ch4": _rng(1, 4, 1, 1),
    "row": _rng(4),
    "one": np.float32(1.5),
    "spatial": _rng(1, 1, 1, 6),
    "p1": np.array([0, 0, 1, 1, 0, 0, 1, 1], INT),
    "p2": np.array([0, 0, 0, 1, 0, 0, 0, 1], INT),
    "pc": np.array([0, 1, 0, 0, 0, 1, 0, 0], INT),
    "crop": np.array([0, 0, -1, 0, 0, 0, 0, 0], INT),
    "grow": np.array([0, 0, 1, 0, 0, 0, 0, 0], INT),
    "crop_end": np.array([0, 0, 0, 0, 0, 0, -1, 0], INT),
    "grow_end": np.array([0, 0, 0, 0, 0, 0, 1, 0], INT),
    "grow_end_8": np.array([0, 0, 0, 0, 0, 0, 8, 0], INT),
    "crop_5": np.array([0, 0, -5, 0, 0, 0, 0, 0], INT),
    "crop_7": np.array([0, 0, -7, 0, 0, 0, 0, 0], INT),
    "half": np.float32(0.5),
    "s0": np.array([0], INT),
    "big": np.array([9], INT),
    "two": np.array([2], INT),
    "ax2": np.array([2], INT),
    "ax3": np.array([3], INT),
    "zero": np.float32(0),
    "six": np.float32(6),
    "neg": np.float32(-1),
}
IMAGE, ROWS = ("N", 4, 6, 6), ("N", 5)
BNORM = ("BatchNormalization", "h scale shift mean var", "y", {"epsilon": 1e-3})
CASES = {
    "conv_bn": (IMAGE, [("Conv", "x w", "h"), BNORM], ["Conv"]),
    "conv_bias_bn": (IMAGE, [("Conv", "x w b", "h"), BNORM], ["Conv"]),
    "conv_transpose_bn": (IMAGE, [("ConvTranspose", "x wt b", "h", {"group": 2}), BNORM], ["ConvTranspose"]),
    "gemm_bn": (ROWS, [("Gemm", "x m row", "h", {"alpha": 0.5, "beta": 2.0}), BNORM], ["Gemm"]),
    "gemm_transposed_bn": (ROWS, [("Gemm", "x mt", "h", {"transB": 1}), BNORM], ["Gemm"]),
    "matmul_bn": (ROWS, [("MatMul", "x m", "h"), BNORM], ["Gemm"]),
    "matmul_scale": (("N", 3, 5), [("MatMul", "x m", "h"), ("Mul", "h row", "y")], ["MatMul"]),
    "matmul_shift_rank_3": (("N", 3, 5), [("MatMul", "x m", "h"), ("Add", "h row", "y")], ["MatMul", "Add"]),
    "scale_and_shift": (IMAGE, [("Conv", "x w", "a"), ("Mul", "a ch", "h"), ("Add", "h ch4", "y")], ["Conv"]),
    "divide": (IMAGE, [("Conv", "x w b", "a"), ("Div", "a one", "y")], ["Conv"]),
    "subtract_from": (IMAGE, [("Conv", "x w b", "a"), ("Sub", "ch a", "y")], ["Conv"]),
    "by_pixel_stays": (
        IMAGE,
        [("Conv", "x w", "a", {"pads": [1, 1, 1, 1]}), ("Mul", "a spatial", "y")],
        ["Conv", "Mul"],
    ),
    "used_twice_stays": (
        IMAGE,
        [("Conv", "x w", "a"), ("Mul", "a ch", "h"), ("Add", "a h", "y")],
        ["Conv", "Mul", "Add"],
    ),
    "pad_pad_conv": (IMAGE, [("Pad", "x p1", "a"), ("Pad", "a p2", "h"), ("Conv", "h w", "y")], ["Conv"]),
    "pad_half_stays": (IMAGE, [("Pad", "x p1 half", "h"), ("Conv", "h w", "y")], ["Pad", "Conv"]),
    "pad_pad_half": (IMAGE, [("Pad", "x p1 half", "a"), ("Pad", "a p2 half", "y")], ["Pad"]),
    "pad_other_values_stay": (IMAGE, [("Pad", "x p1", "a"), ("Pad", "a p2 half", "y")], ["Pad", "Pad"]),
    "crop_grow_stays": (IMAGE, [("Pad", "x crop", "a"), ("Pad", "a grow", "y")], ["Pad", "Pad"]),
    "crop_grow_end_stays": (IMAGE, [("Pad", "x crop_end", "a"), ("Pad", "a grow_end", "y")], ["Pad", "Pad"]),
    "crop_grow_on_two_sides": (IMAGE, [("Pad", "x crop", "a"), ("Pad", "a grow_end", "y")], ["Pad"]),
    "grow_crop": (IMAGE, [("Pad", "x grow", "a"), ("Pad", "a crop", "y")], ["Pad"]),
    "grow_crop_more": (IMAGE, [("Pad", "x grow half", "a"), ("Pad", "a crop_5 half", "y")], ["Pad"]),
    "crop_crop": (IMAGE, [("Pad", "x crop", "a"), ("Pad", "a crop", "y")], ["Pad"]),
    "crop_into_the_other_padding_stays": (
        IMAGE,
        [("Pad", "x grow_end_8 half", "a"), ("Pad", "a crop_7 half", "y")],
        ["Pad", "Pad"],
    ),
    "pad_reflect_stays": (
        IMAGE,
        [("Pad", "x p1", "a", {"mode": "reflect"}), ("Conv", "a w", "y")],
        ["Pad", "Conv"],
    ),
    "slices": (IMAGE, [("Slice", "x s0 big ax2 two", "a"), ("Slice", "a s0 big ax3 two", "y")], ["Slice"]),
    "slices_of_one_axis_stay": (
        IMAGE,
        [("Slice", "x s0 big ax2 two", "a"), ("Slice", "a s0 big ax2 two", "y")],
        ["Slice", "Slice"],
    ),
    "relu_relu": (IMAGE, [("Relu", "x", "a"), ("Relu", "a", "y")], ["Relu"]),
    "relu_of_sigmoid": (IMAGE, [("Sigmoid", "x", "a"), ("Relu", "a", "y")], ["Sigmoid"]),
    "relu_clip": (IMAGE, [("Relu", "x", "a"), ("Clip", "a zero six", "y")], ["Clip"]),
    "relu_clip_negative_stays": (IMAGE, [("Relu", "x", "a"), ("Clip", "a neg six", "y")], ["Relu", "Clip"]),
    "clip_relu": (IMAGE, [("Clip", "x zero six", "a"), ("Relu", "a", "y")], ["Clip"]),
}


@pytest.mark.parametrize("name", CASES)
def test_folding_is_exact(build, name: str) -> None:
    shape, rows, expected = CASES[name]
    used = {n for _, reads, *_ in rows for n in reads.split()}
    proto = build(rows, {"x": shape}, ["y"], {k: v for k, v in C.items() if k in used})
    model = normalise(proto, Source(None, 17, 8))
    folded = fold(model)
    assert [n.op_type for n in folded.nodes.values()] == expected
    assert validate.compare_outputs(model.proto, folded.proto, rng=np.random.default_rng(0), batch=2) < RTOL
    assert folded.outputs == model.outputs
    assert all(t in folded.types for n in folded.nodes.values() for t in n.output)
    validate.check(folded.proto)


def test_a_weight_shared_by_two_convolutions_is_not_spoilt(build) -> None:
    rows = [("Conv", "x w", "a"), ("Mul", "a ch", "p"), ("Conv", "x w", "q"), ("Add", "p q", "y")]
    proto = build(rows, {"x": IMAGE}, ["y"], {"w": C["w"], "ch": C["ch"]})
    model = normalise(proto, Source(None, 17, 8))
    folded = fold(model)
    assert [n.op_type for n in folded.nodes.values()] == ["Conv", "Conv", "Add"]
    assert validate.compare_outputs(model.proto, folded.proto, batch=2) < RTOL


@pytest.mark.parametrize(("name", "before", "after"), [("ppocr_cls", 233, 179), ("cifar10_resnet20", 56, 54)])
def test_real_models(shared_models: Path, name: str, before: int, after: int) -> None:
    model = load(shared_models / f"{name}.onnx", {"x": ["N", 3, 48, 192]} if name == "ppocr_cls" else None)
    folded = fold(model)
    assert (len(model.nodes), len(folded.nodes)) == (before, after)
    assert not {"BatchNormalization"} & {n.op_type for n in folded.nodes.values()}
    assert validate.compare_outputs(model.proto, folded.proto, batch=2) < 1e-5

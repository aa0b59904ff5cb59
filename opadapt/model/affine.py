"""Scale and shift by channel: read off a node, put into the weights of the product before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from opadapt.model.workbench import Bench, attributes, set_attribute

Vector = NDArray[np.float64]


def affine_of(bench: Bench, node: onnx.NodeProto) -> tuple[str, Vector, Vector] | None:
    """``y = factor * x + shift`` by channel: (x, factor, shift), each of size 1 or of the number of channels.

    The channels are axis 1 for convolutions and the last axis for matrix products, as the maker of x has it.
    """
    if node.op_type == "BatchNormalization":
        return _batch_normalization(bench, node)
    for index, other in ((1, 0), (0, 1)):
        constant = bench.value(node, index)
        if constant is None or constant.dtype != np.float32 or node.input[other] in bench.constants:
            continue
        vector = _by_channel(bench, node.input[other], constant)
        one, zero = np.ones(1), np.zeros(1)
        if vector is None:
            return None
        forms = {
            ("Mul", 1): (vector, zero),
            ("Mul", 0): (vector, zero),
            ("Add", 1): (one, vector),
            ("Add", 0): (one, vector),
            ("Sub", 1): (one, -vector),
            ("Sub", 0): (-one, vector),
            ("Div", 1): (1.0 / np.where(vector == 0, np.nan, vector), zero),
        }
        form = forms.get((node.op_type, index))
        if form is None or not all(np.isfinite(v).all() for v in form):
            return None
        return node.input[other], *form
    return None


def _batch_normalization(bench: Bench, node: onnx.NodeProto) -> tuple[str, Vector, Vector] | None:
    """Batch normalisation at inference, arXiv 1502.03167 equation 11."""
    values = [bench.value(node, i) for i in range(1, 5)]
    given = attributes(node)
    if given.get("training_mode", 0) or any(v is None for v in values) or any(node.output[1:]):
        return None
    product = bench.producer.get(node.input[0])
    if product is None or (product.op_type in ("MatMul", "Gemm") and bench.rank(node.input[0]) != 2):
        return None  # its channels are axis 1, those of a product the last axis
    scale, shift, mean, variance = (np.asarray(v, np.float64) for v in values)
    factor = scale / np.sqrt(variance + given.get("epsilon", 1e-5))
    return node.input[0], factor, shift - mean * factor


def _by_channel(bench: Bench, tensor: str, constant: NDArray[np.generic]) -> Vector | None:
    product, rank = bench.producer.get(tensor), bench.rank(tensor)
    if product is None or rank is None or constant.ndim > rank:
        return None
    channel = rank - 1 if product.op_type in ("MatMul", "Gemm") else 1
    aligned = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for axis, size in enumerate(aligned) if axis != channel):
        return None
    return np.asarray(constant, np.float64).ravel()


def absorb(
    bench: Bench, product: onnx.NodeProto, node: onnx.NodeProto, factor: Vector, shift: Vector
) -> bool:
    """Let ``product`` make what ``node`` makes of it. False where its form has no place for it."""
    rule = _ABSORB.get(product.op_type)
    if rule is None or not rule(bench, product, factor, shift):
        return False
    bench.take_output(product, node)
    return True


def _weight(bench: Bench, product: onnx.NodeProto) -> Vector | None:
    """The float32 weight, in double precision; None where it is computed."""
    weight = bench.value(product, 1)
    return np.asarray(weight, np.float64) if weight is not None and weight.dtype == np.float32 else None


def _conv(bench: Bench, conv: onnx.NodeProto, factor: Vector, shift: Vector) -> bool:
    weight = _weight(bench, conv)
    if weight is None:
        return False
    by_output = factor.reshape(-1, *[1] * (weight.ndim - 1))
    return _set(bench, conv, weight * by_output, weight.shape[0], factor, shift)


def _conv_transpose(bench: Bench, conv: onnx.NodeProto, factor: Vector, shift: Vector) -> bool:
    weight = _weight(bench, conv)
    if weight is None:
        return False
    groups = attributes(conv).get("group", 1)
    outputs = weight.shape[1] * groups
    # weight [C, O/G, ...]: the rows of group g make the outputs g*O/G ...
    by_group = np.broadcast_to(factor, (outputs,)).reshape(groups, weight.shape[1])
    rows = np.repeat(by_group, weight.shape[0] // groups, axis=0)
    return _set(
        bench, conv, weight * rows.reshape(*rows.shape, *[1] * (weight.ndim - 2)), outputs, factor, shift
    )


def _set(
    bench: Bench,
    conv: onnx.NodeProto,
    weight: Vector,
    outputs: int,
    factor: Vector,
    shift: Vector,
) -> bool:
    if factor.size not in (1, outputs) or shift.size not in (1, outputs):
        return False
    bias = bench.value(conv, 2)
    if bias is None and not bench.left_out(conv, 2):
        return False
    old = np.zeros(outputs) if bias is None else np.asarray(bias, np.float64)
    bench.replace_input(conv, 1, weight.astype(np.float32), "weight")
    if bias is not None or np.any(shift):
        bench.replace_input(conv, 2, (old * factor + shift).astype(np.float32), "bias")
    return True


def _gemm(bench: Bench, gemm: onnx.NodeProto, factor: Vector, shift: Vector) -> bool:
    weight, bias, given = _weight(bench, gemm), bench.value(gemm, 2), attributes(gemm)
    if weight is None or (bias is None and not bench.left_out(gemm, 2)):
        return False
    outputs = weight.shape[0] if given.get("transB", 0) else weight.shape[1]
    if bias is not None and bias.size not in (1, outputs):
        return False
    if factor.size not in (1, outputs) or shift.size not in (1, outputs):
        return False
    old = np.zeros(outputs) if bias is None else np.asarray(bias, np.float64).ravel() * given.get("beta", 1.0)
    columns = factor.reshape(-1, 1) if given.get("transB", 0) else factor.reshape(1, -1)
    bench.replace_input(gemm, 1, (weight * columns).astype(np.float32), "weight")
    if bias is not None or np.any(shift):
        new = np.broadcast_to(old * factor + shift, (outputs,)).astype(np.float32)
        bench.replace_input(gemm, 2, new, "bias")
        set_attribute(gemm, "beta", 1.0)
    return True


def _matmul(bench: Bench, matmul: onnx.NodeProto, factor: Vector, shift: Vector) -> bool:
    """A factor goes into the weight; a shift only where the product can become a Gemm (two axes)."""
    weight = _weight(bench, matmul)
    if weight is None or weight.ndim != 2:
        return False
    outputs = weight.shape[1]
    if factor.size not in (1, outputs) or shift.size not in (1, outputs):
        return False
    if np.any(shift) and bench.rank(matmul.input[0]) != 2:
        return False
    bench.replace_input(matmul, 1, (weight * factor.reshape(1, -1)).astype(np.float32), "weight")
    if np.any(shift):
        matmul.op_type = "Gemm"
        bench.replace_input(matmul, 2, np.broadcast_to(shift, (outputs,)).astype(np.float32), "bias")
    return True


_ABSORB: dict[str, Callable[[Bench, onnx.NodeProto, Vector, Vector], bool]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

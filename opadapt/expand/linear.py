"""Matrix products: Gemm and MatMul, with weights or between activations."""

from __future__ import annotations

import numpy as np
import onnx

from opadapt.expand.context import Context, attributes, refuse
from opadapt.ir.spec import Array
from opadapt.ir.types import Dim


def _scaled(ctx: Context, value: int, factor: float) -> int:
    return value if factor == 1.0 else ctx.emit("mul", value, ctx.number(factor))


def gemm(ctx: Context, node: onnx.NodeProto) -> int:
    """alpha * A B + beta * C; a weight is kept as [K, M], whatever transB says."""
    attrs = attributes(node)
    letters, operands = [], []
    for index, own in ((0, "nk"), (1, "km")):
        transposed = bool(attrs.get("transA" if index == 0 else "transB", 0))
        if ctx.constant(node, index) is None:
            letters.append(own[::-1] if transposed else own)
            operands.append(ctx.activation(node, index))
        else:
            letters.append(own)
            operands.append(ctx.parameter(node, index, "weight", np.transpose if transposed else np.asarray))
    product = ctx.emit("contract", *operands, einsum=f"{letters[0]},{letters[1]}->nm")
    result = _scaled(ctx, product, attrs.get("alpha", 1.0))
    if ctx.name(node, 2) is None:
        return result
    constant = ctx.constant(node, 2) is not None
    bias = ctx.parameter(node, 2, "bias") if constant else ctx.activation(node, 2)
    return ctx.emit("add", result, _scaled(ctx, bias, attrs.get("beta", 1.0)))


_ROWS = "nlpqrs"  # leading axes of a product with a matrix of weights
_BATCH = "nhpqrs"  # axes that both operands have


def matmul(ctx: Context, node: onnx.NodeProto) -> int:
    """numpy's matmul; axes that are broadcast (size 1 against more) are dropped before the contraction."""
    shapes: list[tuple[Dim, ...]] = []
    for index in (0, 1):
        constant = ctx.constant(node, index)
        shapes.append(constant.shape if constant is not None else ctx.shape(ctx.activation(node, index)))
    if not all(shapes) or max(map(len, shapes)) - 2 > len(_BATCH):
        raise refuse(node, f"operands of shapes {shapes}")
    letters, kept = _letters(*shapes)
    operands = []
    for index in (0, 1):
        shape = tuple(d for d, keep in zip(shapes[index], kept[index], strict=True) if keep)
        if ctx.constant(node, index) is None:
            operands.append(ctx.reshape(ctx.activation(node, index), shape))
        else:
            sizes = tuple(int(d) for d in shape)

            def layout(w: Array, sizes: tuple[int, ...] = sizes) -> Array:
                return w.reshape(sizes)

            operands.append(ctx.parameter(node, index, "weight", layout))
    product = ctx.emit("contract", *operands, einsum=f"{letters[0]},{letters[1]}->{letters[2]}")
    return ctx.reshape(product, _product_shape(*shapes))


def _letters(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[tuple[str, str, str], list[list[bool]]]:
    """The einsum of a matmul, and which axes of each operand take part in it."""
    if len(b) <= 2:
        lead, column = _ROWS[: len(a) - 1], "m"[: len(b) - 1]
        return (f"{lead}k", f"k{column}", f"{lead}{column}"), [[True] * len(a), [True] * len(b)]
    rank = max(len(a), len(b)) - 2
    names = _BATCH[:rank]
    kept: list[list[bool]] = [[], []]
    batch = ["", ""]
    for i, letter in enumerate(names):
        dims = [shape[i - rank - 2] if rank - i <= len(shape) - 2 else None for shape in (a, b)]
        for side in (0, 1):
            if dims[side] is not None:
                # size 1 against more is a broadcast; 1 against 1 stays, on the first operand that has it
                own = dims[side] != 1 or (dims[1 - side] in (None, 1))
                kept[side].append(own)
                batch[side] += letter if own else ""
    row = "i"[: len(a) - 1]
    kept[0] += [True] * min(len(a), 2)
    kept[1] += [True] * 2
    return (f"{batch[0]}{row}k", f"{batch[1]}kj", f"{names}{row}j"), kept


def _product_shape(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(a), len(b), 2) - 2
    batch: list[Dim] = []
    for i in range(-rank - 2, -2):
        dims = [shape[i] for shape in (a, b) if -i <= len(shape)]
        batch.append(next((d for d in dims if d != 1), 1))
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))

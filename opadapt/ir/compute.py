"""Contraction, reductions, element-wise instructions and normalisation: the ones that compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from opadapt.ir.spec import Array, Attrs, Spec, need, need_axis
from opadapt.ir.types import BATCH, Dim, TensorType, broadcast_shapes

Types = Sequence[TensorType]
Arrays = Sequence[Array]


def split_einsum(text: str) -> tuple[str, str, str]:
    """``"nk,km->nm"`` -> its two operands and its result. Raises ProgramError for any other form."""
    left, arrow, out = text.partition("->")
    a, comma, b = left.partition(",")
    for part in (a, b, out):
        distinct = len(set(part)) == len(part) and (part == "" or (part.isascii() and part.isalpha()))
        need(
            bool(arrow and comma and distinct),
            "contract: einsum",
            "letters,letters->letters, none twice",
            text,
        )
    need(set(out) <= set(a) | set(b), "contract: einsum result", "letters of the operands", text)
    return a, b, out


def _contract_type(types: Types, attrs: Attrs) -> TensorType:
    a, b, out = split_einsum(attrs["einsum"])
    sizes: dict[str, Dim] = {}
    for letters, t in ((a, types[0]), (b, types[1])):
        need(len(letters) == t.rank, "contract: rank", f"{len(letters)} axes for '{letters}'", t)
        for letter, dim in zip(letters, t.shape, strict=True):
            need(
                sizes.setdefault(letter, dim) == dim,
                f"contract: sizes of '{letter}'",
                str(sizes[letter]),
                dim,
            )
    gone = [letter for letter, dim in sizes.items() if dim == BATCH and letter not in out]
    need(not gone, "contract: sums over the batch", "the batch in the result", attrs["einsum"])
    return TensorType(tuple(sizes[letter] for letter in out))


def _contract(arrays: Arrays, attrs: Attrs) -> Array:
    result: Array = np.einsum(attrs["einsum"], arrays[0], arrays[1], optimize=True).astype(np.float32)
    return result


def _reduce_type(types: Types, attrs: Attrs) -> TensorType:
    shape, axes = types[0].shape, attrs["axes"]
    need(
        len(axes) > 0 and len(set(axes)) == len(axes), "reduction: axes", "distinct axes, one at least", axes
    )
    for axis in axes:
        need_axis(axis, len(shape), "reduction")
        need(shape[axis] != BATCH, "reduction: over the batch", "other axes", axes)
    if attrs["keepdims"]:
        return TensorType(tuple(1 if i in axes else d for i, d in enumerate(shape)))
    return TensorType(tuple(d for i, d in enumerate(shape) if i not in axes))


def _reduction(name: str, function: Callable[..., Array], rtol: float) -> Spec:
    def meaning(arrays: Arrays, attrs: Attrs) -> Array:
        return function(arrays[0], axis=tuple(attrs["axes"]), keepdims=bool(attrs["keepdims"]))

    return Spec(name, "reduction", 1, _reduce_type, meaning, {"axes": "ints", "keepdims": "int"}, rtol)


def _elementwise_type(types: Types, attrs: Attrs) -> TensorType:
    return TensorType(broadcast_shapes([t.shape for t in types]))


def _clip_type(types: Types, attrs: Attrs) -> TensorType:
    need(attrs["min"] <= attrs["max"], "clip: bounds", "min <= max", (attrs["min"], attrs["max"]))
    return types[0]


def _elementwise(name: str, arity: int, function: Callable[..., Array], rtol: float = 1e-6) -> Spec:
    def meaning(arrays: Arrays, attrs: Attrs) -> Array:
        return np.asarray(function(*arrays), dtype=np.float32)

    return Spec(name, "elementwise", arity, _elementwise_type, meaning, {}, rtol)


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _sigmoid(x: Array) -> Array:
    return (0.5 * (1.0 + np.tanh(0.5 * x.astype(np.float64)))).astype(np.float32)


def _where(c: Array, x: Array, y: Array) -> Array:
    return np.where(c > 0, x, y)


def _normalize_type(types: Types, attrs: Attrs) -> TensorType:
    axis = attrs["axis"]
    need_axis(axis, types[0].rank, "normalize")
    need(attrs["eps"] > 0, "normalize: eps", "more than 0", attrs["eps"])
    channels = TensorType((types[0].shape[axis],))
    for t in types[1:]:
        need(t == channels, "normalize: scale, shift, mean and var", str(channels), t)
    return types[0]


def _normalize(arrays: Arrays, attrs: Attrs) -> Array:
    """Inference batch normalisation (training uses the batch's statistics). arXiv 1502.03167, equation 11."""
    x, scale, shift, mean, var = arrays
    shape = [-1 if i == attrs["axis"] else 1 for i in range(x.ndim)]
    factor = (scale / np.sqrt(var + np.float32(attrs["eps"]))).reshape(shape)
    result: Array = ((x - mean.reshape(shape)) * factor + shift.reshape(shape)).astype(np.float32)
    return result


SPECS = [
    Spec("contract", "contraction", 2, _contract_type, _contract, {"einsum": "str"}, 2e-6),
    _reduction("sum", np.sum, 2e-6),
    _reduction("mean", np.mean, 2e-6),
    _reduction("max", np.max, 1e-7),
    _elementwise("add", 2, np.add),
    _elementwise("sub", 2, np.subtract),
    _elementwise("mul", 2, np.multiply),
    _elementwise("div", 2, np.divide),
    _elementwise("maximum", 2, np.maximum),
    _elementwise("minimum", 2, np.minimum),
    _elementwise("neg", 1, np.negative),
    _elementwise("abs", 1, np.abs),
    _elementwise("exp", 1, np.exp),
    _elementwise("log", 1, np.log),
    _elementwise("sqrt", 1, np.sqrt),
    _elementwise("reciprocal", 1, np.reciprocal),
    _elementwise("square", 1, np.square),
    _elementwise("relu", 1, lambda x: np.maximum(x, np.float32(0))),
    Spec(
        "clip",
        "elementwise",
        1,
        _clip_type,
        lambda a, at: np.clip(a[0], np.float32(at["min"]), np.float32(at["max"])),
        {"min": "float", "max": "float"},
    ),
    _elementwise("sigmoid", 1, _sigmoid),
    _elementwise("tanh", 1, np.tanh),
    _elementwise("erf", 1, _erf),
    # where(c, x, y): x where c > 0, else y
    _elementwise("where", 3, _where),
    Spec("normalize", "normalize", 5, _normalize_type, _normalize, {"axis": "int", "eps": "float"}, 2e-6),
]

__all__ = ["SPECS", "split_einsum"]

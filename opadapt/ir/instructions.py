"""The instruction table. Adding an instruction: one Spec here, one lowering, one round of the truth test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from opadapt.errors import ProgramError
from opadapt.ir import compute, structure
from opadapt.ir.spec import Array, Attrs, Spec
from opadapt.ir.types import TensorType


def _leaf_type(types: Sequence[TensorType], attrs: Attrs) -> TensorType:
    leaf = TensorType(tuple(attrs["shape"]))
    if leaf.batch_axis is not None:
        raise ProgramError("a leaf has no batch", expected="sizes alone", found=str(leaf))
    return leaf


def _const(arrays: Sequence[Array], attrs: Attrs) -> Array:
    return np.full(attrs["shape"], attrs["value"], dtype=np.float32)


def _param(arrays: Sequence[Array], attrs: Attrs) -> Array:
    raise ProgramError("a param has no meaning of its own", do="bind its value by name")


_LEAVES = [
    Spec("param", "leaf", 0, _leaf_type, _param, {"name": "str", "shape": "dims"}),
    Spec("const", "leaf", 0, _leaf_type, _const, {"value": "float", "shape": "dims"}),
]

TABLE: Mapping[str, Spec] = MappingProxyType(
    {spec.name: spec for spec in [*_LEAVES, *structure.SPECS, *compute.SPECS]}
)
COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum"})


def spec_of(op: str) -> Spec:
    """The table's row for an instruction. Raises ProgramError for a name that is not in it."""
    try:
        return TABLE[op]
    except KeyError:
        raise ProgramError(f"no instruction '{op}'", expected=", ".join(TABLE), found=op) from None

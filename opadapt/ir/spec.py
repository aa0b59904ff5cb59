"""What one instruction is: arity, attributes, a type rule and a numpy meaning, in one table entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opadapt.errors import ProgramError
from opadapt.ir.types import TensorType

Array = NDArray[np.float32]
AttrValue = Any  # int, float, str, or nested tuples of them
Attrs = Mapping[str, AttrValue]
Kind = Literal["leaf", "structure", "contraction", "reduction", "elementwise", "normalize"]
AttrKind = Literal["int", "float", "str", "ints", "dims", "pairs"]


@dataclass(frozen=True)
class Spec:
    """One row of the instruction table.

    ``arity`` is None for a variadic instruction (at least one operand). ``infer`` gives the result's type or
    raises ProgramError. ``meaning`` is the reference semantics on float32 arrays. ``rtol`` is the relative
    error that any other implementation may show, against the largest magnitude of what it adds up.
    """

    name: str
    kind: Kind
    arity: int | None
    infer: Callable[[Sequence[TensorType], Attrs], TensorType]
    meaning: Callable[[Sequence[Array], Attrs], Array]
    attrs: Mapping[str, AttrKind] = field(default_factory=dict)
    rtol: float = 1e-7


def need(condition: bool, message: str, expected: str, found: object) -> None:
    """Raise ProgramError unless the condition holds."""
    if not condition:
        raise ProgramError(message, expected=expected, found=str(found))


def need_axis(axis: int, rank: int, what: str) -> None:
    need(0 <= axis < rank, f"{what}: axis out of range", f"0 to {rank - 1}", axis)

"""A match: a way to make one program value with a few ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opadapt.lower.emit import Emitter, Static
from opadapt.lower.view import View


@dataclass(frozen=True)
class Match:
    """How to make one value.

    ``operands`` are the values that must have tensors before; ``statics`` the weights it lays out itself.
    ``emit`` writes the nodes; the last of them makes the tensor named by its second argument.
    """

    operands: tuple[int, ...]
    emit: Callable[[Emitter, str], object]
    statics: tuple[Static, ...] = ()


Plain = Callable[[View, int], Match]  # always possible
Recogniser = Callable[[View, int], Match | None]  # None: this is not my pattern
Recognisers = Mapping[str, tuple[Recogniser, ...]]  # by the instruction that makes the value

__all__ = ["Match", "Plain", "Recogniser", "Recognisers"]

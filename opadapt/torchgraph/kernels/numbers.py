"""Python numbers of the running graph: sizes, and what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def from_numbers(
    flat: Sequence[float], shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor of Python numbers of the running graph (sizes, mostly)."""
    return torch.tensor(flat, dtype=dtype, device=device).reshape(tuple(shape))


def divide_ints(a: int, b: int) -> int:
    """Integer division of ONNX: towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def choose(condition: bool, yes: Any, no: Any) -> Any:
    """Where on Python numbers."""
    return yes if condition else no

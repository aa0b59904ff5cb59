"""Changes of shape and selections of elements; sizes come from the tensors at run time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def flatten(x: Tensor, axis: int) -> Tensor:
    """ONNX Flatten: two axes, the sizes before ``axis`` and those from it on."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """ONNX Expand: both sides broadcast."""
    target = [1] * (x.dim() - len(shape)) + list(shape)
    own = [1] * (len(target) - x.dim()) + list(x.shape)
    return x.expand([have if want == 1 else want for have, want in zip(own, target, strict=True)])


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX Gather: negative indices count from the end; the axes of ``indices`` replace ``axis``."""
    axis = axis + x.dim() if axis < 0 else axis
    flat = indices.reshape(-1).long()
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX GatherElements."""
    wrapped = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    return torch.gather(x, axis, wrapped)


def slice_back(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """A slice with a negative step."""
    first, stop, by = slice(start, end, step).indices(x.shape[axis])
    return x.index_select(axis, torch.arange(first, min(stop, first), by, device=x.device))


def pad_axis(x: Tensor, axis: int, low: int, high: int, mode: str) -> Tensor:
    """Pad (or crop, where negative) one axis by reflect, edge or wrap."""
    n = x.shape[axis]
    index = torch.arange(-low, n + high, device=x.device)
    if mode == "edge":
        index = index.clamp(0, n - 1)
    elif mode == "wrap":
        index = index % n
    else:
        period = max(1, 2 * (n - 1))
        index = (n - 1) - ((index % period) - (n - 1)).abs()
    return x.index_select(axis, index)


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """DepthToSpace in mode DCR: depth index = (row, column, channel)."""
    n, c, h, w = x.shape
    split = x.reshape(n, block, block, c // block**2, h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """SpaceToDepth in mode DCR, the inverse of ``depth_to_space``."""
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // block, block, w // block, block)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


def resize_axis(
    x: Tensor,
    axis: int,
    size: int | None,
    scale: float | None,
    mode: str,
    coordinates: str,
    nearest: str,
) -> Tensor:
    """ONNX Resize along one axis, to ``size`` elements or by ``scale``."""
    n = x.shape[axis]
    count = math.floor(n * scale) if size is None and scale is not None else int(size or 0)
    factor = count / n if scale is None else scale
    where = torch.arange(count, device=x.device, dtype=torch.float32)
    if coordinates == "align_corners":
        where = where * ((n - 1) / (count - 1)) if count > 1 else where * 0
    elif coordinates == "asymmetric":
        where = where / factor
    elif coordinates == "pytorch_half_pixel" and count == 1:
        where = where * 0
    else:
        where = (where + 0.5) / factor - 0.5
        if coordinates == "half_pixel_symmetric":
            where = where + n / 2 * (1 - count / (factor * n))
    if mode == "nearest":
        return x.index_select(axis, _NEAREST[nearest](where).long().clamp(0, n - 1))
    low = where.floor()
    weight = (where - low).to(x.dtype).reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    index = low.long()
    left = x.index_select(axis, index.clamp(0, n - 1))
    right = x.index_select(axis, (index + 1).clamp(0, n - 1))
    return left + (right - left) * weight


def _half_down(where: Tensor) -> Tensor:
    return torch.ceil(where - 0.5)


def _half_up(where: Tensor) -> Tensor:
    return torch.floor(where + 0.5)


_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": _half_down,
    "round_prefer_ceil": _half_up,
    "floor": torch.floor,
    "ceil": torch.ceil,
}

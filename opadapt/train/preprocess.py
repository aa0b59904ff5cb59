"""From raw samples (uint8 kept in memory) to what the model reads, one batch at a time, and augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from opadapt.errors import DataError

Layout = Literal["as_is", "NHWC", "NHW"]
RawArray = NDArray[Any]
Shape = tuple[int | None, ...]  # a model input without its batch; None is a free dimension


class PreprocessConfig(BaseModel):
    """How one model input is made from the raw samples: resize, x * scale, minus mean, over std, layout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(1.0, description="factor applied first, such as 1/255 = 0.00392156862745098")
    mean: tuple[float, ...] = Field((), description="subtracted after scaling: one value, or one per channel")
    std: tuple[float, ...] = Field((), description="divided by after the mean: one value, or one per channel")
    layout: Literal["auto", "as_is", "NHWC", "NHW"] = Field(
        "auto",
        description="of the raw samples: NHWC and NHW become NCHW; auto compares with the model's input",
    )
    resize_pixels: tuple[int, int] | None = Field(
        None, description="height and width that images are resized to when they are loaded (bilinear)"
    )

    @model_validator(mode="after")
    def _nonzero(self) -> PreprocessConfig:
        if self.scale == 0 or any(s == 0 for s in self.std):
            raise ValueError("scale and std must not be 0")
        if self.resize_pixels is not None and min(self.resize_pixels) < 1:
            raise ValueError("resize_pixels must be 1 or more")
        return self


class AugmentConfig(BaseModel):
    """Random changes of the training images, drawn anew for every sample of every epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_padding_pixels: int = Field(0, ge=0, description="pad by this many raw zeros, then crop at random")
    flip_horizontal: bool = Field(False, description="mirror left-right with probability 1/2")
    cutout_pixels: int = Field(0, ge=0, description="side of a square set to raw zero (arXiv 1708.04552)")

    @property
    def active(self) -> bool:
        return self.crop_padding_pixels > 0 or self.flip_horizontal or self.cutout_pixels > 0


@dataclass(frozen=True)
class InputPreprocess:
    """A PreprocessConfig resolved against one model input."""

    layout: Layout
    factor: tuple[float, ...]  # one value, or one per channel
    offset: tuple[float, ...]
    channel_axis: int  # of the batch that the model reads
    dtype: str  # numpy name of the model's input type

    def __call__(self, raw: Tensor) -> Tensor:
        """One batch: raw [n, ...] -> what the model reads, on the same device."""
        x = raw.permute(0, 3, 1, 2) if self.layout == "NHWC" else raw
        x = x.unsqueeze(1) if self.layout == "NHW" else x
        if self.dtype != "float32":
            return x.to(getattr(torch, self.dtype))
        x = x.to(torch.float32, copy=True)
        return x.mul_(self._spread(self.factor, x)).add_(self._spread(self.offset, x))

    def _spread(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.channel_axis if len(values) > 1 else 0] = len(values)
        return torch.tensor(values, dtype=torch.float32, device=x.device).reshape(shape)


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of every model input."""

    inputs: Mapping[str, InputPreprocess]

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: step(raw[name]) for name, step in self.inputs.items()}

    def numpy(self, raw: Mapping[str, RawArray]) -> dict[str, RawArray]:
        """One batch of raw arrays -> feeds for ONNX Runtime (C-contiguous)."""
        made = self({name: torch.from_numpy(np.ascontiguousarray(raw[name])) for name in self.inputs})
        return {name: np.ascontiguousarray(x.numpy()) for name, x in made.items()}


def resolve(
    config: PreprocessConfig, name: str, raw: tuple[int, ...], model: Shape, dtype: str
) -> InputPreprocess:
    """Fit a config to one model input.

    ``raw`` and ``model`` are the shapes of one sample, without the batch. Raises DataError where the samples
    cannot become the model's input, or where mean and std do not fit its channels.
    """
    made: dict[Layout, tuple[int, ...]] = {"as_is": raw}
    if len(raw) == 3:
        made["NHWC"] = (raw[2], raw[0], raw[1])
    if len(raw) == 2:
        made["NHW"] = (1, *raw)
    wanted = list(made) if config.layout == "auto" else [config.layout]
    fitting = [layout for layout in wanted if layout in made and _fits(made[layout], model)]
    if not fitting:
        expected = "x".join("?" if d is None else str(d) for d in model) or "a scalar"
        raise DataError(
            f"the samples do not fit the model's input '{name}'",
            expected=f"{expected} per sample (layout {config.layout})",
            found="x".join(map(str, raw)) or "a scalar",
            do="set data.preprocess.layout or data.preprocess.resize_pixels, or choose other arrays",
        )
    shape = made[fitting[0]]
    mean, std = np.asarray(config.mean or (0.0,)), np.asarray(config.std or (1.0,))
    channels = max(len(mean), len(std))
    axis = next((a for a in (0, len(shape) - 1) if shape and shape[a] == channels), None)
    if channels > 1 and (axis is None or {len(mean), len(std)} - {1, channels}):
        raise DataError(
            f"mean and std do not fit the channels of the model's input '{name}'",
            expected=f"1 value, or one per channel of {'x'.join(map(str, shape))}",
            found=f"{len(mean)} means and {len(std)} stds",
        )
    factor, offset = np.broadcast_arrays(config.scale / std, -mean / std)
    return InputPreprocess(
        fitting[0], tuple(map(float, factor)), tuple(map(float, offset)), 1 + (axis or 0), dtype
    )


def _fits(shape: Sequence[int], model: Shape) -> bool:
    return len(shape) == len(model) and all(m is None or s == m for s, m in zip(shape, model, strict=True))


Draw = Callable[[int], Tensor]  # whole numbers from 0 to below its argument, [batch, 1]: one per image


def augment(raw: Tensor, layout: Layout, config: AugmentConfig, draw: Draw) -> Tensor:
    """Augment one batch of raw images (any dtype), crop, flip and cutout in one gather; same shape out."""
    channels_first = raw.dim() == 4 and layout == "as_is"
    if not config.active or not (raw.dim() == 4 or layout == "NHW"):
        return raw
    images = raw.permute(0, 2, 3, 1) if channels_first else raw  # rows and columns at 1 and 2
    count, height, width = images.shape[:3]
    pad, device = config.crop_padding_pixels, raw.device

    def drawn(high: int) -> Tensor:
        return draw(high).to(device)

    if pad:
        spare = [0, 0] * (images.dim() - 3)
        images = torch.nn.functional.pad(images, [*spare, pad, pad, pad, pad])
    rows = drawn(2 * pad + 1) + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    if config.flip_horizontal:
        columns = torch.where(drawn(2) > 0, columns.flip(1), columns)
    columns = columns + drawn(2 * pad + 1)
    samples = torch.arange(count, device=device)[:, None, None]
    result = images[samples, rows[:, :, None], columns[:, None, :]]
    if config.cutout_pixels:
        near_row = (torch.arange(height, device=device) - drawn(height)).abs() * 2 < config.cutout_pixels
        near_column = (torch.arange(width, device=device) - drawn(width)).abs() * 2 < config.cutout_pixels
        result[near_row[:, :, None] & near_column[:, None, :]] = 0
    return (
        result.permute(0, 3, 1, 2) if images is not raw and raw.dim() == 4 and layout == "as_is" else result
    )

"""Convolutions and pools: everything that slides a kernel over spatial axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import onnx

from opadapt.expand.context import Context, attributes, refuse, shortest
from opadapt.ir.spec import Array
from opadapt.ir.structure import window_length


@dataclass(frozen=True)
class Slide:
    """How a kernel slides: per spatial axis its size, stride, dilation and the padding (low, high)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def padded(self) -> bool:
        return any(p != (0, 0) for p in self.pads)

    def pad(self, ctx: Context, x: int, value: float) -> int:
        """Pad the spatial axes; nothing where there is no padding."""
        if not self.padded:
            return x
        return ctx.emit("pad", x, pads=((0, 0), (0, 0), *self.pads), value=value)

    def window(self, ctx: Context, x: int) -> int:
        """[N, C, spatial...] -> [N, C, positions..., taps...]."""
        axes = tuple(range(2, 2 + len(self.kernel)))
        return ctx.emit(
            "window", x, axes=axes, kernel=self.kernel, stride=self.stride, dilation=self.dilation
        )


def slide_of(ctx: Context, node: onnx.NodeProto, x: int, kernel: tuple[int, ...]) -> Slide:
    """The sliding of a Conv or pool node, its auto_pad resolved. Raises Refused."""
    attrs, rank = attributes(node), len(kernel)
    if ctx.rank(x) != rank + 2:
        raise refuse(node, f"a {rank}-dimensional kernel on {ctx.builder.types[x]}")
    stride = tuple(attrs.get("strides", (1,) * rank))
    dilation = tuple(attrs.get("dilations", (1,) * rank))
    flat = attrs.get("pads", (0,) * (2 * rank))
    pads = tuple(zip(flat[:rank], flat[rank:], strict=True))
    auto = attrs.get("auto_pad", "NOTSET") or "NOTSET"
    if auto not in _AUTO_PADS:
        raise refuse(node, f"auto_pad {auto}")
    if auto == "VALID":
        pads = ((0, 0),) * rank
    elif auto != "NOTSET":
        sizes = [ctx.size(node, x, axis + 2) for axis in range(rank)]
        pads = tuple(_same(auto, *numbers) for numbers in zip(sizes, kernel, stride, dilation, strict=True))
    if any(low < 0 or high < 0 for low, high in pads):
        raise refuse(node, f"negative padding {flat}")
    return _without_ceil(ctx, node, x, Slide(kernel, stride, dilation, pads), attrs)


_AUTO_PADS = frozenset({"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"})


def _same(auto: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The padding that makes ceil(size / stride) positions (ONNX operator specification, auto_pad)."""
    extent = dilation * (kernel - 1) + 1
    total = max(0, (-(-size // stride) - 1) * stride + extent - size)
    small, large = total // 2, total - total // 2
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _without_ceil(ctx: Context, node: onnx.NodeProto, x: int, slide: Slide, attrs: dict[str, Any]) -> Slide:
    """ceil_mode is accepted where it makes as many positions as floor does."""
    if not attrs.get("ceil_mode", 0):
        return slide
    for axis, (kernel, stride, dilation, (low, high)) in enumerate(
        zip(slide.kernel, slide.stride, slide.dilation, slide.pads, strict=True)
    ):
        size = ctx.size(node, x, axis + 2)
        rest = (size + low + high - dilation * (kernel - 1) - 1) % stride
        # one more position by ceil counts only if it starts inside the input or the low padding
        positions = window_length(size + low + high, kernel, stride, dilation)
        if rest and positions * stride < size + low:
            raise refuse(node, "ceil_mode adds a position that floor does not have")
    return slide


# ---- convolution ----------------------------------------------------------------------------------------

_SPATIAL, _TAPS = "hwd", "ijk"


def conv(ctx: Context, node: onnx.NodeProto) -> int:
    """pad -> window -> contract -> add; 1x1 without a window; groups by splitting the channels."""
    x, weight = ctx.activation(node, 0), ctx.weight(node, 1)
    spatial = weight.ndim - 2
    if spatial not in (1, 2, 3):
        raise refuse(node, f"a kernel of shape {weight.shape}")
    group = int(attributes(node).get("group", 1))
    slide = slide_of(ctx, node, x, weight.shape[2:])
    if group > 1:
        result = _grouped(ctx, node, x, slide, group)
    elif math.prod(slide.kernel) == 1:
        result = _pointwise(ctx, node, x, slide)
    else:
        s, t = _SPATIAL[:spatial], _TAPS[:spatial]
        taps = slide.window(ctx, slide.pad(ctx, x, 0.0))
        result = ctx.emit("contract", taps, ctx.parameter(node, 1, "weight"), einsum=f"nc{s}{t},oc{t}->no{s}")
    if ctx.name(node, 2) is None:
        return result
    bias = ctx.parameter(node, 2, "bias")
    return ctx.emit("add", result, ctx.per_channel(bias, spatial + 2))


def _pointwise(ctx: Context, node: onnx.NodeProto, x: int, slide: Slide) -> int:
    """A 1x1 convolution: subsampling for the stride, then a contraction over the channels."""
    x = _subsampled(ctx, slide.pad(ctx, x, 0.0), slide)

    def matrix(w: Array) -> Array:
        return w.reshape(w.shape[:2])

    s = _SPATIAL[: len(slide.kernel)]
    return ctx.emit("contract", x, ctx.parameter(node, 1, "weight", matrix), einsum=f"nc{s},oc->no{s}")


def _subsampled(ctx: Context, x: int, slide: Slide) -> int:
    """The strides alone, as they act on a kernel of one element."""
    for axis, step in enumerate(slide.stride):
        if step != 1:
            x = ctx.emit("subsample", x, axis=axis + 2, step=step)
    return x


def _grouped(ctx: Context, node: onnx.NodeProto, x: int, slide: Slide, group: int) -> int:
    """Depthwise where every channel is a group with one output; otherwise [N, G, C/G, ...]."""
    weight = ctx.weight(node, 1)
    channels, (outputs, inner) = ctx.size(node, x, 1), weight.shape[:2]
    if outputs % group or channels != inner * group:
        raise refuse(node, f"{group} groups for {channels} channels and a kernel of shape {weight.shape}")
    taps = slide.window(ctx, slide.pad(ctx, x, 0.0))
    s, t = _SPATIAL[: len(slide.kernel)], _TAPS[: len(slide.kernel)]
    if inner == 1 and outputs == group:
        depthwise = ctx.parameter(node, 1, "weight", lambda w: w.reshape(w.shape[0], *w.shape[2:]))
        return ctx.emit("contract", taps, depthwise, einsum=f"nc{s}{t},c{t}->nc{s}")
    batch, _, *rest = ctx.shape(taps)
    split = ctx.reshape(taps, (batch, group, inner, *rest))
    kernel = ctx.parameter(node, 1, "weight", lambda w: w.reshape(group, outputs // group, *w.shape[1:]))
    made = ctx.emit("contract", split, kernel, einsum=f"ngc{s}{t},goc{t}->ngo{s}")
    return ctx.reshape(made, (batch, outputs, *rest[: len(s)]))


# ---- pools ----------------------------------------------------------------------------------------------


def _pool_slide(ctx: Context, node: onnx.NodeProto) -> tuple[int, Slide]:
    x = ctx.activation(node, 0)
    kernel = tuple(attributes(node)["kernel_shape"])
    return x, slide_of(ctx, node, x, kernel)


def _over_taps(ctx: Context, op: str, taps: int, spatial: int) -> int:
    axes = tuple(range(2 + spatial, 2 + 2 * spatial))
    return ctx.emit(op, taps, axes=axes, keepdims=0)


def max_pool(ctx: Context, node: onnx.NodeProto) -> int:
    """pad with -inf -> window -> max."""
    if len(node.output) > 1 and node.output[1]:
        raise refuse(node, "the indices are used")
    if attributes(node).get("storage_order", 0):
        raise refuse(node, "column-major storage order")
    x, slide = _pool_slide(ctx, node)
    if math.prod(slide.kernel) == 1 and not slide.padded:
        return _subsampled(ctx, x, slide)
    taps = slide.window(ctx, slide.pad(ctx, x, -math.inf))
    return _over_taps(ctx, "max", taps, len(slide.kernel))


def average_pool(ctx: Context, node: onnx.NodeProto) -> int:
    """pad with 0 -> window -> mean; uncounted padding is divided out by the same pool of ones."""
    x, slide = _pool_slide(ctx, node)
    mean = _over_taps(ctx, "mean", slide.window(ctx, slide.pad(ctx, x, 0.0)), len(slide.kernel))
    if not slide.padded or attributes(node).get("count_include_pad", 0):
        return mean
    sizes = [ctx.size(node, x, axis + 2) for axis in range(len(slide.kernel))]
    ones = ctx.builder.const(1.0, (1, 1, *sizes))
    share = _over_taps(ctx, "mean", slide.window(ctx, slide.pad(ctx, ones, 0.0)), len(slide.kernel))
    return ctx.emit("div", mean, share)


def global_pool(op: str) -> Any:
    """A reduction over all spatial axes."""

    def expand(ctx: Context, node: onnx.NodeProto) -> int:
        x = ctx.activation(node, 0)
        if ctx.rank(x) < 3:
            raise refuse(node, f"no spatial axes in {ctx.builder.types[x]}")
        return ctx.emit(op, x, axes=tuple(range(2, ctx.rank(x))), keepdims=1)

    return expand


def batch_normalization(ctx: Context, node: onnx.NodeProto) -> int:
    """Inference: normalize over axis 1."""
    attrs = attributes(node)
    if attrs.get("training_mode", 0) or sum(bool(name) for name in node.output) > 1:
        raise refuse(node, "training mode")
    roles = ("scale", "shift", "mean", "var")
    params = [ctx.parameter(node, i + 1, role) for i, role in enumerate(roles)]
    eps = shortest(attrs.get("epsilon", 1e-5))
    return ctx.emit("normalize", ctx.activation(node, 0), *params, axis=1, eps=eps)

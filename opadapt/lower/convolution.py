"""Recognising convolutions: pad + window + contract with a weight, dense, depthwise or grouped, and 1x1."""

from __future__ import annotations

from dataclasses import dataclass

from opadapt.ir.compute import split_einsum
from opadapt.ir.types import Dim
from opadapt.lower.contraction import channel_vector, gemm_with_bias
from opadapt.lower.emit import Emitter, Static
from opadapt.lower.match import Match
from opadapt.lower.view import View


@dataclass(frozen=True)
class Source:
    """What a sliding kernel reads: ``value`` [N, C, spatial...] and, per spatial axis, how it slides."""

    value: int
    pads: tuple[tuple[int, int], ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    taps: tuple[int, ...]  # spatial axes (from 0) of the window's last axes, in order

    @property
    def attrs(self) -> dict[str, list[int]]:
        """As attributes of ONNX Conv and the pools; those at their default are left out (but the kernel)."""
        found = {"kernel_shape": list(self.kernel)}
        if any(s != 1 for s in self.stride):
            found["strides"] = list(self.stride)
        if any(d != 1 for d in self.dilation):
            found["dilations"] = list(self.dilation)
        if any(p != (0, 0) for p in self.pads):
            found["pads"] = [low for low, _ in self.pads] + [high for _, high in self.pads]
        return found


def source_of(view: View, value: int, pad_value: float, subsampled: bool) -> Source | None:
    """Look through window (or, if ``subsampled``, spatial subsampling) and padding; None for a non-image."""
    kernel: dict[int, int] = {}
    stride: dict[int, int] = {}
    dilation: dict[int, int] = {}
    if view.is_op(value, "window"):
        attrs = view.program[value].attr
        for i, axis in enumerate(attrs["axes"]):
            kernel[axis], stride[axis], dilation[axis] = (
                attrs["kernel"][i],
                attrs["stride"][i],
                attrs["dilation"][i],
            )
        (value,) = view.args(value)
    elif subsampled:
        while view.is_op(value, "subsample") and view.program[value].attr["axis"] >= 2:
            axis = view.program[value].attr["axis"]
            stride[axis] = stride.get(axis, 1) * view.program[value].attr["step"]
            (value,) = view.args(value)
    rank = view.type(value).rank
    if not 3 <= rank <= 5 or any(axis < 2 for axis in kernel):
        return None
    pads: tuple[tuple[int, int], ...] = ((0, 0),) * rank
    if view.is_op(value, "pad") and view.program[value].attr["value"] == pad_value:
        wanted = view.program[value].attr["pads"]
        if wanted[0] == wanted[1] == (0, 0):
            pads = wanted
            (value,) = view.args(value)
    axes = range(2, rank)
    return Source(
        value,
        tuple(pads[a] for a in axes),
        tuple(kernel.get(a, 1) for a in axes),
        tuple(stride.get(a, 1) for a in axes),
        tuple(dilation.get(a, 1) for a in axes),
        tuple(a - 2 for a in kernel),
    )


@dataclass(frozen=True)
class Convolution:
    """A contraction seen as ``Conv``.

    ``shape`` is what Conv makes; ``split`` and then ``perm`` bring it to the contraction's own form.
    """

    source: Source
    weight: Static
    group: int
    shape: tuple[Dim, ...]
    split: tuple[Dim, ...]
    perm: tuple[int, ...]

    @property
    def direct(self) -> bool:
        return self.shape == self.split and self.perm == tuple(range(len(self.perm)))

    def match(self, bias: Static | None = None) -> Match:
        statics = (self.weight,) if bias is None else (self.weight, bias)

        def emit(out: Emitter, name: str) -> None:
            inputs = [out.names[self.source.value], *(out.static(s) for s in statics)]
            attrs: dict[str, object] = dict(self.source.attrs)
            if self.group != 1:
                attrs["group"] = self.group
            moves = self.perm != tuple(range(len(self.perm)))
            current = out.node("Conv", inputs, name if self.direct else None, **attrs)
            if self.shape != self.split:
                current = out.reshaped(current, self.shape, self.split, None if moves else name)
            if moves:
                out.transposed(current, self.perm, name)

        return Match((self.source.value,), emit, statics)


def convolution_of(view: View, value: int) -> Convolution | None:
    """A contraction as a convolution, by what its letters do; None where it is none.

    With n the batch, c the channels, o the output channels, s spatial axes and k taps, the forms are
    ``n c s k, o c k -> n o s`` (dense), ``n c s k, c k -> n c s`` (depthwise) and
    ``n g c s k, g o c k -> n g o s`` (grouped, after a reshape that splits the channels).
    """
    if not view.is_op(value, "contract"):
        return None
    a, b, result = split_einsum(view.program[value].attr["einsum"])
    image, weight = view.args(value)
    if view.is_static(image):
        a, b, image, weight = b, a, weight, image
    if view.is_static(image) or not view.is_static(weight):
        return None
    grouped = _splits_channels(view, image)
    source = source_of(view, view.args(image)[0] if grouped else image, 0.0, True)
    if source is None:
        return None
    first = 3 if grouped else 2  # the letter of the first spatial axis
    last = first + len(source.kernel)
    batch, channels, spatial, taps = a[0], a[first - 1], a[first:last], a[last:]
    groups = a[1] if grouped else ""
    new = [c for c in b if c not in a]
    kept = channels in result  # a depthwise kernel, whose channels are the groups
    if kept and (grouped or not taps):
        return None
    if len(new) > 1 or (not new and not kept) or len(taps) != len(source.taps):
        return None
    out_letters = batch + (channels if kept else groups) + "".join(new) + spatial
    if set(b) != {*groups, *new, channels, *taps} or set(result) != set(out_letters):
        return None
    sizes = dict(zip(a, view.shape(image), strict=True))
    sizes.update(zip(b, view.shape(weight), strict=True))
    group = int(sizes[channels]) if kept else int(sizes[groups]) if grouped else 1
    per_group = int(sizes[new[0]]) if new else 1
    tap_of = dict(zip(source.taps, taps, strict=True))
    order = (channels if kept else groups) + "".join(new) + ("" if kept else channels)
    order += "".join(tap_of[axis] for axis in sorted(tap_of))
    inner = 1 if kept else int(sizes[channels])
    split = tuple(sizes[c] for c in out_letters)
    return Convolution(
        source,
        Static(weight, tuple(b.index(c) for c in order), (group * per_group, inner, *source.kernel)),
        group,
        (sizes[batch], group * per_group, *(sizes[c] for c in spatial)),
        split,
        tuple(out_letters.index(c) for c in result),
    )


def _splits_channels(view: View, value: int) -> bool:
    """Whether a value is a reshape [N, G*C, ...] -> [N, G, C, ...]."""
    if not view.is_op(value, "reshape"):
        return False
    old, new = view.shape(view.args(value)[0]), view.shape(value)
    if len(new) != len(old) + 1 or len(old) < 3:
        return False
    g, c = new[1], new[2]
    return (
        isinstance(g, int) and isinstance(c, int) and (old[0], old[1], *old[2:]) == (new[0], g * c, *new[3:])
    )


def contract_to_conv(view: View, value: int) -> Match | None:
    """A convolution whose result is read as the contraction leaves it."""
    found = convolution_of(view, value)
    return None if found is None else found.match()


def _whole(view: View, value: int) -> Convolution | None:
    """A convolution that makes ``value`` as it is: a contraction, or a grouped one and its last reshape."""
    found = convolution_of(view, value)
    if found is not None:
        return found if found.direct else None
    if not view.is_op(value, "reshape") or not view.private(view.args(value)[0]):
        return None
    found = convolution_of(view, view.args(value)[0])
    if found is None or found.perm != tuple(range(len(found.perm))) or found.shape != view.shape(value):
        return None
    return Convolution(
        found.source, found.weight, found.group, found.shape, found.shape, tuple(range(len(found.shape)))
    )


def reshape_to_conv(view: View, value: int) -> Match | None:
    """reshape(grouped contraction) -> Conv with groups."""
    found = _whole(view, value)
    return None if found is None else found.match()


def add_to_conv(view: View, value: int) -> Match | None:
    """add(convolution, one number per output channel) -> Conv with its bias."""
    for inner, bias in (view.args(value), view.args(value)[::-1]):
        if (
            view.private(inner)
            and view.is_op(inner, "contract", "reshape")
            and view.keeps_shape(value, inner)
        ):
            vector = channel_vector(view, bias, view.type(value), 1) if view.type(value).rank > 2 else None
            found = _whole(view, inner) if vector is not None else None
            if found is not None:
                return found.match(vector)
    return gemm_with_bias(view, value)


__all__ = ["Source", "add_to_conv", "contract_to_conv", "reshape_to_conv", "source_of"]

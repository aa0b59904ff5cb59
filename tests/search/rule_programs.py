"""Realistic programs in the canonical forms, for the rewrite rules to work on."""

from __future__ import annotations

import math

import numpy as np

from opadapt.ir.canonical import canonical
from opadapt.ir.program import Builder, Program
from opadapt.ir.types import TensorType

Array = np.ndarray


class Net(Builder):
    """A builder with the layers of a convolutional network."""

    def bias(self, x: int, name: str) -> int:
        shape = self.types[x].shape
        assert isinstance(shape[1], int)
        vector = self.param(name, (shape[1],))
        return self.emit(
            "add", x, self.emit("reshape", vector, shape=(1, shape[1], *(1,) * (len(shape) - 2)))
        )

    def taps(self, x: int, kernel: int, stride: int) -> int:
        p = kernel // 2
        x = self.emit("pad", x, pads=((0, 0), (0, 0), (p, p), (p, p)), value=0.0)
        return self.emit(
            "window", x, axes=(2, 3), kernel=(kernel,) * 2, stride=(stride,) * 2, dilation=(1, 1)
        )

    def conv(self, x: int, name: str, out: int, kernel: int = 3, stride: int = 1) -> int:
        channels = self.types[x].shape[1]
        assert isinstance(channels, int)
        w = self.param(name, (out, channels, kernel, kernel))
        return self.emit("contract", self.taps(x, kernel, stride), w, einsum="nchwij,ocij->nohw")

    def depthwise(self, x: int, name: str, kernel: int = 3, stride: int = 1) -> int:
        channels = self.types[x].shape[1]
        assert isinstance(channels, int)
        w = self.param(name, (channels, kernel, kernel))
        return self.emit("contract", self.taps(x, kernel, stride), w, einsum="nchwij,cij->nchw")

    def pointwise(self, x: int, name: str, out: int) -> int:
        channels = self.types[x].shape[1]
        assert isinstance(channels, int)
        return self.emit("contract", x, self.param(name, (out, channels)), einsum="nchw,oc->nohw")

    def dense(self, x: int, name: str, out: int) -> int:
        inner = self.types[x].shape[-1]
        assert isinstance(inner, int)
        einsum = {2: "nk,km->nm", 3: "nlk,km->nlm"}[self.types[x].rank]
        x = self.emit("contract", x, self.param(name, (inner, out)), einsum=einsum)
        return self.emit("add", x, self.param(f"{name}_bias", (out,)))

    def relu(self, x: int) -> int:
        return self.emit("relu", x)

    def gelu(self, x: int) -> int:
        inner = self.emit("erf", self.emit("mul", x, self.const(1 / math.sqrt(2))))
        return self.emit(
            "mul", self.emit("mul", x, self.const(0.5)), self.emit("add", inner, self.const(1.0))
        )

    def hard_swish(self, x: int) -> int:
        gate = self.emit("add", self.emit("mul", x, self.const(1 / 6)), self.const(0.5))
        return self.emit("mul", x, self.emit("clip", gate, min=0.0, max=1.0))

    def silu(self, x: int) -> int:
        return self.emit("mul", x, self.emit("sigmoid", x))

    def normalize(self, x: int, name: str) -> int:
        channels = self.types[x].shape[1]
        assert isinstance(channels, int)
        vectors = [self.param(f"{name}_{part}", (channels,)) for part in ("scale", "shift", "mean", "var")]
        return self.emit("normalize", x, *vectors, axis=1, eps=1e-3)

    def scale(self, x: int, name: str) -> int:
        channels = self.types[x].shape[1]
        vector = self.emit("reshape", self.param(name, (channels,)), shape=(1, channels, 1, 1))
        return self.emit("mul", x, vector)


def image(channels: int = 16, size: int = 32) -> Net:
    return Net([TensorType(("N", channels, size, size))])


def residual_block() -> Program:
    b = image()
    x = b.relu(b.bias(b.conv(0, "w1", 16), "b1"))
    x = b.bias(b.conv(x, "w2", 16), "b2")
    return b.build(b.relu(b.emit("add", x, 0)))


def strided_block() -> Program:
    b = image(8, 16)
    x = b.relu(b.bias(b.conv(0, "w1", 16, stride=2), "b1"))
    return b.build(b.bias(b.conv(x, "w2", 16), "b2"))


def padded_shortcut() -> Program:
    """A residual block of half the size and twice the channels, as CIFAR's networks have it (arXiv 1512.03385, A)."""
    b = image(8, 16)
    x = b.relu(b.bias(b.conv(0, "w1", 16, stride=2), "b1"))
    x = b.bias(b.conv(x, "w2", 16), "b2")
    short = b.emit("subsample", b.emit("subsample", 0, axis=2, step=2), axis=3, step=2)
    short = b.emit("pad", short, pads=((0, 0), (3, 5), (0, 0), (0, 0)), value=0.0)
    return b.build(b.relu(b.emit("add", x, short)))


def large_kernel() -> Program:
    b = image(8, 12)
    return b.build(b.bias(b.conv(0, "w", 12, kernel=5), "b"))


def inverted_residual() -> Program:
    b = image(8, 16)
    x = b.emit("clip", b.bias(b.pointwise(0, "w1", 32), "b1"), min=0.0, max=6.0)
    x = b.hard_swish(b.bias(b.depthwise(x, "w2"), "b2"))
    return b.build(b.emit("add", b.bias(b.pointwise(x, "w3", 8), "b3"), 0))


def bottleneck_block() -> Program:
    b = image(16, 16)
    x = b.relu(b.bias(b.pointwise(0, "w1", 8), "b1"))
    x = b.silu(b.bias(b.conv(x, "w2", 8), "b2"))
    return b.build(b.emit("add", b.bias(b.pointwise(x, "w3", 16), "b3"), 0))


def pointwise_pair() -> Program:
    b = image(16, 8)
    x = b.gelu(b.bias(b.pointwise(0, "w1", 32), "b1"))
    return b.build(b.bias(b.pointwise(x, "w2", 16), "b2"))


def linear_pairs() -> Program:
    """1x1 then 3x3 of stride 2, then 3x3 with bias then 1x1, then 1x1 with bias then 1x1; two biases."""
    b = image(8, 16)
    x = b.relu(b.bias(b.conv(b.pointwise(0, "w1", 16), "w2", 8, stride=2), "b2"))
    x = b.relu(b.pointwise(b.bias(b.conv(x, "w3", 16), "b3"), "w4", 8))
    x = b.bias(b.pointwise(b.bias(b.pointwise(x, "w5", 16), "b5"), "w6", 8), "b6")
    return b.build(b.bias(x, "b7"))


def scaled() -> Program:
    b = image(8, 8)
    x = b.relu(b.scale(b.bias(b.conv(0, "w1", 8), "b1"), "s1"))
    x = b.relu(b.scale(b.pointwise(x, "w2", 16), "s2"))
    x = b.relu(b.scale(b.bias(b.depthwise(x, "w3"), "b3"), "s3"))
    x = b.relu(b.emit("mul", b.bias(b.conv(x, "w4", 8), "b4"), b.const(0.25)))
    return b.build(b.emit("div", b.pointwise(x, "w5", 8), b.const(8.0)))


def normalized() -> Program:
    b = image(8, 8)
    x = b.relu(b.normalize(b.conv(0, "w1", 8), "n1"))
    x = b.relu(b.normalize(b.bias(b.pointwise(x, "w2", 16), "b2"), "n2"))
    return b.build(b.relu(b.normalize(b.depthwise(x, "w3"), "n3")))


def branches() -> Program:
    """Sums of parallel layers: 3x3 + 1x1, 3x3 + 3x3, and 3x3 or 1x1 beside the identity in its forms."""
    b = image(8, 8)
    x = b.relu(b.emit("add", b.bias(b.conv(0, "w1", 8), "b1"), b.bias(b.pointwise(0, "w2", 8), "b2")))
    x = b.relu(b.emit("add", b.bias(b.conv(x, "w3", 8), "b3"), b.conv(x, "w4", 8)))
    x = b.relu(b.emit("add", b.conv(x, "w5", 8), b.normalize(x, "n5")))
    x = b.relu(b.emit("add", b.bias(b.conv(x, "w6", 8), "b6"), b.scale(x, "s6")))
    x = b.relu(b.emit("add", b.bias(b.conv(x, "w7", 8), "b7"), x))
    return b.build(b.emit("add", b.bias(b.pointwise(x, "w8", 8), "b8"), x))


def repvgg_block() -> Program:
    """3x3 + 1x1 + identity, each with its batch normalisation, as RepVGG is trained (arXiv 2101.03697, figure 4)."""
    b = image(8, 8)
    inner = b.emit("add", b.normalize(b.conv(0, "w1", 8), "n1"), b.normalize(b.pointwise(0, "w2", 8), "n2"))
    return b.build(b.relu(b.emit("add", inner, b.normalize(0, "n3"))))


def squeeze_excite() -> Program:
    b = image(16, 8)
    s = b.emit("mean", 0, axes=(2, 3), keepdims=1)
    s = b.relu(b.bias(b.pointwise(s, "w1", 4), "b1"))
    s = b.emit("sigmoid", b.bias(b.pointwise(s, "w2", 16), "b2"))
    return b.build(b.emit("tanh", b.emit("mul", 0, s)))


def perceptron() -> Program:
    b = Net([TensorType(("N", 24))])
    return b.build(b.dense(b.relu(b.dense(0, "w1", 32)), "w2", 10))


def feed_forward() -> Program:
    b = Net([TensorType(("N", 10, 24))])
    return b.build(b.emit("add", b.dense(b.gelu(b.dense(0, "w1", 48)), "w2", 24), 0))


def conv_1d() -> Program:
    b = Net([TensorType(("N", 8, 20))])
    x = b.emit("window", 0, axes=(2,), kernel=(5,), stride=(2,), dilation=(1,))
    x = b.emit("contract", x, b.param("w", (12, 8, 5)), einsum="nchi,oci->noh")
    return b.build(b.relu(b.bias(x, "b")))


PROGRAMS: dict[str, Program] = {
    make.__name__: canonical(make())
    for make in (
        residual_block,
        strided_block,
        padded_shortcut,
        large_kernel,
        inverted_residual,
        bottleneck_block,
        pointwise_pair,
        linear_pairs,
        scaled,
        normalized,
        branches,
        repvgg_block,
        squeeze_excite,
        perceptron,
        feed_forward,
        conv_1d,
    )
}


def weights(program: Program, seed: int = 0) -> dict[str, Array]:
    """A binding of the usual scale; variances and scales positive."""
    rng = np.random.default_rng(seed)
    binding = {}
    for name, shape in program.params.items():
        fan = max(1, math.prod(shape[1:]))
        value = rng.standard_normal(shape) * math.sqrt(2 / fan) if len(shape) > 1 else rng.normal(size=shape)
        binding[name] = (np.abs(value) + 0.5 if name.endswith("var") else value).astype(np.float32)
    return binding


def sample(program: Program, batch: int = 2, seed: int = 1) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(t.at_batch(batch)).astype(np.float32) for t in program.inputs]

"""Programs that several tests search: a residual block as the CIFAR ResNets have it."""

from __future__ import annotations

import numpy as np

from opadapt.ir.program import Builder, Program
from opadapt.ir.types import TensorType
from opadapt.search.candidate import Candidate, tidy

PAD = ((0, 0), (0, 0), (1, 1), (1, 1))


def conv(b: Builder, x: int, channels: int, name: str) -> int:
    """A 3x3 convolution with bias, stride 1, size kept."""
    padded = b.emit("pad", x, pads=PAD, value=0.0)
    window = b.emit("window", padded, axes=(2, 3), kernel=(3, 3), stride=(1, 1), dilation=(1, 1))
    weight = b.param(f"w{name}", (channels, channels, 3, 3))
    product = b.emit("contract", window, weight, einsum="nchwij,ocij->nohw")
    bias = b.emit("reshape", b.param(f"b{name}", (channels,)), shape=(1, channels, 1, 1))
    return b.emit("add", product, bias)


def residual_block(channels: int = 16, size: int = 32) -> Program:
    """relu(x + conv(relu(conv(x))))."""
    b = Builder([TensorType(("N", channels, size, size))])
    inner = conv(b, b.emit("relu", conv(b, 0, channels, "1")), channels, "2")
    return b.build(b.emit("relu", b.emit("add", inner, 0)))


def stage(count: int, channels: int = 4, size: int = 6) -> Program:
    """Residual blocks in a row, as in one stage of a ResNet; the weights of block k are w<k>a, b<k>a, w<k>b, b<k>b."""
    b = Builder([TensorType(("N", channels, size, size))])
    x = 0
    for k in range(count):
        inner = conv(b, b.emit("relu", conv(b, x, channels, f"{k}a")), channels, f"{k}b")
        x = b.emit("relu", b.emit("add", inner, x))
    return b.build(x)


def with_weights(program: Program, seed: int = 0) -> Candidate:
    """The program with random weights for one member."""
    rng = np.random.default_rng(seed)
    binding = {n: rng.standard_normal(s).astype(np.float32) / 6 for n, s in program.params.items()}
    return tidy(program, (binding,), "original")


def block_candidate(members: int = 1, seed: int = 0) -> Candidate:
    """The residual block with random weights for each member."""
    rng = np.random.default_rng(seed)
    program = residual_block()
    bindings = tuple(
        {name: rng.standard_normal(shape).astype(np.float32) / 12 for name, shape in program.params.items()}
        for _ in range(members)
    )
    return tidy(program, bindings, "original")

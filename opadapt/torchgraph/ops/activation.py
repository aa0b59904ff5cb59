"""Activation functions, softmax and dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from opadapt.torchgraph.context import Builder, Context, Op
from opadapt.torchgraph.kernels import activations


def _plain(function: Callable[..., Any], defaults: dict[str, float], ctx: Context, op: Op) -> fx.Node:
    """An activation whose ONNX attributes go to torch in the order of ``defaults``."""
    values = [op.attrs.get(name, default) for name, default in defaults.items()]
    return ctx.call(function, ctx.tensor(op, 0), *values)


def _hard_sigmoid(ctx: Context, op: Op) -> fx.Node:
    x, alpha, beta = ctx.tensor(op, 0), op.attrs.get("alpha", 0.2), op.attrs.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return ctx.call(F.hardsigmoid, x)
    return ctx.call(activations.hard_sigmoid, x, alpha, beta)


def _gelu(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(F.gelu, ctx.tensor(op, 0), approximate=op.attrs.get("approximate", "none"))


def _prelu(ctx: Context, op: Op) -> fx.Node:
    x, slope = ctx.tensor(op, 0), ctx.tensor(op, 1)
    shape, sizes = ctx.shape(op.input(1)), ctx.shape(op.input(0))
    # the usual form, one slope per channel, has a fused kernel
    channels = shape and sizes and len(sizes) > 1 and len(shape) == len(sizes) - 1 and set(shape[1:]) <= {1}
    # before opset 9 the channels came without their trailing axes
    old = shape and sizes and len(shape) == 1 and len(sizes) > 2 and shape[0] == sizes[1] != sizes[-1]
    if channels or old:
        return ctx.call(F.prelu, x, ctx.method("flatten", slope))
    return ctx.call(activations.prelu, x, slope)


def _softmax(log: bool, ctx: Context, op: Op) -> fx.Node:
    x = ctx.tensor(op, 0)
    function = F.log_softmax if log else F.softmax
    if ctx.opset >= 13:
        return ctx.call(function, x, op.attrs.get("axis", -1))
    axis, shape = op.attrs.get("axis", 1), ctx.shape(op.input(0))
    last = axis == -1 or (shape is not None and axis == len(shape) - 1)
    return ctx.call(function, x, -1) if last else ctx.call(activations.softmax_flat, x, axis, log)


def _dropout(ctx: Context, op: Op) -> fx.Node:
    if len(op.outputs) > 1 and op.outputs[1]:
        raise op.refuse("the mask output")
    ratio = op.attrs.get("ratio", 0.5)
    if (given := ctx.known(op, 1)) is not None:
        ratio = float(given.item())
    if ratio and (training := ctx.known(op, 2)) is not None and training.item():
        raise op.refuse("training_mode=1, which drops at inference too")
    return ctx.module(op, nn.Dropout(ratio), ctx.tensor(op, 0))


# ONNX operator -> torch function and the attributes it takes, with ONNX's default values
_PLAIN: Mapping[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "Relu": (F.relu, {}),
    "Sigmoid": (torch.sigmoid, {}),
    "HardSwish": (F.hardswish, {}),
    "Mish": (F.mish, {}),
    "Softplus": (activations.softplus, {}),
    "Softsign": (F.softsign, {}),
    "LeakyRelu": (F.leaky_relu, {"alpha": 0.01}),
    "Elu": (activations.elu, {"alpha": 1.0}),
    "Celu": (F.celu, {"alpha": 1.0}),
    "Selu": (activations.selu, {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "ThresholdedRelu": (activations.thresholded_relu, {"alpha": 1.0}),
    "Shrink": (activations.shrink, {"lambd": 0.5, "bias": 0.0}),
    "Swish": (activations.swish, {"alpha": 1.0}),
}

BUILDERS: Mapping[str, Builder] = {
    **{name: partial(_plain, function, defaults) for name, (function, defaults) in _PLAIN.items()},
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "PRelu": _prelu,
    "Softmax": partial(_softmax, False),
    "LogSoftmax": partial(_softmax, True),
    "Dropout": _dropout,
}

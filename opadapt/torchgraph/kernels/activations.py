"""Activations that torch lacks, or defines otherwise than ONNX."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_flat(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax before opset 13: over all axes from ``axis`` on."""
    flat = x.flatten(axis)
    return (F.log_softmax(flat, -1) if log else F.softmax(flat, -1)).reshape(x.shape)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without the linear shortcut that F.softplus takes above 20."""
    return torch.logaddexp(x, x.new_zeros(()))


def elu(x: Tensor, alpha: float) -> Tensor:
    return F.elu(x, alpha)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * F.elu(x, alpha)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return F.threshold(x, alpha, 0.0)


def shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def swish(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)

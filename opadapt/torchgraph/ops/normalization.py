"""Normalisations. BatchNormalization is the one that differs between train() and eval()."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, fx, nn

from opadapt.torchgraph.context import Builder, Context, Op, Result
from opadapt.torchgraph.kernels import statistics


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) whose weights and statistics are passed in.

    x is [N, C, ...], the rest [C]. In training the batch's statistics are used and the running ones updated
    in place.
    """

    def __init__(self, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum = momentum  # torch's: the weight of the new value
        self.eps = eps

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, shift, self.training, self.momentum, self.eps)


def _batch_norm(ctx: Context, op: Op) -> fx.Node:
    if op.attrs.get("training_mode", 0) or not op.attrs.get("spatial", 1):
        raise op.refuse("training_mode=1 and spatial=0")
    x, scale, shift, mean, var = (ctx.tensor(op, i) for i in range(5))
    eps = op.attrs.get("epsilon", 1e-5)
    stored = [ctx.value(op, op.input(i)) for i in (3, 4)]
    if not all(isinstance(s, fx.Node) and s.op == "get_attr" for s in stored):
        # computed statistics have no initializer to be updated in
        return ctx.call(F.batch_norm, x, mean, var, scale, shift, False, 0.0, eps)
    module = BatchNorm(1.0 - op.attrs.get("momentum", 0.9), eps)
    return ctx.module(op, module, x, scale, shift, mean, var)


def _layer_norm(ctx: Context, op: Op) -> Result:
    axis, eps = op.attrs.get("axis", -1), op.attrs.get("epsilon", 1e-5)
    x = ctx.tensor(op, 0)
    y = ctx.call(statistics.layer_norm, x, axis, ctx.tensor(op, 1), ctx.optional(op, 2), eps)
    if len(op.outputs) == 1:
        return y
    pair = ctx.call(statistics.layer_statistics, x, axis, eps)
    return [y, *(ctx.call(operator.getitem, pair, i) for i in range(2))]


def _instance_norm(ctx: Context, op: Op) -> fx.Node:
    x, scale, shift = (ctx.tensor(op, i) for i in range(3))
    return ctx.call(F.instance_norm, x, weight=scale, bias=shift, eps=op.attrs.get("epsilon", 1e-5))


def _group_norm(ctx: Context, op: Op) -> fx.Node:
    if ctx.opset < 21:
        raise op.refuse("scale and bias per group (before opset 21)")
    x, scale, shift = (ctx.tensor(op, i) for i in range(3))
    return ctx.call(F.group_norm, x, op.attrs["num_groups"], scale, shift, op.attrs.get("epsilon", 1e-5))


def _rms_norm(ctx: Context, op: Op) -> fx.Node:
    eps, axis = op.attrs.get("epsilon", 1e-5), op.attrs.get("axis", -1)
    return ctx.call(statistics.rms_norm, ctx.tensor(op, 0), axis, ctx.tensor(op, 1), eps)


def _lp_norm(ctx: Context, op: Op) -> fx.Node:
    p, axis = op.attrs.get("p", 2), op.attrs.get("axis", -1)
    return ctx.call(statistics.lp_normalize, ctx.tensor(op, 0), p, axis)


def _mean_variance(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(statistics.mean_variance, ctx.tensor(op, 0), list(op.attrs.get("axes", [0, 2, 3])))


def _lrn(ctx: Context, op: Op) -> fx.Node:
    if op.attrs["size"] % 2 == 0:
        raise op.refuse("an even size")
    defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    values = [op.attrs.get(name, value) for name, value in defaults.items()]
    return ctx.call(F.local_response_norm, ctx.tensor(op, 0), op.attrs["size"], *values)


BUILDERS: Mapping[str, Builder] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LRN": _lrn,
}

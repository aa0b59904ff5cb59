"""Matrix products."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx

from opadapt.torchgraph.context import Builder, Context, Op


def _matmul(ctx: Context, op: Op) -> fx.Node:
    return ctx.call(torch.matmul, ctx.tensor(op, 0), ctx.tensor(op, 1))


def _gemm(ctx: Context, op: Op) -> fx.Node:
    a, b, bias = ctx.tensor(op, 0), ctx.tensor(op, 1), ctx.optional(op, 2)
    alpha, beta = op.attrs.get("alpha", 1.0), op.attrs.get("beta", 1.0)
    if op.attrs.get("transA", 0):
        a = ctx.method("t", a)
    shape = ctx.shape(op.input(2)) if bias is not None else None
    vector = shape is not None and len(shape) == 1 and shape[0] != 1
    if alpha == 1.0 and (bias is None or (beta == 1.0 and vector)):
        # F.linear wants the weight as [outputs, inputs]
        weight = b if op.attrs.get("transB", 0) else ctx.method("t", b)
        return ctx.call(F.linear, a, weight, bias)
    if op.attrs.get("transB", 0):
        b = ctx.method("t", b)
    if bias is not None:
        return ctx.call(torch.addmm, bias, a, b, beta=beta, alpha=alpha)
    return ctx.call(operator.mul, ctx.call(torch.matmul, a, b), alpha)


def _einsum(ctx: Context, op: Op) -> fx.Node:
    operands = [ctx.tensor(op, i) for i in range(len(op.inputs))]
    return ctx.call(torch.einsum, op.attrs["equation"], *operands)


BUILDERS: Mapping[str, Builder] = {"MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum}

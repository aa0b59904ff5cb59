"""Constants, and tensors made of sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import fx

from opadapt.torchgraph.context import TORCH_DTYPE, Builder, Context, Host, Op, Value
from opadapt.torchgraph.host import shape_of, size_of


def _constant(ctx: Context, op: Op) -> Host:
    """The attribute forms of Constant other than a float tensor that trains."""
    for name, value in op.attrs.items():
        if name == "value":
            return Host(numpy_helper.to_array(value), value.data_type)
        if name in _NUMBERS:
            dtype, elem_type = _NUMBERS[name]
            return Host(np.array(value, dtype=dtype), elem_type)
    raise op.refuse(f"its form ({', '.join(op.attrs)})")


_NUMBERS = {
    "value_float": (np.float32, TensorProto.FLOAT),
    "value_floats": (np.float32, TensorProto.FLOAT),
    "value_int": (np.int64, TensorProto.INT64),
    "value_ints": (np.int64, TensorProto.INT64),
}


def _constant_of_shape(ctx: Context, op: Op) -> fx.Node:
    shape = ctx.host(op, 0)
    fill = op.attrs.get("value")
    value = 0.0 if fill is None else numpy_helper.to_array(fill).reshape(-1)[0].item()
    elem_type = TensorProto.FLOAT if fill is None else fill.data_type
    dtype = TORCH_DTYPE.get(elem_type)
    if dtype is None:
        raise op.refuse(f"element type {elem_type}")
    return ctx.call(torch.full, tuple(shape.array.flat), value, dtype=dtype, device=ctx.device())


def _range(ctx: Context, op: Op) -> fx.Node:
    bounds = [ctx.host(op, i) for i in range(3)]
    numbers = [b.array.reshape(-1).tolist()[0] for b in bounds]
    dtype = TORCH_DTYPE[bounds[0].elem_type]
    return ctx.call(torch.arange, *numbers, dtype=dtype, device=ctx.device())


def _identity(ctx: Context, op: Op) -> Value:
    return ctx.value(op, op.input(0))


BUILDERS: Mapping[str, Builder] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Identity": _identity,
    "Shape": shape_of,
    "Size": size_of,
}

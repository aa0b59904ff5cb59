"""Which ONNX operators have an expansion. Adding one: a function, a row here, a case in tests/expand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx

from opadapt.expand import elementwise, linear, reduction, shape, sliding
from opadapt.expand.context import Context

Handler = Callable[[Context, onnx.NodeProto], int | list[int]]  # a list: one value per output of the node

HANDLERS: Mapping[str, Handler] = MappingProxyType(
    {
        "Conv": sliding.conv,
        "MaxPool": sliding.max_pool,
        "AveragePool": sliding.average_pool,
        "GlobalAveragePool": sliding.global_pool("mean"),
        "GlobalMaxPool": sliding.global_pool("max"),
        "BatchNormalization": sliding.batch_normalization,
        "Gemm": linear.gemm,
        "MatMul": linear.matmul,
        "Add": elementwise.binary("add", "bias"),
        "Sub": elementwise.binary("sub"),
        "Mul": elementwise.binary("mul", "scale"),
        "Div": elementwise.binary("div", "scale"),
        "Sum": elementwise.variadic("add"),
        "Max": elementwise.variadic("maximum"),
        "Min": elementwise.variadic("minimum"),
        "Neg": elementwise.unary("neg"),
        "Abs": elementwise.unary("abs"),
        "Exp": elementwise.unary("exp"),
        "Log": elementwise.unary("log"),
        "Sqrt": elementwise.unary("sqrt"),
        "Reciprocal": elementwise.unary("reciprocal"),
        "Relu": elementwise.unary("relu"),
        "Sigmoid": elementwise.unary("sigmoid"),
        "Tanh": elementwise.unary("tanh"),
        "Erf": elementwise.unary("erf"),
        "Pow": elementwise.power,
        "Clip": elementwise.clip,
        "LeakyRelu": elementwise.leaky_relu,
        "PRelu": elementwise.prelu,
        "HardSigmoid": elementwise.hard_sigmoid,
        "HardSwish": elementwise.hard_swish,
        "Gelu": elementwise.gelu,
        "Identity": elementwise.identity,
        "ReduceMean": reduction.reduce("mean"),
        "ReduceSum": reduction.reduce("sum"),
        "ReduceMax": reduction.reduce("max"),
        "ReduceMin": reduction.reduce("max", before="neg", after="neg"),
        "ReduceL1": reduction.reduce("sum", before="abs"),
        "ReduceL2": reduction.reduce("sum", before="square", after="sqrt"),
        "ReduceSumSquare": reduction.reduce("sum", before="square"),
        "ReduceLogSum": reduction.reduce("sum", after="log"),
        "ReduceLogSumExp": reduction.log_sum_exp,
        "Softmax": reduction.softmax,
        "LayerNormalization": reduction.layer_normalization,
        "Reshape": shape.reshape,
        "Flatten": shape.flatten,
        "Transpose": shape.transpose,
        "Squeeze": shape.squeeze,
        "Unsqueeze": shape.unsqueeze,
        "Concat": shape.concat,
        "Split": shape.split,
        "Slice": shape.slice_,
        "Pad": shape.pad,
        "Expand": shape.expand_,
        "Resize": shape.resize,
    }
)

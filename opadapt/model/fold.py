"""Arithmetic that weights can take over: exact up to float rounding.

Before -> after: Conv, BatchNormalization -> Conv; Conv, Mul, Add by channel -> Conv; Pad, Conv -> Conv;
Pad, Pad -> Pad; Slice, Slice on other axes -> Slice; Relu, Relu -> Relu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from opadapt.model import shapes
from opadapt.model.affine import absorb, affine_of
from opadapt.model.graph import Model, drop_dead
from opadapt.model.workbench import Bench, attributes, set_attribute

_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt"})


def fold(model: Model) -> Model:
    """The model with such pairs folded until none is left. Tensors that survive keep their names."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    while True:
        bench = Bench(proto)
        changed = [_fold_node(bench, node) for node in list(proto.graph.node)]
        if not any(changed):
            break
        drop_dead(proto)
    hints = {v.name: v for v in [*proto.graph.value_info, *proto.graph.output] if shapes.complete(v)}
    return model.with_proto(shapes.type_all(proto, hints))


def _fold_node(bench: Bench, node: onnx.NodeProto) -> bool:
    if bench.absorbed(node):
        return False
    return any(rule(bench, node) for rule in _RULES.get(node.op_type, ()))


def _into_producer(bench: Bench, node: onnx.NodeProto) -> bool:
    """y = a * product(x) + b by channel: the product's weights take a and b over."""
    found = affine_of(bench, node)
    if found is None:
        return False
    source, factor, shift = found
    product = bench.sole_producer(source)
    return product is not None and absorb(bench, product, node, factor, shift)


def _pad_pad(bench: Bench, node: onnx.NodeProto) -> bool:
    first = bench.sole_producer(node.input[0])
    if first is None or first.op_type != "Pad":
        return False
    a, b, sizes = bench.padding(first), bench.padding(node), bench.shapes.get(first.input[0])
    if a is None or b is None or sizes is None or a[1] != b[1]:
        return False
    total = _one_pad(sizes, a[0], b[0])
    if total is None:
        return False
    bench.replace_input(node, 1, np.array(total, np.int64), "pads")
    del node.input[3:]
    bench.bypass(first, node)
    return True


def _one_pad(sizes: Sequence[int | str], first: list[int], second: list[int]) -> list[int] | None:
    """The pads (lows, then highs; negative ones crop) that act as two in a row on an input of these sizes.

    None where no single pad does: the second pad replaces what the first cropped, or crops the padding of the other
    side too.
    """
    total = [x + y for x, y in zip(first, second, strict=True)]
    if any(x < 0 < y for x, y in zip(first, second, strict=True)):
        return None
    for size, low, high in zip(sizes, total[: len(sizes)], total[len(sizes) :], strict=True):
        cropped = min(low, 0) + min(high, 0)
        if cropped and not (isinstance(size, int) and size + cropped > 0):
            return None
    return total


def _pad_conv(bench: Bench, node: onnx.NodeProto) -> bool:
    pad = bench.sole_producer(node.input[0])
    if pad is None or pad.op_type != "Pad":
        return False
    found, given = bench.padding(pad), attributes(node)
    if found is None or found[1] != 0.0 or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        return False
    pads, rank = found[0], len(found[0]) // 2
    if min(pads) < 0 or any(pads[i] or pads[rank + i] for i in (0, 1)):
        return False
    spatial = pads[2:rank] + pads[rank + 2 :]
    own = list(given.get("pads", [0] * len(spatial)))
    set_attribute(node, "pads", [x + y for x, y in zip(own, spatial, strict=True)])
    bench.bypass(pad, node)
    return True


def _slice_slice(bench: Bench, node: onnx.NodeProto) -> bool:
    first = bench.sole_producer(node.input[0])
    if first is None or first.op_type != "Slice":
        return False
    a, b = bench.slicing(first), bench.slicing(node)
    if a is None or b is None or a.keys() & b.keys():
        return False
    both = sorted({**a, **b}.items())
    columns = [list(c) for c in zip(*((*bounds, axis) for axis, bounds in both), strict=True)]
    starts, ends, steps, axes = columns
    del node.input[1:]
    node.input.extend([""] * 4)
    for index, (values, what) in enumerate(
        [(starts, "starts"), (ends, "ends"), (axes, "axes"), (steps, "steps")], start=1
    ):
        bench.replace_input(node, index, np.array(values, np.int64), what)
    bench.bypass(first, node)
    return True


def _relu_of_positive(bench: Bench, node: onnx.NodeProto) -> bool:
    before = bench.sole_producer(node.input[0])
    if before is None or not (before.op_type in _NOT_NEGATIVE or _clip_low(bench, before) >= 0):
        return False
    bench.take_output(before, node)
    return True


def _clip_low(bench: Bench, node: onnx.NodeProto) -> float:
    low = bench.scalar(node, 1) if node.op_type == "Clip" else None
    return -np.inf if low is None else low


def _clip_of_relu(bench: Bench, node: onnx.NodeProto) -> bool:
    """Relu, Clip(low >= 0) -> Clip: what Relu raised to 0 the Clip raises to low anyway."""
    before = bench.sole_producer(node.input[0])
    if before is None or before.op_type != "Relu" or _clip_low(bench, node) < 0:
        return False
    bench.bypass(before, node)
    return True


_RULES: dict[str, tuple[Callable[[Bench, onnx.NodeProto], bool], ...]] = {
    **dict.fromkeys(("BatchNormalization", "Mul", "Div", "Add", "Sub"), (_into_producer,)),
    "Pad": (_pad_pad,),
    "Conv": (_pad_conv,),
    "Slice": (_slice_slice,),
    "Relu": (_relu_of_positive,),
    "Clip": (_clip_of_relu,),
}

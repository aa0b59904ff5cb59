"""Batch normalisation for the time of training, as exporters fold it away (arXiv 1502.03167).

Before -> while training -> after: Conv -> Conv, BatchNormalization -> Conv. The normalised model computes what the
model computes (its statistics are measured first), but its gradients are those of a network that was never folded:
it bears the larger learning rates with which a short fine-tuning gets anywhere. Inputs that preprocessing has not
standardised are divided by their size for that time, too: the gradient of a weight grows with its input, and the
weights that read values up to 255 are as much smaller than others, so that one step of a common rate would undo them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from opadapt.torchgraph import parameter_names, statistics_names
from opadapt.torchgraph.ops.normalization import BatchNorm

T = TypeVar("T")
EPSILON = 1e-5
STANDARD = 3.0  # inputs whose root mean square is within this factor of 1 are left as they are
_SAME_VALUES = frozenset({"Identity", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_PARTS = ("scale", "shift", "mean", "variance")


@dataclass(frozen=True)
class Norm:
    """One normalised convolution: its weight, its bias, the initializers of its normalisation, and what its input is
    divided by (which its weight is multiplied with)."""

    weight: str
    bias: str
    scale: str
    shift: str
    mean: str
    variance: str
    gain: float = 1.0


def with_biases(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every convolution with a stored weight has a bias (0 where it had none)."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    weights = {i.name: i for i in changed.graph.initializer}
    taken = _names(changed)
    for node in changed.graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights or (len(node.input) > 2 and node.input[2]):
            continue
        name = _fresh(f"{node.output[0]}_bias", taken)
        zeros = np.zeros(weights[node.input[1]].dims[0], np.float32)
        changed.graph.initializer.append(numpy_helper.from_array(zeros, name))
        node.input[:] = [node.input[0], node.input[1], name]
    return changed


def with_norms(
    proto: onnx.ModelProto, sizes: Mapping[str, float] | None = None
) -> tuple[onnx.ModelProto, list[Norm]]:
    """A copy with a BatchNormalization after every convolution whose weight and bias are its own.

    They do nothing yet (mean 0, variance 1): ``calibrate`` the module built from it. A convolution that is
    normalised already is left as it is. ``sizes``: root mean squares of the model's inputs, by name; convolutions that
    read one far from 1 get it divided by that.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    stored = {i.name: i for i in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    normalised = {n.input[0] for n in graph.node if n.op_type == "BatchNormalization"}
    taken, norms, nodes = _names(changed), [], []
    gains = _gains(graph, sizes or {})
    for node in list(graph.node):
        own = node.op_type == "Conv" and len(node.input) > 2
        if (
            not own
            or any(n not in stored or readers[n] != 1 for n in node.input[1:3])
            or node.output[0] in normalised
        ):
            nodes.append(node)
            continue
        gain = gains.get(node.input[0], 1.0)
        if gain != 1.0:
            nodes += _divide(node, gain, stored[node.input[1]], taken)
        nodes.append(node)
        weight, bias, output = node.input[1], node.input[2], node.output[0]
        names = [_fresh(f"{output}_{part}", taken) for part in _PARTS]
        shift = numpy_helper.to_array(stored[bias])
        one, zero = np.ones_like(shift), np.zeros_like(shift)
        for name, value in zip(names, (one, shift, zero, one), strict=True):
            graph.initializer.append(numpy_helper.from_array(value, name))
        inner = _fresh(f"{output}_before_norm", taken)
        node.input[:] = node.input[:2]
        node.output[0] = inner
        nodes.append(
            helper.make_node("BatchNormalization", [inner, *names], [output], epsilon=EPSILON, momentum=0.9)
        )
        scale, offset, mean, variance = names
        norms.append(Norm(weight, bias, scale, offset, mean, variance, gain))
    del graph.node[:]
    graph.node.extend(nodes)
    return changed, norms


def calibrate(module: nn.Module, norms: list[Norm], batches: Iterable[T], run: Callable[[T], object]) -> None:
    """Give the new normalisations the statistics of their inputs over ``batches``, and the function back.

    Every convolution is scaled to outputs of variance 1, so that one learning rate fits all. ``module`` is built from
    the proto of ``with_norms``, in ``eval()``, and computes the same before and after, up to float rounding.
    """
    at: dict[str, Any] = {
        n: getattr(module, a) for n, a in (parameter_names(module) | statistics_names(module)).items()
    }
    layers = {norm.mean: norm for norm in norms if norm.mean in at}
    moments: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    by_buffer = {id(at[name]): name for name in layers}

    def record(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        name = by_buffer.get(id(arguments[3]))
        if name is not None:
            x = arguments[0].float()
            axes = [0, *range(2, x.dim())]
            moments[name].append((x.mean(dim=axes), x.square().mean(dim=axes)))

    hooks = [m.register_forward_pre_hook(record) for m in module.modules() if isinstance(m, BatchNorm)]
    with torch.no_grad():
        for batch in batches:
            run(batch)
        for hook in hooks:
            hook.remove()
        for name, norm in layers.items():
            if not moments[name]:
                continue
            mean = torch.stack([m for m, _ in moments[name]]).mean(0)
            variance = torch.stack([s for _, s in moments[name]]).mean(0) - mean.square()
            deviation = variance.clamp_min(0).sqrt()
            # a channel that is always the same has no variance to be scaled by
            deviation = torch.where(
                deviation > 1e-3 * deviation.mean(), deviation, torch.ones_like(deviation)
            )
            mean = mean / deviation
            variance = variance.clamp_min(0) / deviation.square()
            weight = at[norm.weight]
            weight.div_(deviation.reshape(-1, *[1] * (weight.dim() - 1)))
            scale = deviation * (variance + EPSILON).sqrt()
            at[norm.mean].copy_(mean)
            at[norm.variance].copy_(variance)
            at[norm.scale].copy_(scale)
            at[norm.shift].add_(deviation * mean)


def folded(trained: onnx.ModelProto, norms: list[Norm], proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``proto`` with the weights of ``trained`` (of ``with_norms``), normalisations put into them."""
    values: dict[str, NDArray[Any]] = {i.name: numpy_helper.to_array(i) for i in trained.graph.initializer}
    for norm in norms:
        scale, shift, mean, variance = (
            values[n].astype(np.float64) for n in (norm.scale, norm.shift, norm.mean, norm.variance)
        )
        factor = scale / np.sqrt(variance + EPSILON)
        weight = values[norm.weight]
        by_output = (factor / norm.gain).reshape(-1, *[1] * (weight.ndim - 1))
        values[norm.weight] = (weight * by_output).astype(np.float32)
        values[norm.bias] = (shift - mean * factor).astype(np.float32)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for initializer in result.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))
    return result


def _gains(graph: onnx.GraphProto, sizes: Mapping[str, float]) -> dict[str, float]:
    """What the tensors that hold an input's values are to be divided by, where it is far from 1."""
    gains = {n: s for n, s in sizes.items() if s > 0 and not 1 / STANDARD <= s <= STANDARD}
    for node in graph.node:
        if node.op_type in _SAME_VALUES and node.input[0] in gains:
            gains[node.output[0]] = gains[node.input[0]]
    return gains


def _divide(
    node: onnx.NodeProto, gain: float, weight: onnx.TensorProto, taken: set[str]
) -> list[onnx.NodeProto]:
    """Divide a convolution's input by ``gain``, and multiply its weight with it; the nodes that do the former."""
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(gain), weight.name))
    factor, divided = (_fresh(f"{node.output[0]}_{part}", taken) for part in ("gain", "divided"))
    value = numpy_helper.from_array(np.array(1 / gain, np.float32), factor)
    source, node.input[0] = node.input[0], divided
    # a constant and no initializer: it is not trained
    return [
        helper.make_node("Constant", [], [factor], value=value),
        helper.make_node("Mul", [source, factor], [divided]),
    ]


def _names(proto: onnx.ModelProto) -> set[str]:
    graph = proto.graph
    made = {n for node in graph.node for n in [*node.input, *node.output, node.name]}
    return made | {v.name for v in [*graph.initializer, *graph.input, *graph.output, *graph.value_info]}


def _fresh(name: str, taken: set[str]) -> str:
    number, fresh = 0, name
    while fresh in taken:
        number += 1
        fresh = f"{name}_{number}"
    taken.add(fresh)
    return fresh

"""Structural pruning by Torch-Pruning, as a peer to compare with: the inner channels of residual blocks.

The pruned network is the original ONNX file with smaller weights, so that it is fine-tuned, timed and judged exactly
as everything else. Torch-Pruning (github.com/VainF/Torch-Pruning, arXiv 2301.12900) chooses the channels; it follows a
small module that computes the file, with one layer per convolution. Channels that residual additions tie together
with a padded shortcut (CIFAR ResNets' option A) are left alone, as its dependency graph cannot follow the padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning as tp
from onnx import numpy_helper
from torch import Tensor, nn


class Layers(nn.Module):
    """A chain of ONNX nodes with a module per Conv and Gemm. Raises ValueError for an operator it does not know."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        self.proto = proto
        self.stored = {i.name: numpy_helper.to_array(i).copy() for i in proto.graph.initializer}
        self.layers = nn.ModuleDict()
        self.keys: dict[str, str] = {}
        for number, node in enumerate(proto.graph.node):
            if node.op_type in ("Conv", "Gemm"):
                self.keys[node.output[0]] = f"layer{number}"
                self.layers[f"layer{number}"] = self._layer(node)
            elif node.op_type not in PLAIN:
                raise ValueError(f"{node.op_type} is not among {', '.join(sorted(PLAIN))}, Conv, Gemm")

    def _layer(self, node: onnx.NodeProto) -> nn.Module:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weight = torch.from_numpy(self.stored[node.input[1]])
        layer: nn.Module
        if node.op_type == "Gemm":
            if not attributes.get("transB"):
                weight = weight.t().contiguous()
            layer = nn.Linear(weight.shape[1], weight.shape[0])
        else:
            pads = attributes.get("pads", [0, 0, 0, 0])
            if pads[:2] != pads[2:]:
                raise ValueError(f"{node.name}: asymmetric padding")
            layer = nn.Conv2d(
                weight.shape[1] * attributes.get("group", 1),
                weight.shape[0],
                tuple(weight.shape[2:]),
                tuple(attributes.get("strides", (1, 1))),
                tuple(pads[:2]),
                tuple(attributes.get("dilations", (1, 1))),
                attributes.get("group", 1),
            )
        layer.weight = nn.Parameter(weight)
        layer.bias = nn.Parameter(torch.from_numpy(self.stored[node.input[2]]))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = dict(self.stored)
        values[self.proto.graph.input[0].name] = x
        for node in self.proto.graph.node:
            inputs = [values[name] for name in node.input if name]
            key = self.keys.get(node.output[0])
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            made = self.layers[key](inputs[0]) if key else PLAIN[node.op_type](inputs, attributes)
            values[node.output[0]] = made
        return values[self.proto.graph.output[0].name]


def _slice(inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
    x, starts, ends, axes, steps = inputs
    cut = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[int(axis)] = slice(int(start), min(int(end), x.shape[int(axis)]), int(step))
    return x[tuple(cut)]


def _pad(inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
    x, pads = inputs[0], [int(p) for p in inputs[1]]
    pairs = [(pads[i], pads[i + x.dim()]) for i in range(x.dim())]
    return nn.functional.pad(x, [p for pair in reversed(pairs) for p in pair])


PLAIN: dict[str, Callable[[list[Any], dict[str, Any]], Tensor]] = {
    "Relu": lambda i, a: torch.relu(i[0]),
    "Add": lambda i, a: i[0] + i[1],
    "Slice": _slice,
    "Pad": _pad,
    "AveragePool": lambda i, a: nn.functional.avg_pool2d(i[0], a["kernel_shape"], a.get("strides", 1)),
    "GlobalAveragePool": lambda i, a: i[0].mean((2, 3), keepdim=True),
    "Reshape": lambda i, a: i[0].flatten(1),
    "Flatten": lambda i, a: i[0].flatten(1),
    "Identity": lambda i, a: i[0],
}


def pruned(proto: onnx.ModelProto, shape: tuple[int, ...], ratio: float) -> onnx.ModelProto:
    """The model without the share ``ratio`` of the channels between the convolutions of a block.

    ``shape``: of one input sample with batch 1. Channels go by the group norm of all weights they take along.
    """
    module = Layers(proto).eval()
    example = torch.zeros(shape)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ignored = [
        module.layers[key]
        for output, key in module.keys.items()
        if not _inner(output, readers) or isinstance(module.layers[key], nn.Linear)
    ]
    pruner = tp.pruner.MetaPruner(
        module,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        round_to=8,  # what SIMD kernels take at a time
    )
    pruner.step()
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    stored = {i.name: i for i in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type == "Conv":
            layer = module.layers[module.keys[node.output[0]]]
            for name, value in zip(node.input[1:], (layer.weight, layer.bias), strict=True):
                array = np.ascontiguousarray(value.detach().numpy())
                stored[name].CopyFrom(numpy_helper.from_array(array, name))
    del changed.graph.value_info[:]
    return changed


def _inner(output: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether a convolution's output goes through an activation to one convolution alone."""
    found = readers.get(output, [])
    while len(found) == 1 and found[0].op_type == "Relu":
        found = readers.get(found[0].output[0], [])
    return len(found) == 1 and found[0].op_type == "Conv"

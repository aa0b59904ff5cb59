"""Small edits of a graph under folding: who makes and reads what, constants, and nodes taken out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from opadapt.model import shapes
from opadapt.model.graph import NDArrayAny, reads


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


class Bench:
    """Indexes of one proto, kept right through the edits below (removed nodes vanish at once)."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = proto.graph
        self.constants = {i.name: i for i in proto.graph.initializer}
        self.outputs = {o.name for o in proto.graph.output}
        self.producer = {name: n for n in proto.graph.node for name in n.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in reads(node):
                self.readers.setdefault(name, []).append(node)
        infos = [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]
        self.shapes = {v.name: shapes.dims_of(v) for v in infos}
        self._removed: set[str] = set()

    def absorbed(self, node: onnx.NodeProto) -> bool:
        return node.name in self._removed

    def rank(self, tensor: str) -> int | None:
        dims = self.shapes.get(tensor)
        return None if dims is None else len(dims)

    def value(self, node: onnx.NodeProto, index: int) -> NDArrayAny | None:
        """A constant input's value; None where it is computed or left out."""
        name = node.input[index] if index < len(node.input) else ""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def scalar(self, node: onnx.NodeProto, index: int) -> float | None:
        value = self.value(node, index)
        return float(value.ravel()[0]) if value is not None and value.size == 1 else None

    def left_out(self, node: onnx.NodeProto, index: int) -> bool:
        return index >= len(node.input) or not node.input[index]

    def sole_producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node making a tensor that nothing else reads."""
        node = self.producer.get(tensor)
        alone = len(self.readers.get(tensor, [])) == 1 and tensor not in self.outputs
        return node if node is not None and alone and len([o for o in node.output if o]) == 1 else None

    def replace_input(self, node: onnx.NodeProto, index: int, value: NDArrayAny, what: str) -> None:
        """A new constant as an input; under the old one's name where nobody else reads that."""
        while len(node.input) <= index:
            node.input.append("")
        old = node.input[index]
        if old in self.constants and len(self.readers[old]) == 1 and list(node.input).count(old) == 1:
            self.constants[old].CopyFrom(numpy_helper.from_array(value, old))
            return
        name = f"{node.name}/{what}"
        while name in self.constants or name in self.producer:
            name += "_"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        self.constants[name] = self.graph.initializer[-1]
        self.readers[name] = [node]
        if old in self.readers:
            self.readers[old] = [n for n in self.readers[old] if n.name != node.name]
        node.input[index] = name

    def _remove(self, node: onnx.NodeProto) -> None:
        self._removed.add(node.name)
        self.graph.node.remove(node)

    def bypass(self, gone: onnx.NodeProto, reader: onnx.NodeProto) -> None:
        """``x -> gone -> reader`` becomes ``x -> reader``."""
        source = gone.input[0]
        reader.input[0] = source
        self.readers[source] = [reader if n.name == gone.name else n for n in self.readers[source]]
        self._remove(gone)

    def take_output(self, node: onnx.NodeProto, gone: onnx.NodeProto) -> None:
        """``node -> gone -> y`` becomes ``node -> y``."""
        node.output[0] = gone.output[0]
        self.producer[gone.output[0]] = node
        self._remove(gone)

    def padding(self, node: onnx.NodeProto) -> tuple[list[int], float] | None:
        """Constant pads for all axes and the fill value; None for other modes and computed pads."""
        pads, axes = self.value(node, 1), self.value(node, 3)
        rank = self.rank(node.input[0])
        fill = 0.0 if self.left_out(node, 2) else self.scalar(node, 2)
        mode = attributes(node).get("mode", b"constant")
        if mode != b"constant" or pads is None or fill is None or rank is None:
            return None
        if axes is None and not self.left_out(node, 3):
            return None
        given = [int(p) for p in pads.ravel()]
        if axes is None:
            return given, fill
        full = [0] * (2 * rank)
        for i, axis in enumerate(int(a) % rank for a in axes.ravel()):
            full[axis], full[rank + axis] = given[i], given[axes.size + i]
        return full, fill

    def slicing(self, node: onnx.NodeProto) -> dict[int, tuple[int, int, int]] | None:
        """(start, end, step) by axis; None where any of it is computed."""
        rank = self.rank(node.input[0])
        starts, ends = self.value(node, 1), self.value(node, 2)
        axes, steps = self.value(node, 3), self.value(node, 4)
        computed = any(v is None and not self.left_out(node, i) for i, v in ((3, axes), (4, steps)))
        if rank is None or starts is None or ends is None or computed:
            return None
        count = starts.size
        at = np.arange(count) if axes is None else axes.ravel() % rank
        by = np.ones(count, np.int64) if steps is None else steps.ravel()
        rows = zip(at, starts.ravel(), ends.ravel(), by, strict=True)
        return {int(a): (int(s), int(e), int(p)) for a, s, e, p in rows}

"""The normalised model: an ONNX ModelProto with the indexes everything else reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from opadapt.errors import ProgramError
from opadapt.ir.types import BATCH, Dim, TensorType

NDArrayAny = NDArray[np.generic]


@dataclass(frozen=True)
class Source:
    """Where a model came from and what its export goes back to.

    ``original`` is the file as read, external data included; ``shapes`` are those its inputs were pinned to.
    """

    path: Path | None
    opset: int
    ir_version: int
    original: onnx.ModelProto | None = field(default=None, repr=False, compare=False)
    shapes: Mapping[str, tuple[Dim, ...]] = field(default_factory=dict, compare=False)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors a node reads, those captured by its subgraphs included; each once, in order."""
    yield from dict.fromkeys(name for name in (*node.input, *_captured(node)) if name)


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            own = {v.name for v in [*graph.input, *graph.initializer]}
            own |= {name for inner in graph.node for name in inner.output}
            wanted = [name for inner in graph.node for name in reads(inner)] + [o.name for o in graph.output]
            yield from (name for name in wanted if name not in own)


def drop_dead(proto: onnx.ModelProto) -> None:
    """Nodes and initializers that no output needs, and value infos of tensors that are gone."""
    graph = proto.graph
    wanted = {o.name for o in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(reads(node))
    initializers = [i for i in graph.initializer if i.name in wanted]
    made = {name for node in kept for name in node.output}
    infos = [v for v in graph.value_info if v.name in made]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept[::-1])
    graph.initializer.extend(initializers)
    graph.value_info.extend(infos)


@dataclass(frozen=True, eq=False)
class Model:
    """A model at the working opset, shapes inferred, every node named. Immutable by convention.

    Constants are initializers; initializers are not graph inputs. A dimension equal to the symbolic batch has
    ``dim_param`` ``"N"``; every other dimension of a typed tensor is a number.
    """

    proto: onnx.ModelProto
    source: Source

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """Nodes by name, in topological order."""
        return {n.name: n for n in self.proto.graph.node}

    @cached_property
    def position(self) -> dict[str, int]:
        """Topological position of each node."""
        return {name: i for i, name in enumerate(self.nodes)}

    @cached_property
    def producer(self) -> dict[str, str]:
        """Tensor name -> name of the node that makes it."""
        return {out: n.name for n in self.proto.graph.node for out in n.output if out}

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """Tensor name -> names of the nodes that read it (graph outputs are not listed here).

        A node whose subgraph captures the tensor counts as a reader.
        """
        found: dict[str, list[str]] = {}
        for n in self.proto.graph.node:
            for name in reads(n):
                found.setdefault(name, []).append(n.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def initializers(self) -> dict[str, NDArrayAny]:
        """Initializer values by name."""
        return {i.name: numpy_helper.to_array(i) for i in self.proto.graph.initializer}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.proto.graph.input if i.name not in self.initializers)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        return tuple(o.name for o in self.proto.graph.output)

    @cached_property
    def types(self) -> dict[str, TensorType]:
        """Types of the float32 tensors whose shapes are known; others are absent."""
        graph = self.proto.graph
        found: dict[str, TensorType] = {}
        for info in [*graph.input, *graph.value_info, *graph.output]:
            tensor = info.type.tensor_type
            if tensor.elem_type != onnx.TensorProto.FLOAT or not tensor.HasField("shape"):
                continue
            shape: list[Dim] = [d.dim_param if d.dim_param else d.dim_value for d in tensor.shape.dim]
            if all(d == BATCH or (isinstance(d, int) and d > 0) for d in shape):
                try:
                    found[info.name] = TensorType(tuple(shape))
                except ProgramError:
                    continue
        for name, value in self.initializers.items():
            if value.dtype == np.float32 and value.size:
                found[name] = TensorType(value.shape)
        return found

    @cached_property
    def digest(self) -> str:
        """sha256 of the model, weights included."""
        return hashlib.sha256(self.proto.SerializeToString(deterministic=True)).hexdigest()

    @property
    def has_batch(self) -> bool:
        """Whether the batch is free (symbolic) at the inputs."""
        return any(self.types[i].batch_axis is not None for i in self.inputs if i in self.types)

    def with_proto(self, proto: onnx.ModelProto) -> Model:
        return Model(proto, self.source)

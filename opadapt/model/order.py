"""Topological order, as close to the given one as it can be."""

from __future__ import annotations

import heapq

import onnx

from opadapt.errors import ModelError
from opadapt.model.graph import reads


def sort_nodes(proto: onnx.ModelProto) -> None:
    """Sort the nodes in place; a sorted graph stays. Raises ModelError for a cycle or a missing tensor."""
    graph = proto.graph
    nodes = list(graph.node)
    known = {v.name for v in [*graph.input, *graph.initializer]} | {
        s.values.name for s in graph.sparse_initializer
    }
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waiting: list[set[int]] = []
    readers: dict[int, list[int]] = {}
    for position, node in enumerate(nodes):
        missing = next((n for n in reads(node) if n not in known and n not in maker), None)
        if missing is not None:
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) reads tensor '{missing}', which nothing makes",
                expected="an input, an initializer or another node's output",
                found=missing,
                do="export the model again",
            )
        needs = {maker[n] for n in reads(node) if n not in known}
        waiting.append(needs)
        for need in needs:
            readers.setdefault(need, []).append(position)
    ready = [i for i, needs in enumerate(waiting) if not needs]
    done: list[onnx.NodeProto] = []
    while ready:
        position = heapq.heappop(ready)
        done.append(nodes[position])
        for reader in readers.get(position, []):
            waiting[reader].discard(position)
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(done) != len(nodes):
        stuck = next(nodes[i] for i, needs in enumerate(waiting) if needs)
        raise ModelError(
            f"the graph has a cycle through node '{stuck.name}' ({stuck.op_type})",
            expected="a graph without cycles",
            do="export the model again",
        )
    del graph.node[:]
    graph.node.extend(done)

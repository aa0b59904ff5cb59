"""Which original nodes each node of the optimised model computes.

ONNX Runtime fuses and renames nodes and drops their metadata, but original *tensor* names survive: a fused
node computes what lies between the surviving tensors it reads and those it writes. Tensors in a blocked
layout (NCHWc on x86) have new names; the node that writes one is called ``<original tensor>_nchwc``.

    original    x -Conv-> c -Add(skip)-> a -Relu-> r                      names c, a, r
    optimised   t0 -Conv "c_nchwc" (skip t1)-> t2 -ReorderOutput-> r      the Conv computes Conv, Add and Relu
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from onnx import GraphProto, NodeProto

REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
_MADE_UP = re.compile(r"(_nchwc|_nhwc)?(_token_\d+)?$")  # what onnxruntime appends to names


def attribute(original: GraphProto, optimized: GraphProto) -> list[tuple[str, ...]]:
    """For each optimised node, in order, the names of the original nodes whose work it does.

    Both graphs in topological order, original nodes named apart. Every original node that depends on an input
    belongs to one optimised node; a node that only changes a layout shares the originals of the node it
    serves. A tuple is empty where nothing fits.
    """
    claims = _Claims(original)
    aliases = {n.input[0]: n.output[0] for n in optimized.node if n.op_type == "ReorderOutput"}
    for index, node in enumerate(optimized.node):
        if node.op_type not in REORDERS:
            claims.claim(index, _anchors(node, aliases, claims))
    claims.absorb()
    return _with_layout_nodes(optimized.node, claims.owned(len(optimized.node)))


def _anchors(node: NodeProto, aliases: Mapping[str, str], claims: _Claims) -> list[str]:
    """Original tensors that the node is known to have computed, by their own name or by the node's."""
    stem = _MADE_UP.sub("", node.name)
    by_name = [*claims.outputs.get(node.name, ()), *claims.outputs.get(stem, ()), stem]
    by_output = [*node.output, *(aliases.get(t, "") for t in node.output)]
    anchors = [t for t in dict.fromkeys([*by_output, *by_name]) if t in claims.producer]
    return anchors if any(t in claims.producer for t in by_output) else _behind(node, anchors, claims)


def _behind(node: NodeProto, anchors: Sequence[str], claims: _Claims) -> list[str]:
    """The anchors of a node whose output stays in the blocked layout, with what was fused behind its name:
    a residual addition (its fourth operand) and an activation (an attribute)."""
    activation = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
    result = list(anchors)
    for tensor in anchors:
        if claims.producer[tensor].op_type == activation:
            continue  # the name was given after the fusion
        for wanted in (["Add"] if len(node.input) > 3 and node.input[3] else []) + [activation]:
            readers = [n for n in claims.readers.get(tensor, ()) if n.op_type == wanted]
            if len(readers) == 1:
                tensor = readers[0].output[0]
                result.append(tensor)
    return result


class _Claims:
    """Who computes which original node."""

    def __init__(self, graph: GraphProto) -> None:
        self.producer: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        self.outputs: dict[str, tuple[str, ...]] = {}
        self._nodes: list[NodeProto] = []  # those that depend on an input: the others are folded away
        constants = {i.name for i in graph.initializer}
        live = {i.name for i in graph.input} - constants
        for node in graph.node:
            if live.intersection(node.input):
                live.update(t for t in node.output if t)
                self._nodes.append(node)
                self.outputs[node.name] = tuple(node.output)
                self.producer.update((t, node) for t in node.output if t)
                for t in dict.fromkeys(node.input):
                    self.readers.setdefault(t, []).append(node)
        self._owner: dict[str, int] = {}

    def claim(self, index: int, anchors: Iterable[str]) -> None:
        """Give the optimised node everything unclaimed that its tensors are made of."""
        waiting = list(anchors)
        while waiting:
            node = self.producer.get(waiting.pop())
            if node is not None and node.name not in self._owner:
                self._owner[node.name] = index
                waiting.extend(node.input)

    def absorb(self) -> None:
        """An original node no one has claimed was fused behind another: into the last one it reads from."""
        for node in self._nodes:
            makers = [self.producer[t].name for t in node.input if t in self.producer]
            owners = [self._owner[name] for name in makers if name in self._owner]
            if node.name not in self._owner and owners:
                self._owner[node.name] = max(owners)

    def owned(self, count: int) -> list[tuple[str, ...]]:
        found: list[list[str]] = [[] for _ in range(count)]
        for name, index in self._owner.items():
            found[index].append(name)
        return [tuple(names) for names in found]


def _with_layout_nodes(nodes: Sequence[NodeProto], owned: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Let inserted nodes (reorders, transposes, casts) count for the node that needs them.

    A reorder back to the plain layout is the price of the blocked node before it; everything else prepares an
    operand of the node behind it. Where that side has no originals, the other side pays.
    """
    result = list(owned)
    maker = {t: i for i, node in enumerate(nodes) for t in node.output}
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for t in node.input:
            readers.setdefault(t, []).append(i)

    def before(i: int) -> tuple[str, ...]:
        return _union(result[maker[t]] for t in nodes[i].input if t in maker)

    def behind(i: int) -> tuple[str, ...]:
        return _union(result[r] for t in nodes[i].output for r in readers.get(t, ()))

    forward, backward = range(len(nodes)), range(len(nodes) - 1, -1, -1)
    for i in forward:
        if not result[i] and nodes[i].op_type == "ReorderOutput":
            result[i] = before(i)
    for i in backward:
        result[i] = result[i] or behind(i)
    for i in forward:
        result[i] = result[i] or before(i)
    return result


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))

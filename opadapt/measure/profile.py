"""Where the time of a model goes, in terms of its original nodes.

Profiling inflates: every kernel's time contains the making of its profile event. The un-profiled wall time is
the truth, profiled kernel times only say how to divide it. Where they do not fill it although they are inflated,
the rest was spent between the kernels and belongs to no node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import NodeProto

from opadapt.errors import DeviceError
from opadapt.measure.attribute import attribute
from opadapt.measure.cost import OpCost, concrete_shapes, node_cost
from opadapt.measure.device import Device, Kernel
from opadapt.measure.timing import Estimate, Timing, median_latency
from opadapt.model.graph import Model
from opadapt.model.save import at_batch

BETWEEN = "between kernels"  # the name of wall time that no kernel took


@dataclass(frozen=True)
class NodeCost:
    """One original node: its part of the wall time in seconds, float parameters it reads, MACs at batch 1."""

    name: str
    op_type: str
    latency_s: float
    parameters: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """``nodes`` in topological order; their latencies sum to ``covered`` x the wall time.

    ``covered``: the part of the wall time that belongs to original nodes. ``unattributed``: (kernel, seconds)
    of the rest, ``BETWEEN`` first. ``conditions``: what the device said about itself.
    """

    wall: Estimate
    nodes: tuple[NodeCost, ...]
    covered: float
    unattributed: tuple[tuple[str, float], ...]
    conditions: Mapping[str, Any]


def profile(device: Device, model: Model, timing: Timing) -> Profile:
    """Profile a model at batch 1 on a device. Raises DeviceError."""
    proto = at_batch(model, 1)
    raw = device.profile(proto.SerializeToString(), timing)
    wall = median_latency(raw.times, 0)
    optimized = onnx.load_model_from_string(raw.optimized).graph
    kernels = wall_times(raw.kernels, wall.value, float(raw.times.latency_s[0].min()))
    owners = attribute(proto.graph, optimized)

    shapes = concrete_shapes(proto)
    constants = {i.name for i in proto.graph.initializer}
    costs = {n.name: (n.op_type, node_cost(n, shapes, constants)) for n in proto.graph.node}
    latency_s = dict.fromkeys(costs, 0.0)
    filled_s = sum(k.latency_s for k in kernels)
    full = filled_s >= wall.value or math.isclose(filled_s, wall.value)
    unattributed = [] if full else [(BETWEEN, wall.value - filled_s)]
    for kernel, index in zip(kernels, match_kernels(raw.kernels, optimized.node), strict=True):
        names = owners[index] if index is not None else ()
        for name, part in shares(kernel.op_type, {name: costs[name] for name in names}).items():
            latency_s[name] += part * kernel.latency_s
        if not names:
            unattributed.append((kernel.name, kernel.latency_s))
    nodes = tuple(
        NodeCost(name, op_type, latency_s[name], cost.parameters, cost.macs)
        for name, (op_type, cost) in costs.items()
    )
    covered = sum(latency_s.values()) / wall.value
    return Profile(wall, nodes, covered, tuple(unattributed), raw.times.conditions)


def wall_times(kernels: Sequence[Kernel], wall_s: float, fastest_s: float) -> tuple[Kernel, ...]:
    """Kernels with times that sum to the wall time, or to less where they do not explain it.

    What the profile has too much is the same for every kernel (one event each): it is taken off each of them,
    as far as the smallest allows; a tenth of that one is left, because nothing is free. The rest is scaled. Other
    work on the machine stretches the wall time of some blocks and not the profiled runs: only what the kernels lack
    of the fastest block, ``fastest_s``, was spent between them. Raises DeviceError.
    """
    total_s = sum(k.latency_s for k in kernels)
    if not kernels or total_s <= 0:
        raise DeviceError("the profile has no kernel times", expected="one per node of the optimised model")
    excess_s = max(0.0, total_s - wall_s) / len(kernels)
    event_s = min(excess_s, 0.9 * min(k.latency_s for k in kernels))
    filled_s = min(1.0, total_s / fastest_s) * wall_s
    factor = filled_s / (total_s - event_s * len(kernels))
    return tuple(Kernel(k.name, k.op_type, (k.latency_s - event_s) * factor) for k in kernels)


def match_kernels(kernels: Sequence[Kernel], nodes: Sequence[NodeProto]) -> list[int | None]:
    """The index of the optimised node that each kernel is, None where there is none.

    By name; a node without a name has ``<operator>_<number>`` in the profile, numbered by onnxruntime. Among
    nodes that look alike the order decides: both come in execution order.
    """
    waiting: dict[tuple[str, str], list[int]] = {}
    for i, node in enumerate(nodes):
        waiting.setdefault((node.name, node.op_type), []).append(i)
    found: list[int | None] = []
    for kernel in kernels:
        named = waiting.get((kernel.name, kernel.op_type)) or waiting.get(("", kernel.op_type))
        found.append(named.pop(0) if named else None)
    return found


def shares(kernel_type: str, nodes: Mapping[str, tuple[str, OpCost]]) -> dict[str, float]:
    """How original nodes, as name -> (operator, cost), divide the time of the one kernel they became.

    Originals of the kernel's own operator come first: others were folded away (a transpose that vanished into
    a neighbour). Among several: by MACs; where none has any, by bytes; else evenly. So an activation fused
    into a convolution gets nothing: it happens in registers.
    """
    same = {name: cost for name, (op_type, cost) in nodes.items() if op_type == kernel_type}
    costs = same or {name: cost for name, (_, cost) in nodes.items()}
    for weigh in (lambda c: c.macs, lambda c: c.bytes, lambda c: 1):
        weights = {name: weigh(cost) for name, cost in costs.items()}
        total = sum(weights.values())
        if total:
            return {name: weight / total for name, weight in weights.items()}
    return {}

"""The null device: latencies from a cost model, exactly the same every time, so that the whole story runs
without hardware. ``run`` computes for real (ONNX Runtime, one thread, deterministic)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime as ort

from opadapt.errors import DeviceError
from opadapt.measure.cost import concrete_shapes, node_cost
from opadapt.measure.device import Kernel, NDArrayAny, OnProcess, RawProfile
from opadapt.measure.facts import Facts, NullCost
from opadapt.measure.timing import BlockTimes, Timing


class NullDevice:
    """Device whose every node costs overhead + MACs / rate + bytes / rate, in seconds."""

    parallel = 1

    def __init__(self, facts: Facts, threads: int) -> None:
        if facts.cost is None:
            raise DeviceError(f"{facts.name}: a null device needs a cost model", expected="facts with 'cost'")
        self.facts = facts
        self.threads = threads
        self._cost: NullCost = facts.cost

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def close(self) -> None:
        """Nothing is held."""

    def hello(self) -> Mapping[str, Any]:
        return {
            "cpu": "cost model",
            "machine": "null",
            "cores": self.facts.cores,
            "onnxruntime": "cost model",
        }

    def conditions(self) -> dict[str, Any]:
        fixed = {"cpu": "cost model", "machine": "null", "onnxruntime": "cost model", "provider": "null"}
        return {**fixed, "threads": self.threads, "cost": self._cost.model_dump()}

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        if not models:
            raise ValueError("nothing to time")
        latency_s = [sum(k.latency_s for k in self._kernels(_parse(model))) for model in models]
        count = timing.blocks if timing.processes == 1 else timing.processes
        rounds = range(timing.blocks * timing.processes)
        order = tuple(i for turn in rounds for i in range(len(models))[:: -1 if turn % 2 else 1])
        for done in range(timing.processes):
            if on_process is not None:
                on_process(done + 1)
        return BlockTimes(np.repeat(np.array(latency_s)[:, None], count, 1), self.conditions(), order)

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        proto = _parse(model)
        return RawProfile(self._kernels(proto), proto.SerializeToString(), self.time([model], timing))

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            outputs = session.run(None, dict(feeds))
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise DeviceError(f"{self.facts.name}: run failed", found=str(error), kind="exception") from error
        return {o.name: np.asarray(v) for o, v in zip(session.get_outputs(), outputs, strict=True)}

    def _kernels(self, proto: onnx.ModelProto) -> tuple[Kernel, ...]:
        """One kernel per node: nothing is fused. Nodes are expected in topological order and named apart."""
        shapes = concrete_shapes(proto)
        parameters = {i.name for i in proto.graph.initializer}
        rates = {
            "dense": self._cost.dense_macs_per_s,
            "grouped": self._cost.grouped_macs_per_s,
            "depthwise": self._cost.depthwise_macs_per_s,
        }
        kernels = []
        for node in proto.graph.node:
            if node.op_type == "Constant":  # no kernel anywhere
                continue
            cost = node_cost(node, shapes, parameters)
            macs_s, bytes_s = cost.macs / rates[cost.kind], cost.bytes / self._cost.bytes_per_s
            kernels.append(Kernel(node.name, node.op_type, self._cost.overhead_s + macs_s + bytes_s))
        return tuple(kernels)


def _parse(model: bytes) -> onnx.ModelProto:
    """The model with every shape inferred and every node named. Raises DeviceError for anything else."""
    try:
        proto = onnx.load_model_from_string(model)
        onnx.checker.check_model(proto)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except Exception as error:  # protobuf's, the checker's and the inference's errors have no common base
        raise DeviceError("null: not a valid model", found=str(error), kind="exception") from error
    free = [v.name for v in proto.graph.input for d in v.type.tensor_type.shape.dim if d.dim_value < 1]
    if free:
        raise DeviceError(
            "null: a model with a free shape",
            expected="static shapes",
            found=", ".join(free),
            kind="exception",
        )
    taken = {node.name for node in proto.graph.node}
    for number, node in enumerate(proto.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{number}"
            while node.name in taken:
                node.name += "_"
    return proto

"""Runs on tiny models: one with an output that the metric does not see and one of whole numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from opadapt.experiment import Experiment
from opadapt.report.progress import Silent
from opadapt.steps.context import Context, open_context
from opadapt.train.data import DataConfig
from opadapt.train.metrics import MetricConfig

IMAGE = (1, 6, 6)


class Inline:
    """Does a worker's work at once, in the calling thread."""

    chunk = 1

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(task))
        except Exception as error:
            future.set_exception(error)
        return future

    def watched(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, tuple[int, Sequence[int | str]]],
    weights: dict[str, np.ndarray],
) -> Path:
    """A model file; ``outputs``: type and shape by name."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind, list(s)) for n, (kind, s) in outputs.items()],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def write_model(path: Path, names: Sequence[str] = ("logits", "index", "side")) -> Path:
    """conv-relu, then a linear layer (logits), its largest class (index) and a convolution beside it (side)."""
    rng = np.random.default_rng(0)
    weights = {
        "stem.w": rng.normal(0, 0.5, (4, 1, 3, 3)),
        "stem.b": rng.normal(0, 0.1, 4),
        "head.w": rng.normal(0, 0.2, (4 * 36, 3)),
        "head.b": np.zeros(3),
        "side.w": rng.normal(0, 0.5, (2, 4, 3, 3)),
        "side.b": rng.normal(0, 0.1, 2),
    }
    nodes = [
        helper.make_node("Conv", ["image", "stem.w", "stem.b"], ["stem"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["relu"], "relu"),
        helper.make_node("Flatten", ["relu"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "head.w", "head.b"], ["logits"], "head"),
        helper.make_node("ArgMax", ["logits"], ["index"], "argmax", axis=1, keepdims=0),
        helper.make_node("Conv", ["relu", "side.w", "side.b"], ["side"], "side", pads=[1] * 4),
    ]
    ports: dict[str, tuple[int, Sequence[int | str]]] = {
        "logits": (TensorProto.FLOAT, ["N", 3]),
        "index": (TensorProto.INT64, ["N"]),
        "side": (TensorProto.FLOAT, ["N", 2, 6, 6]),
    }
    kept = [node for node in nodes if node.output[0] not in ports or node.output[0] in names]
    read = {name for node in kept for name in node.input}
    return write(
        path,
        kept,
        {"image": ("N", *IMAGE)},
        {name: ports[name] for name in names},
        {name: value for name, value in weights.items() if name in read},
    )


def experiment_on(model: Path, settings: dict[str, Any] | None = None, **arrays: np.ndarray) -> Experiment:
    """On the null device, judged by agreement; ``arrays``: the data by input, by default 120 images of noise."""
    rng = np.random.default_rng(1)
    data = model.with_suffix(".npz")
    np.savez(data, **(arrays or {"image": rng.normal(size=(120, *IMAGE)).astype(np.float32)}))
    return Experiment(
        model=model,
        device="null",
        data=DataConfig(path=str(data)),
        metric=MetricConfig(name="agreement"),
        **(settings or {}),
    )


@contextlib.contextmanager
def opened(experiment: Experiment) -> Iterator[Context]:
    """The context of a run beside the model, whose workers do their work at once."""
    folder = experiment.model.parent / "run"
    with open_context(experiment, folder, Silent()) as context:
        context.workers = Inline()  # type: ignore[assignment]
        yield context

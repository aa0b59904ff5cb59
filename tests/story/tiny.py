"""A small residual network and data for it, made from a seed: the whole story in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES, CHANNELS, SIZE, BLOCKS = 4, 8, 12, 3


def write_model(path: Path, seed: int = 0) -> Path:
    """conv-relu, three residual blocks, global average, linear: logits of four classes."""
    rng = np.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, shape: tuple[int, ...], gain: float) -> str:
        value = rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1.0)
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(x: str, name: str, inputs: int, gain: float) -> str:
        w, b = weight(f"{name}.w", (CHANNELS, inputs, 3, 3), gain), weight(f"{name}.b", (CHANNELS,), 0.1)
        nodes.append(helper.make_node("Conv", [x, w, b], [name], name=name, pads=[1, 1, 1, 1]))
        return name

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"], name=f"{x}.relu"))
        return f"{x}.relu"

    x = relu(conv("input", "stem", 1, 1.4))
    for k in range(BLOCKS):
        inner = conv(relu(conv(x, f"block{k}.1", CHANNELS, 1.4)), f"block{k}.2", CHANNELS, 0.4)
        nodes.append(helper.make_node("Add", [inner, x], [f"block{k}.add"], name=f"block{k}.add"))
        x = relu(f"block{k}.add")
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pool"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], name="flat"))
    weight("head.w", (CLASSES, CHANNELS), 6.0)
    weight("head.b", (CLASSES,), 0.1)
    nodes.append(helper.make_node("Gemm", ["flat", "head.w", "head.b"], ["logits"], name="head", transB=1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def write_data(path: Path, count: int = 480, seed: int = 0) -> Path:
    """Images of blurred noise, no labels: what counts is agreement with the original."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, SIZE, SIZE)).astype(np.float32)
    x += np.roll(x, 1, axis=2) + np.roll(x, 1, axis=3)
    np.savez(path, x=x * rng.uniform(0.3, 2.0, (count, 1, 1, 1)).astype(np.float32))
    return path


EXPERIMENT = """\
model: {model}
runs: {runs}
name: story
device: "null"
target: {target}
data:
  path: {data}
  validation_fraction: 0.2
  test_fraction: 0.2
metric: {{name: agreement}}
tolerance: {{points: {points}}}
search:
  top_groups: 1
  stages: 0
  population: 6
  generations: 1
  finalists: 3
  finalist_steps: 20
  activation_samples: 96
  probe_samples: 64
  workers: {workers}
distil: {{steps: 8, batch: 16}}
finetune: {{epochs: 3, batch: 32, precision: float32, layout: contiguous, threads: 1}}
"""


SHORTER = {
    "search:": "search:\n  space: quick",
    "population: 6": "population: 4",
    "generations: 1": "generations: 0",
    "finalists: 3": "finalists: 1",
    "epochs: 3": "epochs: 1",
}


def write_experiment(
    folder: Path, target: str = "1.3x", points: float = 40.0, workers: int = 1, runs: str = "runs"
) -> Path:
    """A whole experiment on the null device in a folder of its own; returns the YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{runs}.yaml"
    text = EXPERIMENT.format(
        model=write_model(folder / "tiny.onnx"),
        data=write_data(folder / "tiny.npz"),
        runs=folder / runs,
        target=target,
        points=points,
        workers=workers,
    )
    path.write_text(text, encoding="utf-8")
    return path


def rewrite_for(device: str, timing: str, path: Path) -> None:
    """Let an experiment be run on that device, with as little work as there may be and these settings of timing."""
    text = path.read_text()
    for longer, shorter in {'device: "null"': f'device: "{device}"', **SHORTER}.items():
        assert longer in text
        text = text.replace(longer, shorter)
    path.write_text(f"{text}timing: {timing}\nquick_timing: {timing}\n")

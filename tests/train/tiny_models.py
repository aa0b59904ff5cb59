"""Tiny ONNX models and data that the training tests share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from opadapt.model.graph import Model, Source
from opadapt.train.data import Dataset, Split
from opadapt.train.preprocess import AugmentConfig, Preprocess, PreprocessConfig, resolve


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    def infos(ports: dict[str, Sequence[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in ports.items()]

    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()]
    graph = helper.make_graph(list(nodes), "tiny", infos(inputs), infos(outputs), stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return onnx.shape_inference.infer_shapes(proto)


def classifier(
    seed: int, batch: int | str = "N", softmax: bool = False, norm: bool = False, classes: int = 3
) -> onnx.ModelProto:
    """1x6x6 image -> conv (4 channels) -> (batch norm) -> relu -> mean -> scores."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv.w": rng.normal(0, 0.5, (4, 1, 3, 3)).astype(np.float32),
        "conv.b": np.zeros(4, np.float32),
        "head.w": rng.normal(0, 1.0, (4 * 36, classes)).astype(np.float32) / 6,
        "head.b": np.zeros(classes, np.float32),
    }
    nodes = [helper.make_node("Conv", ["image", "conv.w", "conv.b"], ["c"], "conv", pads=[1, 1, 1, 1])]
    if norm:
        for name, value in (("scale", 1.0), ("shift", 0.0), ("mean", 5.0), ("var", 9.0)):
            weights[f"bn.{name}"] = np.full(4, value, np.float32)
        names = [f"bn.{n}" for n in ("scale", "shift", "mean", "var")]
        nodes.append(helper.make_node("BatchNormalization", ["c", *names], ["n"], "bn"))
    nodes += [
        helper.make_node("Relu", ["n" if norm else "c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "head.w", "head.b"], ["z" if softmax else "out"], "head"),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z"], ["out"], "softmax", axis=-1))
    return model_of(nodes, {"image": (batch, 1, 6, 6)}, {"out": (batch, classes)}, weights)


def regressor(seed: int) -> onnx.ModelProto:
    """Two inputs a [N,4] and b [N,2] -> one number each sample."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.normal(0, 0.7, (6, 8)).astype(np.float32),
        "w2": rng.normal(0, 0.7, (8, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["ab"], "join", axis=1),
        helper.make_node("MatMul", ["ab", "w1"], ["h"], "first"),
        helper.make_node("Tanh", ["h"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w2"], ["y"], "second"),
    ]
    return model_of(nodes, {"a": ("N", 4), "b": ("N", 2)}, {"y": ("N", 1)}, weights)


def as_model(proto: onnx.ModelProto) -> Model:
    return Model(proto, Source(path=None, opset=17, ir_version=8))


def noise_images(count: int, seed: int) -> np.ndarray:
    """uint8 N,6,6 images, rough enough that classes differ."""
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6), dtype=np.uint8)


def image_dataset(count: int, labels: np.ndarray | None, seed: int = 0) -> Dataset:
    """``count`` training images, a third as many for validation and for test; labels by index."""
    images = noise_images(count, seed)
    step = resolve(
        PreprocessConfig(scale=1 / 255, mean=(0.5,), std=(0.3,)), "image", (6, 6), (1, 6, 6), "float32"
    )

    def split(start: int, stop: int) -> Split:
        return Split({"image": images[start:stop]}, None if labels is None else labels[start:stop])

    a, b = count * 3 // 5, count * 4 // 5
    kind = "none" if labels is None else "classes"
    return Dataset(
        split(0, a), split(a, b), split(b, count), Preprocess({"image": step}), AugmentConfig(), kind
    )

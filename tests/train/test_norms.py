"""Batch normalisation put in for training computes the same, and folds away again."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from opadapt.torchgraph import build, write_back
from opadapt.train.norms import calibrate, folded, with_biases, with_norms

RNG = np.random.default_rng(0)


def _model(shared: bool = False, bias: bool = True) -> onnx.ModelProto:
    """conv 3x3 -> relu -> depthwise 3x3 -> add; with ``shared`` both halves of the sum use one weight."""
    values = {
        "w1": RNG.standard_normal((6, 3, 3, 3)) * 0.3,
        "b1": RNG.standard_normal(6),
        "w2": RNG.standard_normal((6, 1, 3, 3)) * 4.0,
        "b2": RNG.standard_normal(6) * 3.0,
        "w3": RNG.standard_normal((6, 6, 1, 1)),
    }
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"] if bias else ["x", "w1"], ["a"], "c1", **conv),
        helper.make_node("Relu", ["a"], ["r"], "r1"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["d"], "c2", group=6, **conv),
        helper.make_node("Conv", ["r", "w3"], ["e"], "c3"),
        helper.make_node("Conv", ["d", "w3"], ["f"], "c4")
        if shared
        else helper.make_node("Relu", ["d"], ["f"]),
        helper.make_node("Add", ["e", "f"], ["y"], "add"),
    ]
    used = {n for node in nodes for n in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 6, 8, 8])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items() if n in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


X = RNG.standard_normal((64, 3, 8, 8)).astype(np.float32) * 2 + 0.5


def test_every_convolution_gets_a_bias_that_does_nothing() -> None:
    model = _model(bias=False)
    changed = with_biases(model)
    onnx.checker.check_model(changed)
    assert all(len(n.input) == 3 for n in changed.graph.node if n.op_type == "Conv")
    np.testing.assert_array_equal(_run(changed, X), _run(model, X))


def test_a_shared_weight_is_not_normalised() -> None:
    _, norms = with_norms(with_biases(_model(shared=True)))
    assert {norm.weight for norm in norms} == {"w1", "w2"}


def test_a_convolution_is_normalised_once() -> None:
    normed, _ = with_norms(with_biases(_model()))
    assert with_norms(with_biases(normed))[1] == []


@pytest.mark.parametrize("bias", [True, False])
def test_the_normalised_module_computes_the_same_before_it_is_trained(bias: bool) -> None:
    model = with_biases(_model(bias=bias))
    normed, norms = with_norms(model)
    assert len(norms) == 3
    module = build(normed)
    calibrate(module, norms, [X[:32], X[32:]], lambda batch: module(torch.from_numpy(batch)))
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(X)).numpy(), _run(model, X), rtol=1e-4, atol=1e-4)
        module.train()  # the statistics of the very batch they were measured on
        np.testing.assert_allclose(module(torch.from_numpy(X)).numpy(), _run(model, X), rtol=1e-3, atol=1e-3)


def test_what_was_trained_folds_back_into_weight_and_bias() -> None:
    model = with_biases(_model())
    normed, norms = with_norms(model)
    module = build(normed)
    calibrate(module, norms, [X], lambda batch: module(torch.from_numpy(batch)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()
    for _ in range(5):
        loss = (module(torch.from_numpy(X)) - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    result = folded(write_back(module, normed), norms, model)
    assert [n.op_type for n in result.graph.node] == [n.op_type for n in model.graph.node]
    with torch.no_grad():
        trained = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(_run(result, X), trained, rtol=1e-4, atol=1e-4)
    assert np.abs(trained - _run(model, X)).max() > 0.1  # it did learn something


def _trained(model: onnx.ModelProto, x: np.ndarray, sizes: dict[str, float]) -> onnx.ModelProto:
    normed, norms = with_norms(model, sizes)
    module = build(normed)
    calibrate(module, norms, [x], lambda batch: module(torch.from_numpy(batch)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    module.train()
    for _ in range(10):
        loss = (module(torch.from_numpy(x)) - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    module.eval()
    return folded(write_back(module, normed), norms, model)


def _reading(given: onnx.ModelProto, factor: float, padded: bool) -> onnx.ModelProto:
    """The model for inputs ``factor`` times as large, through a Pad if ``padded``."""
    model = with_biases(given)
    for initializer in model.graph.initializer:
        if initializer.name == "w1":
            value = numpy_helper.to_array(initializer) / np.float32(factor)
            initializer.CopyFrom(numpy_helper.from_array(value, "w1"))
    if padded:
        pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
        model.graph.initializer.append(numpy_helper.from_array(pads, "pads"))
        model.graph.node.insert(0, helper.make_node("Pad", ["x", "pads"], ["wide"], "pad"))
        first = model.graph.node[1]
        first.input[0] = "wide"
        next(a for a in first.attribute if a.name == "pads").ints[:] = [0, 0, 0, 0]
    return model


@pytest.mark.parametrize("padded", [False, True])
def test_inputs_of_any_size_are_trained_on_alike(padded: bool) -> None:
    model, size = _model(), float(np.sqrt(np.square(X).mean()))
    small = _trained(_reading(model, 1.0, padded), X, {"x": size})
    large = _trained(_reading(model, 128.0, padded), 128 * X, {"x": 128.0})
    changed = _run(small, X)
    assert np.abs(changed - _run(_reading(model, 1.0, padded), X)).max() > 0.1
    np.testing.assert_allclose(_run(large, 128 * X), changed, rtol=1e-3, atol=1e-3)
    careless = _trained(_reading(model, 128.0, padded), 128 * X, {})
    assert np.abs(_run(careless, 128 * X) - changed).max() > 0.1


def test_inputs_of_ordinary_size_are_left_as_they_are() -> None:
    model = with_biases(_model())
    assert with_norms(model, {"x": 0.5})[0] == with_norms(model)[0]
    onnx.checker.check_model(with_norms(model, {"x": 140.0})[0])


def test_a_channel_that_never_varies_does_not_blow_up() -> None:
    model = _model()
    w1 = numpy_helper.to_array(model.graph.initializer[0]).copy()
    w1[2] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(w1, "w1"))
    model = with_biases(model)
    normed, norms = with_norms(model)
    module = build(normed)
    calibrate(module, norms, [X], lambda batch: module(torch.from_numpy(batch)))
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(X)).numpy(), _run(model, X), rtol=1e-4, atol=1e-3)

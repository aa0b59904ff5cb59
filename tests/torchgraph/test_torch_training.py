"""Training through the module, and the way back into the model."""

from __future__ import annotations

import copy
import multiprocessing

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from opadapt.errors import ModelError, Refused
from opadapt.torchgraph import build, parameter_names, statistics_names, write_back

RNG = np.random.default_rng(0)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int | str, ...]],
    outputs: dict[str, tuple[int | str, ...]],
    stored: dict[str, np.ndarray],
    opset: int = 20,
) -> onnx.ModelProto:
    def info(name: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "g",
        [info(n, s) for n, s in inputs.items()],
        [info(n, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {i.name: v for i, v in zip(session.get_inputs(), inputs, strict=True)}))


def _normal(*shape: int, scale: float = 0.3) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def classifier() -> onnx.ModelProto:
    """Conv-BN-Relu, a depthwise convolution with a GELU of scalar constants, pooling, Gemm; odd names."""
    stored = {
        "0": _normal(8, 3, 3, 3),
        "bn/scale": np.ones(8, np.float32),
        "bn.shift": np.zeros(8, np.float32),
        "bn mean": _normal(8),
        "bn_mean": np.abs(_normal(8)) + 1,
        "training": _normal(8, 1, 3, 3),
        "forward": _normal(1, 8, 1, 1),
        "half": np.array(0.5, np.float32),
        "root": np.array([2**0.5], np.float32),
        "one": np.array(1.0, np.float32),
        "fc::w": _normal(8, 4),
        "fc::b": np.zeros(4, np.float32),
        "shape": np.array([0, -1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "0"], ["a"], pads=[1, 1, 0, 0]),
        helper.make_node("BatchNormalization", ["a", "bn/scale", "bn.shift", "bn mean", "bn_mean"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "training"], ["d"], group=8, auto_pad="SAME_UPPER"),
        helper.make_node("Add", ["d", "forward"], ["e"]),
        helper.make_node("Div", ["e", "root"], ["f"]),
        helper.make_node("Erf", ["f"], ["g"]),
        helper.make_node("Add", ["g", "one"], ["h"]),
        helper.make_node("Mul", ["h", "half"], ["i"]),
        helper.make_node("Mul", ["e", "i"], ["j"]),
        helper.make_node("GlobalAveragePool", ["j"], ["k"]),
        helper.make_node("Reshape", ["k", "shape"], ["l"]),
        helper.make_node("Gemm", ["l", "fc::w", "fc::b"], ["y"]),
    ]
    return _model(nodes, {"x": ("N", 3, 8, 8)}, {"y": ("N", 4)}, stored)


WEIGHTS = {"0", "bn/scale", "bn.shift", "training", "forward", "fc::w", "fc::b"}


MODEL = classifier()


def test_parameters_are_the_weights_and_not_the_numbers_of_a_formula() -> None:
    module = build(MODEL)
    assert set(parameter_names(module)) == WEIGHTS
    assert set(statistics_names(module)) == {"bn mean", "bn_mean"}
    assert not module.training


def test_only_chosen_weights_train() -> None:
    module = build(MODEL, trainable=["fc::w", "half"])
    assert set(parameter_names(module)) == {"fc::w", "half"}
    x = _normal(2, 3, 8, 8)
    with torch.no_grad():
        module.get_parameter(parameter_names(module)["half"]).fill_(0.7)
        result = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(result, _run(write_back(module, MODEL), x)[0], rtol=1e-4, atol=1e-5)


def test_a_name_that_cannot_train_is_an_error() -> None:
    for name in ("nowhere", "shape", "bn mean"):
        with pytest.raises(ModelError, match="cannot be trained") as error:
            build(MODEL, trainable=[name])
        assert error.value.found == name


def test_unchanged_weights_round_trip_exactly() -> None:
    before = {i.name: numpy_helper.to_array(i) for i in MODEL.graph.initializer}
    written = write_back(build(MODEL), MODEL)
    assert written is not MODEL
    assert [i.name for i in written.graph.initializer] == [i.name for i in MODEL.graph.initializer]
    for initializer in written.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(initializer), before[initializer.name])


def test_denormals_are_flushed() -> None:
    module = build(MODEL)
    weight = module.get_parameter(parameter_names(module)["fc::w"])
    with torch.no_grad():
        weight[0, :4] = torch.tensor([1e-39, -1e-40, 1.1754944e-38, -2e-38])
    written = {i.name: numpy_helper.to_array(i) for i in write_back(module, MODEL).graph.initializer}
    np.testing.assert_array_equal(
        written["fc::w"][0, :4], np.array([0, 0, 1.1754944e-38, -2e-38], np.float32)
    )


def test_writing_into_another_model_is_an_error() -> None:
    other = onnx.ModelProto()
    other.CopyFrom(MODEL)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(_normal(8, 3, 1, 1), "0"))
    with pytest.raises(ModelError, match="'0' does not fit"):
        write_back(build(MODEL), other)
    with pytest.raises(ModelError, match=r"not a module of torchgraph\.build"):
        write_back(torch.nn.Linear(2, 2), other)


def test_gradients_reach_every_parameter() -> None:
    module = build(MODEL).train()
    module(torch.from_numpy(_normal(4, 3, 8, 8))).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_training_lowers_the_loss_and_the_written_model_is_the_module() -> None:
    module = build(MODEL).train()
    x = torch.from_numpy(_normal(64, 3, 8, 8, scale=1.0))
    labels = (x.mean((2, 3)) @ torch.from_numpy(_normal(3, 4))).argmax(1)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-2)
    losses = []
    for _ in range(100):
        loss = functional.cross_entropy(module(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    module.eval()
    with torch.no_grad():
        expected = module(x).numpy()
    (result,) = _run(write_back(module, MODEL), x.numpy())
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_batch_statistics_in_train_and_running_ones_in_eval() -> None:
    module = build(MODEL)
    mean, var = (module.get_buffer(statistics_names(module)[n]) for n in ("bn mean", "bn_mean"))
    mean_before, var_before = mean.clone(), var.clone()
    x = torch.from_numpy(_normal(16, 3, 8, 8, scale=2.0))
    with torch.no_grad():
        module(x)
        assert torch.equal(mean, mean_before) and torch.equal(var, var_before)
        weight = module.get_parameter(parameter_names(module)["0"])
        a = functional.conv2d(functional.pad(x, (1, 0, 1, 0)), weight)
        module.train()(x)
    torch.testing.assert_close(mean, 0.9 * mean_before + 0.1 * a.mean((0, 2, 3)))
    torch.testing.assert_close(var, 0.9 * var_before + 0.1 * a.var((0, 2, 3)))
    written = {i.name: numpy_helper.to_array(i) for i in write_back(module, MODEL).graph.initializer}
    np.testing.assert_array_equal(written["bn mean"], mean.numpy())


def test_statistics_behind_an_identity_are_not_parameters() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    model.graph.node[1].input[3] = "same"
    model.graph.node.insert(0, helper.make_node("Identity", ["bn mean"], ["same"]))
    module = build(model).train()
    assert set(parameter_names(module)) == WEIGHTS
    module(torch.from_numpy(_normal(4, 3, 8, 8))).sum().backward()
    assert "bn mean" in statistics_names(module)


def test_dropout_drops_in_train_alone() -> None:
    model = _model(
        [helper.make_node("Dropout", ["x", "ratio"], ["y"])],
        {"x": ("N", 100)},
        {"y": ("N", 100)},
        {"ratio": np.array(0.25, np.float32)},
    )
    module = build(model)
    x = torch.ones(50, 100)
    assert torch.equal(module(x), x)
    torch.manual_seed(0)
    dropped = module.train()(x)
    assert 0.2 < (dropped == 0).float().mean() < 0.3
    assert torch.allclose(dropped[dropped != 0], torch.tensor(1 / 0.75))


def test_inputs_and_outputs_go_by_position() -> None:
    nodes = [
        helper.make_node("Sub", ["b", "a"], ["d"]),
        helper.make_node("Mul", ["d", "w"], ["e"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Cast", ["s"], ["t"], to=TensorProto.FLOAT),
    ]
    model = _model(
        nodes, {"a": ("N", 2), "b": ("N", 2)}, {"e": ("N", 2), "t": (2,)}, {"w": np.array([2, 3], np.float32)}
    )
    e, t = build(model)(torch.ones(5, 2), torch.full((5, 2), 3.0))
    assert torch.equal(e, torch.tensor([[4.0, 6.0]]).expand(5, 2))
    assert t.tolist() == [5.0, 2.0]


def test_channels_last_and_bfloat16_survive_a_convolutional_model() -> None:
    stored = {"w": _normal(16, 16, 3, 3), "half": np.array([0.5], np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 0, 0]),
        helper.make_node("Mul", ["a", "half"], ["b"]),
        helper.make_node("Clip", ["b", "", "six"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Concat", ["d", "d"], ["y"], axis=1),
    ]
    model = _model(
        nodes,
        {"x": ("N", 16, 9, 9)},
        {"y": ("N", 32, 4, 4)},
        stored | {"six": np.array(6, np.float32)},
    )
    module = build(model).to(memory_format=torch.channels_last)
    x = torch.from_numpy(_normal(2, 16, 9, 9)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_copies_and_states_keep_the_names() -> None:
    module = build(MODEL)
    twin = copy.deepcopy(module)
    assert parameter_names(twin) == parameter_names(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    other = build(MODEL)
    other.load_state_dict(twin.state_dict())
    written = [write_back(m, MODEL).SerializeToString(deterministic=True) for m in (twin, other)]
    assert written[0] == written[1]


def _in_worker(serialized: bytes) -> int:
    return len(parameter_names(build(onnx.ModelProto.FromString(serialized))))


def test_modules_are_built_in_worker_processes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_in_worker, (MODEL.SerializeToString(),)) == len(WEIGHTS)


def test_an_operator_without_builder_is_refused_with_its_node() -> None:
    model = _model(
        [
            helper.make_node("NonZero", ["x"], ["i"], name="find"),
            helper.make_node("Cast", ["i"], ["y"], to=1),
        ],
        {"x": ("N", 2)},
        {"y": (2, "M")},
        {},
    )
    with pytest.raises(Refused, match="no builder for operator NonZero \\(node 'find'\\)"):
        build(model)


def test_another_domain_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="com.example")
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1,)}, {"y": (1,)}, {})
    model.graph.node[0].CopyFrom(node)
    with pytest.raises(Refused, match=r"com\.example\.Relu"):
        build(model)


def test_a_shape_made_of_data_is_refused() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["s"], to=TensorProto.INT64),
        helper.make_node("Expand", ["w", "s"], ["y"]),
    ]
    model = _model(nodes, {"x": (2,)}, {"y": ("A", "B")}, {"w": np.ones((1, 1), np.float32)})
    with pytest.raises(Refused, match="depends on the data"):
        build(model)

"""Whole models: the torch module against ONNX Runtime on the same random inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from opadapt.errors import Refused
from opadapt.torchgraph import SUPPORTED, build, parameter_names, statistics_names

# file -> sizes for the inputs whose declared shapes leave more than the batch free
CASES: dict[str, dict[str, tuple[int, ...]]] = {
    "basic_pitch.onnx": {},
    "cifar10_resnet20.onnx": {},
    "cifar10_resnet56.onnx": {},
    "mlperf_tiny_ic_resnet8.onnx": {},
    "mlperf_tiny_kws_dscnn.onnx": {},
    "mlperf_tiny_vww_mobilenetv1_025.onnx": {},
    "ppocr_cls.onnx": {"x": (3, 48, 192)},
    "ultralight_face_rfb320.onnx": {},
}
TOLERANCE = 1e-4  # largest absolute difference over largest absolute value; measured 1.5e-6


def _inputs(model: onnx.ModelProto, sizes: dict[str, tuple[int, ...]], batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    stored = {i.name for i in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name not in stored:
            dims = info.type.tensor_type.shape.dim
            inner = sizes.get(info.name, tuple(d.dim_value for d in dims[1:]))
            first = dims[0].dim_value if dims[0].dim_value > 0 else batch
            feeds[info.name] = rng.standard_normal((first, *inner)).astype(np.float32)
    return feeds


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", list(CASES))
def test_module_equals_onnx_runtime(shared_models: Path, name: str, batch: int) -> None:
    model = onnx.load(shared_models / name)
    feeds = _inputs(model, CASES[name], batch)
    if any(len(v) != batch for v in feeds.values()):
        pytest.skip("the model declares batch 1")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, feeds)
    with torch.no_grad():
        results = build(model)(*[torch.from_numpy(v) for v in feeds.values()])
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(expected)
    for result, reference in zip(results, expected, strict=True):
        assert tuple(result.shape) == reference.shape
        error = np.abs(result.numpy() - reference).max() / np.abs(reference).max()
        assert error < TOLERANCE


@pytest.mark.parametrize("name", list(CASES))
def test_every_float_initializer_of_a_weight_operator_trains(shared_models: Path, name: str) -> None:
    model = onnx.load(shared_models / name)
    stored = {i.name for i in model.graph.initializer}
    stored |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    wanted = {
        slot
        for n in model.graph.node
        if n.op_type in ("Conv", "Gemm", "MatMul", "BatchNormalization")
        for slot in n.input[:3]
        if slot in stored
    }
    module = build(model)
    assert wanted <= set(parameter_names(module))
    assert set(parameter_names(module).values()) == {n for n, _ in module.named_parameters()}
    assert set(statistics_names(module).values()) <= {n for n, _ in module.named_buffers()}


def test_only_the_recurrent_operator_of_the_shared_models_is_missing(shared_models: Path) -> None:
    operators = {p.name: {n.op_type for n in onnx.load(p).graph.node} for p in shared_models.glob("*.onnx")}
    missing = {name: found - SUPPORTED for name, found in operators.items() if found - SUPPORTED}
    assert missing == {"beliefppg_full.onnx": {"LSTM"}}


def test_recurrent_model_is_refused_by_name(shared_models: Path) -> None:
    with pytest.raises(Refused, match="LSTM") as refusal:
        build(onnx.load(shared_models / "beliefppg_full.onnx"))
    assert refusal.value.stage == "torch"
    assert "/l1/LSTM" in str(refusal.value)


@pytest.mark.parametrize("name", ["cifar10_resnet20.onnx", "ppocr_cls.onnx", "basic_pitch.onnx"])
def test_nothing_stays_behind_on_another_device(shared_models: Path, name: str) -> None:
    """The meta device refuses to mix with the CPU, as CUDA does."""
    model = onnx.load(shared_models / name)
    feeds = _inputs(model, CASES[name], 2)
    module = build(model).to("meta")
    result = module(*[torch.empty(v.shape, device="meta") for v in feeds.values()])
    results = result if isinstance(result, tuple) else (result,)
    assert all(r.device.type == "meta" and r.shape[0] == 2 for r in results)

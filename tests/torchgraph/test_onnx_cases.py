"""The ONNX project's own operator cases: all whose operators have builders, or a row that says why not."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from opadapt.errors import Refused
from opadapt.torchgraph import SUPPORTED, build

MINIMUM = {"node": 900, "pytorch-operator": 30, "pytorch-converted": 80}
TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}

# Inputs that a model reads as numbers; the cases pass them as data, models store or compute them.
NUMBERS = {
    "CumSum": (1,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod")},
    **{f"Reduce{kind}": (1,) for kind in ("Sum", "SumSquare")},
}

# pattern of the case's name -> why it is not run
SKIPPED: dict[str, str] = {
    "test_batchnorm_.*_training_mode": "BatchNormalization in training mode is no inference model",
    "test_training_dropout(_default)?": "Dropout in training mode is random",
    "test_(training_)?dropout.*_mask(_ratio)?": "the mask of Dropout has no reader in a trained model",
    "test_maxpool_with_argmax_.*": "the indices of MaxPool have no reader here",
    "test_reduce_(max|min)_empty_set.*": "torch has no maximum of nothing",
    "test_resize_.*_cubic.*": "cubic interpolation",
    "test_resize_.*_linear_antialias": "antialiasing",
    "test_resize_tf_crop_and_resize.*": "crop-and-resize coordinates",
    "test_resize_.*_not_(larger|smaller)": "sizes that keep the aspect ratio",
    "test_Softsign": "broadcasting by attribute, from before opset 7",
}
# Cases whose expected values ONNX Runtime does not return either.
DISPUTED = {
    "test_resize_downsample_scales_linear_align_corners": "4.0 in ONNX Runtime, which takes whole sizes",
}

Case = tuple[onnx.ModelProto, list[np.ndarray], list[np.ndarray], float, float]


def _pinned(model: onnx.ModelProto, inputs: list[np.ndarray]) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The case with the inputs that are read as numbers stored as initializers."""
    numbers: set[str] = set()
    for node in reversed(model.graph.node):
        slots = range(len(node.input)) if numbers & set(node.output) else NUMBERS.get(node.op_type, ())
        if node.op_type not in ("Shape", "Size", "CastLike"):
            numbers |= {node.input[i] for i in slots if i < len(node.input)}
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    stored = {i.name for i in model.graph.initializer}
    graph_inputs = [i for i in model.graph.input if i.name not in stored]
    kept = []
    del fixed.graph.input[:]
    for info, value in zip(graph_inputs, inputs, strict=True):
        if info.name in numbers:
            fixed.graph.initializer.append(numpy_helper.from_array(np.asarray(value), info.name))
        else:
            fixed.graph.input.append(info)
            kept.append(value)
    return fixed, kept


def _array(path: Path) -> np.ndarray:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)


def _plain_tensors(model: onnx.ModelProto) -> bool:
    infos = [*model.graph.input, *model.graph.output]
    return all(i.type.HasField("tensor_type") and i.type.tensor_type.elem_type in TYPES for i in infos)


@cache
def cases(kind: str) -> dict[str, Case]:
    """Cases by name whose operators are all in the table and whose tensors have a supported type."""
    found: dict[str, Case] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind=kind)
    for case in loaded:
        model, sets = case.model, case.data_sets
        if model is None:
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
        known = {n.op_type for n in model.graph.node} <= SUPPORTED
        if not known or not _plain_tensors(model) or any(n.domain for n in model.graph.node):
            continue
        if sets is None:
            data = folder / "test_data_set_0"
            sides: list[Any] = [
                [_array(data / f"{side}_{i}.pb") for i in range(len(list(data.glob(f"{side}_*.pb"))))]
                for side in ("input", "output")
            ]
        else:
            sides = [list(side) for side in sets[0]]
        found[case.name] = (model, *sides, case.rtol, case.atol)
    return found


def _run(case: Case) -> None:
    model, inputs, outputs, rtol, atol = case
    model, inputs = _pinned(model, inputs)
    module = build(model, trainable=())
    with torch.no_grad():
        results = module(*[torch.from_numpy(np.array(v, copy=True)) for v in inputs])
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(outputs)
    for result, expected in zip(results, outputs, strict=True):
        assert tuple(result.shape) == np.asarray(expected).shape
        assert result.numpy().dtype == np.asarray(expected).dtype
        np.testing.assert_allclose(result.numpy(), expected, rtol=rtol, atol=max(atol, 1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(MINIMUM))
def test_cases_of_the_onnx_project(kind: str, record_property: pytest.FixtureRequest) -> None:
    passed, skipped = 0, Counter[str]()
    failures: list[str] = []
    for name, case in cases(kind).items():
        rows = (SKIPPED | DISPUTED).items()
        reason = next((why for pattern, why in rows if re.fullmatch(pattern, name)), None)
        if reason is not None:
            skipped[reason] += 1
            continue
        try:
            _run(case)
            passed += 1
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")
    print(f"{kind}: {passed} cases run, {sum(skipped.values())} skipped: {dict(skipped)}")
    assert not failures, "\n".join([f"{len(failures)} of {passed + len(failures)} fail", *failures])
    assert passed >= MINIMUM[kind]


def test_each_skipped_pattern_is_needed() -> None:
    """A row of SKIPPED matches a case, and that case is refused with a reason."""
    names = {name: case for kind in MINIMUM for name, case in cases(kind).items()}
    for pattern in SKIPPED:
        matching = [name for name in names if re.fullmatch(pattern, name)]
        assert matching, pattern
        for name in matching:
            with pytest.raises((Refused, IndexError)):
                _run(names[name])


@pytest.mark.parametrize("name", list(DISPUTED))
def test_disputed_cases_follow_onnx_runtime(name: str) -> None:
    model, inputs, _, rtol, atol = cases("node")[name]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {i.name: value for i, value in zip(model.graph.input, inputs, strict=True)}
    _run((model, inputs, session.run(None, feeds), rtol, atol))

"""Export and static protos."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from opadapt.errors import ModelError, RunError
from opadapt.model import save, validate
from opadapt.model.fold import fold
from opadapt.model.load import load, read
from opadapt.model.opset import to_opset
from opadapt.model.save import at_batch, export, flush_denormals

SHAPES = {"ppocr_cls": {"x": ["N", 3, 48, 192]}}


@pytest.mark.parametrize(
    ("name", "opset", "ir"),
    [
        ("beliefppg_full", 17, 8),
        ("cifar10_resnet20", 17, 8),
        ("mlperf_tiny_kws_dscnn", 17, 9),
        ("ppocr_cls", 11, 7),
        ("ultralight_face_rfb320", 9, 4),
    ],
)
def test_exports_are_like_the_file_they_came_from(
    shared_models: Path, tmp_path: Path, name: str, opset: int, ir: int
) -> None:
    path = shared_models / f"{name}.onnx"
    model = fold(load(path, SHAPES.get(name)))
    out = export(model, tmp_path / "deep" / "out.onnx")
    assert [p.name for p in out.parent.iterdir()] == ["out.onnx"]  # no temporary file, no external data
    back, original = onnx.load(out), read(path)
    assert (back.opset_import[0].version, back.ir_version) == (opset, ir)
    feeds = validate.random_feeds(original, np.random.default_rng(5), 1, SHAPES.get(name))
    assert validate.compare_outputs(original, back, feeds) < 1e-5
    first = [
        i.type.tensor_type.shape.dim[0] for i in (back.graph.input[0], validate.graph_inputs(original)[0])
    ]
    assert first[0].dim_value == max(first[1].dim_value, 0)
    assert validate.compare_outputs(back, load(out).proto) < 1e-5  # and opens again


def test_at_batch_is_static_everywhere(shared_models: Path) -> None:
    model = load(shared_models / "cifar10_resnet20.onnx")
    for batch in (1, 4):
        proto = at_batch(model, batch)
        infos = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
        assert all(d.dim_value > 0 for i in infos for d in i.type.tensor_type.shape.dim)
        feeds = validate.random_feeds(proto, np.random.default_rng(0))
        assert feeds["input"].shape == (batch, 3, 32, 32)
        assert validate.compare_outputs(model.proto, proto, feeds) < 1e-6
        onnx.checker.check_model(proto, full_check=True)


def test_at_batch_of_a_fixed_batch(build, write) -> None:
    model = load(write(build([("Softmax", "x", "y", {"axis": 0})], {"x": (2, 5)}, ["y"])))
    assert at_batch(model, 2).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    with pytest.raises(ModelError, match="fixed at 2"):
        at_batch(model, 1)


def test_denormals_are_flushed(build, write) -> None:
    weights = np.array([1e-40, 1.0, -1e-39, 0.0], np.float32)
    model = load(write(build([("Mul", "x w", "y")], {"x": ("N", 4)}, ["y"], {"w": weights})))
    assert list(flush_denormals(model).initializers["w"]) == [0.0, 1.0, 0.0, 0.0]


def test_an_export_that_computes_something_else_is_refused(
    build, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write(build([("Abs", "x", "y")], {"x": ("N", 4)}, ["y"])))

    def wrong(*arguments: Any) -> onnx.ModelProto:
        proto = to_opset(*arguments)
        proto.graph.node[0].op_type = "Neg"
        return proto

    monkeypatch.setattr(save, "to_opset", wrong)
    path = tmp_path / "out.onnx"
    with pytest.raises(ModelError, match="exported model does not compute"):
        export(model, path)
    assert not path.exists()


def test_a_full_disk_leaves_the_old_file_and_says_so(
    shared_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(shared_models / "mlperf_tiny_kws_dscnn.onnx")
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError) as caught:
        export(model, path)
    assert "free some disk space" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written(shared_models: Path, tmp_path: Path) -> None:
    model = load(shared_models / "mlperf_tiny_kws_dscnn.onnx")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        export(model, tmp_path / "file" / "out.onnx")
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        export(model, tmp_path / "taken")

"""Reading files: real ones, damaged ones, hostile ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from opadapt.errors import ModelError
from opadapt.model import validate
from opadapt.model.load import load, read
from opadapt.resources import WORKING_OPSET

SHAPES = {"ppocr_cls": {"x": ["N", 3, 48, 192]}}
REAL = [
    "basic_pitch",
    "beliefppg_full",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "mlperf_tiny_ic_resnet8",
    "mlperf_tiny_kws_dscnn",
    "mlperf_tiny_vww_mobilenetv1_025",
    "ppocr_cls",
    "ultralight_face_rfb320",
]


@pytest.mark.parametrize("name", REAL)
def test_real_models_load_and_compute_the_same(shared_models: Path, name: str) -> None:
    model = load(shared_models / f"{name}.onnx", SHAPES.get(name))
    assert model.proto.opset_import[0].version == WORKING_OPSET
    assert model.has_batch
    assert len(model.nodes) == len(model.proto.graph.node)  # names are unique
    assert not {"Constant", "Identity", "Dropout"} & {n.op_type for n in model.nodes.values()}
    assert all(model.types[t].batch_axis == 0 for t in (*model.inputs, *model.outputs))
    original = read(shared_models / f"{name}.onnx")
    feeds = validate.random_feeds(original, np.random.default_rng(3), 1, SHAPES.get(name))
    assert validate.compare_outputs(original, model.proto, feeds) < 1e-5


def _small(build) -> onnx.ModelProto:
    return build(
        [("Conv", "x w", "h", {"pads": [1, 1, 1, 1]}), ("Relu", "h", "y")],
        {"x": ("batch", 3, 8, 8)},
        ["y"],
        {"w": np.ones((4, 3, 3, 3), np.float32)},
    )


def _refused(path: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path)
    text = str(caught.value)
    assert caught.value.do
    assert all(w in text for w in words), text
    return caught.value


def test_no_file_folder_empty_and_text(tmp_path: Path) -> None:
    _refused(tmp_path / "none.onnx", "no such file")
    _refused(tmp_path, "folder")
    for number, raw in enumerate([b"", b"hello, this is no model\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(100)]):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(raw)
        _refused(path, path.name)
    pointer = tmp_path / "lfs.onnx"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    _refused(pointer, "git lfs pull")


def test_truncated_at_every_point(build, tmp_path: Path) -> None:
    raw = _small(build).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(ModelError):
            load(path)


def test_flipped_bytes_never_escape_the_error_tree(build, tmp_path: Path) -> None:
    raw = bytearray(_small(build).SerializeToString())
    path = tmp_path / "flipped.onnx"
    rng = np.random.default_rng(0)
    for _ in range(80):
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            load(path)
        except ModelError as error:
            assert error.message


def test_tensor_shorter_than_its_shape(build, write) -> None:
    proto = _small(build)
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    _refused(write(proto), "'w'", "damaged")


def test_custom_operators_are_named(build, write) -> None:
    proto = _small(build)
    proto.graph.node[1].domain = "com.acme"
    proto.graph.node[1].op_type = "FastRelu"
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    _refused(write(proto), "com.acme", "FastRelu", "relu_1")


def test_custom_operator_inside_a_subgraph_is_named(build, write) -> None:
    inner = helper.make_node("Strange", ["x"], ["z"], "odd", domain="com.acme")
    branch = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("z", 1, None)])
    proto = build([("Relu", "x", "h")], {"x": (1, 4)}, ["y"], {"c": np.array(True)})
    proto.graph.node.append(
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch)
    )
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    _refused(write(proto), "com.acme", "Strange")


def test_unused_opset_imports_are_fine(build, write) -> None:
    proto = _small(build)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    model = load(write(proto))
    assert [o.domain for o in model.proto.opset_import] == [""]


def test_too_old_opset(build, write) -> None:
    _refused(write(build([("Relu", "x", "y")], {"x": (1, 4)}, ["y"], opset=7)), "opset 7", "9")


def test_old_files_declare_initializers_as_inputs(build, write) -> None:
    proto = build(
        [("Gemm", "x w b", "y")], {"x": (1, 4), "w": (4, 3), "b": (3,)}, ["y"], opset=9, ir_version=3
    )
    for name, shape in (("w", (4, 3)), ("b", (3,))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model = load(write(proto))
    assert model.inputs == ("x",)
    assert [i.name for i in model.proto.graph.input] == ["x"]


def test_functions_are_inlined(build, write) -> None:
    proto = build([("Relu", "x", "h")], {"x": ("n", 4)}, ["y"])
    body = [helper.make_node("Mul", ["a", "a"], ["s"]), helper.make_node("Add", ["s", "a"], ["r"])]
    proto.functions.append(
        helper.make_function("local", "SquareAdd", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    )
    proto.graph.node.append(helper.make_node("SquareAdd", ["h"], ["y"], "f", domain="local"))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    model = load(write(proto))
    assert [n.op_type for n in model.nodes.values()] == ["Relu", "Mul", "Add"]
    assert not model.proto.functions


def test_nodes_out_of_order_are_sorted_and_cycles_refused(build, write) -> None:
    proto = build([("Relu", "h", "y"), ("Neg", "x", "h")], {"x": (1, 4)}, ["y"])
    assert [n.op_type for n in load(write(proto)).nodes.values()] == ["Neg", "Relu"]
    _refused(write(build([("Relu", "h", "y"), ("Neg", "y", "h")], {"x": (1, 4)}, ["y"])), "cycle")
    _refused(write(build([("Add", "x gone", "y")], {"x": (1, 4)}, ["y"])), "gone")


# External data: the location is text of an untrusted file


def _external(build, location: str, length: int = 4 * 3 * 9 * 4) -> onnx.ModelProto:
    proto = _small(build)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return proto


def test_external_data_beside_the_model(build, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "weights").mkdir(parents=True)
    value = np.arange(108, dtype=np.float32)
    (folder / "weights" / "w.bin").write_bytes(value.tobytes())
    (folder / "model.onnx").write_bytes(_external(build, "weights/w.bin").SerializeToString())
    model = load(folder / "model.onnx")
    assert np.array_equal(model.initializers["w"].ravel(), value)
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.proto.graph.initializer)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "", "sub/../../secret.bin", "..\\secret.bin"]
)
def test_external_data_outside_the_folder_is_refused(build, tmp_path: Path, location: str) -> None:
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    (folder / "model.onnx").write_bytes(_external(build, location).SerializeToString())
    _refused(folder / "model.onnx", "outside")


def test_external_data_through_links_out_of_the_folder_is_refused(build, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(bytes(432))
    (folder / "w.bin").symlink_to(tmp_path / "elsewhere" / "w.bin")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    for location in ("w.bin", "linked/w.bin"):
        (folder / "model.onnx").write_bytes(_external(build, location).SerializeToString())
        _refused(folder / "model.onnx", "outside")


def test_external_data_missing_or_too_short(build, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_external(build, "w.bin").SerializeToString())
    _refused(path, "missing", "w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(100))
    _refused(path, "'w'")

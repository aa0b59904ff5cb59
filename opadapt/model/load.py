"""An ONNX file from disk: read safely, brought to the working opset, normalised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import external_data_helper

from opadapt.errors import ModelError, OpadaptError, first_line
from opadapt.model import validate
from opadapt.model.graph import Model, Source
from opadapt.model.normalise import normalise
from opadapt.model.opset import default_opset

OLDEST_OPSET = 9
_LARGEST_BYTES = (1 << 31) - 1  # what protobuf serializes
_DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
_EXPECTED = "an ONNX model file"
_EXPORT_AGAIN = "export the model to ONNX again, or copy the file again if it was transferred"


def load(path: str | Path, shapes: Mapping[str, Sequence[int | str]] | None = None) -> Model:
    """Read a model and normalise it (see ``normalise``).

    ``shapes`` pins inputs by name: numbers, or ``"N"`` for the leading one, the batch. Raises ModelError for a
    file that is not a readable ONNX model of opset 9 or newer, has custom operators, reaches for data outside its
    folder, or leaves a dimension open.
    """
    path = Path(path)
    try:
        proto = read(path)
        source = Source(path, default_opset(proto), proto.ir_version, proto)
        return normalise(proto, source, shapes or {})
    except OpadaptError:
        raise
    except Exception as error:  # onnx reports damage with RuntimeError, ConvertError, UnicodeDecodeError, ...
        raise ModelError(
            f"{path}: the file is damaged, or uses ONNX in a way that onnx itself refuses",
            expected=_EXPECTED,
            found=f"{type(error).__name__}: {first_line(error)}",
            do=_EXPORT_AGAIN,
        ) from error


def read(path: str | Path) -> onnx.ModelProto:
    """The file as it is, external data included. Raises ModelError."""
    path = Path(path)
    proto = _parse(path)
    _load_external(proto, path)
    if proto.ByteSize() > _LARGEST_BYTES:
        raise ModelError(
            f"{path} is too large",
            expected=f"less than {_LARGEST_BYTES} bytes, weights included",
            found=f"{proto.ByteSize()} bytes",
            do="adapt a smaller model: onnx.checker and ONNX Runtime take no larger one from memory",
        )
    _check_domains(proto)
    opset = default_opset(proto)
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"{path} uses opset {opset}",
            expected=f"opset {OLDEST_OPSET} or newer",
            found=f"opset {opset}",
            do="convert it first: onnx.version_converter.convert_version(model, 13)",
        )
    return proto


def _parse(path: Path) -> onnx.ModelProto:
    def refuse(message: str, found: str, do: str = _EXPORT_AGAIN) -> ModelError:
        return ModelError(f"{path}: {message}", expected=_EXPECTED, found=found, do=do)

    if path.is_dir():
        raise refuse("is a folder", "a folder", "name the .onnx file in it")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise refuse("no such file", "nothing", "check the path") from None
    except OSError as error:
        raise refuse("cannot be read", first_line(error), "check the path and permissions") from error
    if not raw:
        raise refuse("is empty", "0 bytes")
    if raw.startswith(b"version https://git-lfs"):
        raise refuse("is a Git LFS pointer", "a pointer, not the model", "fetch it with: git lfs pull")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        raise refuse("is not ONNX, or is cut off", f"{len(raw)} bytes that do not parse") from None
    graph = proto.graph
    if not (graph.node and proto.opset_import and graph.output and validate.graph_inputs(proto)):
        raise refuse("holds no model", "no operators, opset, inputs or outputs")
    names = [n for node in graph.node for n in (node.name, node.op_type, *node.input, *node.output)]
    if not all(isinstance(name, str) for name in names):  # protobuf gives bytes where text does not decode
        raise refuse("is damaged", "names that are no UTF-8 text")
    for tensor in _tensors(proto):
        _check_size(tensor, path)
    return proto


def _check_size(tensor: onnx.TensorProto, path: Path) -> None:
    """A file cut at a message boundary still parses: its tensors are too short."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    try:
        onnx.checker.check_tensor(tensor)
        if tensor.HasField("raw_data"):
            onnx.numpy_helper.to_array(tensor)
    except (onnx.checker.ValidationError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: tensor '{tensor.name}' is damaged",
            expected=f"data for shape {tuple(tensor.dims)}",
            found=first_line(error),
            do=_EXPORT_AGAIN,
        ) from error


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack.extend([*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])])


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    nodes = [n for f in proto.functions for n in f.node]
    for graph in _graphs(proto):
        yield from graph.initializer
        nodes.extend(graph.node)
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _load_external(proto: onnx.ModelProto, path: Path) -> None:
    """Load external tensors, from files inside the model's own folder alone.

    The location is text from an untrusted file: it may name any file the user can read.
    """
    folder = path.resolve().parent
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {e.key: e.value for e in tensor.external_data}.get("location", "")
        target = (folder / location).resolve()
        inside = location and not Path(location).is_absolute() and ".." not in Path(location).parts
        # resolve() follows symlinks, so a link that leaves the folder shows up here
        if not inside or not target.is_relative_to(folder) or "\\" in location:
            raise ModelError(
                f"{path}: tensor '{tensor.name}' wants data from outside the model's folder",
                expected=f"a file inside {folder}",
                found=location or "no location",
                do="save the model again with its data beside it (onnx.save with save_as_external_data=True)",
            )
        if not target.is_file():
            raise ModelError(
                f"{path}: external data of tensor '{tensor.name}' is missing",
                expected=str(target),
                found="no such file",
                do="copy the data file beside the model",
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (ValueError, OSError, onnx.checker.ValidationError) as error:
            raise ModelError(
                f"{path}: external data of tensor '{tensor.name}' cannot be read",
                expected=f"data for shape {tuple(tensor.dims)} in {target}",
                found=first_line(error),
                do="copy the data file again",
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        _check_size(tensor, path)


def _check_domains(proto: onnx.ModelProto) -> None:
    """Custom operators are refused; model-local functions of any domain are fine, they are inlined."""
    local = {(f.domain, f.name) for f in proto.functions}
    nodes = [n for g in _graphs(proto) for n in g.node] + [n for f in proto.functions for n in f.node]
    for node in nodes:
        if node.domain not in _DEFAULT_DOMAINS and (node.domain, node.op_type) not in local:
            raise ModelError(
                f"operator {node.op_type} of domain '{node.domain}' is not standard ONNX",
                expected="operators of the default domain alone",
                found=f"{node.domain}::{node.op_type} in node '{node.name}'",
                do="export the model without custom operators, and before ONNX Runtime's optimiser fuses it",
            )

"""The working model as others want it: a file of the original opset, or a proto of one batch size."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from opadapt.errors import ModelError, RunError, first_line
from opadapt.ir.types import BATCH
from opadapt.model import shapes, validate
from opadapt.model.graph import Model, drop_dead
from opadapt.model.load import OLDEST_OPSET
from opadapt.model.normalise import RTOL
from opadapt.model.opset import to_opset

_FIRST_IR_WITH_OWN_INITIALIZERS = 4


def at_batch(model: Model, batch: int) -> onnx.ModelProto:
    """The model with every shape static at this batch size. Raises ModelError where another is fixed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if not model.has_batch:
        first = shapes.dims_of(validate.graph_inputs(proto)[0]) or [1]
        if first[0] != batch:
            raise ModelError(
                f"the model's batch is fixed at {first[0]}",
                expected=f"batch {first[0]}",
                found=f"batch {batch}",
                do="it computes something else at other batch sizes, or does not run; measure at its own",
            )
    _set_batch(proto, batch)
    return proto


def _set_batch(proto: onnx.ModelProto, batch: int | str) -> None:
    infos = [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]
    for dim in (d for info in infos for d in info.type.tensor_type.shape.dim):
        if dim.dim_param == BATCH:
            dim.Clear()
            if isinstance(batch, int):
                dim.dim_value = batch
            else:
                dim.dim_param = batch


def flush_denormals(model: Model) -> Model:
    """Float32 weights below the smallest normal number become 0: they say nothing, and slow CPUs ten-fold."""
    tiny = np.finfo(np.float32).tiny
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        value = numpy_helper.to_array(tensor)
        if np.any((value != 0) & (np.abs(value) < tiny)):
            flushed = np.where(np.abs(value) < tiny, np.float32(0), value)
            tensor.CopyFrom(numpy_helper.from_array(flushed, tensor.name))
    return model.with_proto(proto)


def export(model: Model, path: str | Path, opset: int | None = None) -> Path:
    """Write the model as a file like the one it came from: its opset, IR version and batch dimension.

    ``opset`` chooses another. The file is checked by onnx and runs in ONNX Runtime with the working model's
    outputs before it appears under its name. Raises ModelError where an operator has no form at that opset,
    RunError where the file cannot be written.
    """
    path = Path(path)
    proto = exported(model, opset)
    write_atomic(path, proto.SerializeToString())
    return path


def exported(model: Model, opset: int | None = None) -> onnx.ModelProto:
    """What ``export`` writes."""
    target = model.source.opset if opset is None else opset
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= target <= newest:
        raise ModelError(
            f"opset {target} is not supported",
            expected=f"{OLDEST_OPSET} to {newest}",
            found=str(target),
            do="choose an opset in that range, or leave it out to keep the model's own",
        )
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", target)])
    ir_version = max(model.source.ir_version, needed) if opset is not None else model.source.ir_version
    proto = to_opset(flush_denormals(model).proto, target, ir_version)
    drop_dead(proto)
    proto.producer_name = "opadapt"
    _restore_batch(proto, model)
    if ir_version < _FIRST_IR_WITH_OWN_INITIALIZERS:
        for tensor in proto.graph.initializer:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            proto.graph.input.append(info)
    validate.check(proto)
    _compare(model, proto)
    return proto


def _restore_batch(proto: onnx.ModelProto, model: Model) -> None:
    """The batch dimension as the user gave it: a number, or the original's own symbol."""
    original = model.source.original
    declared = validate.graph_inputs(original)[0] if original is not None else None
    pinned = model.source.shapes.get(declared.name) if declared is not None else None
    if declared is None or not pinned:
        return
    if isinstance(pinned[0], int):
        _set_batch(proto, pinned[0])
    else:
        first = (shapes.dims_of(declared) or ["?"])[0]
        _set_batch(proto, first if isinstance(first, str) and first != "?" else BATCH)


def _compare(model: Model, proto: onnx.ModelProto) -> None:
    feeds = validate.random_feeds(proto, np.random.default_rng(0), 1)
    error = validate.compare_outputs(model.proto, proto, feeds)
    if not error <= RTOL:
        raise ModelError(
            "the exported model does not compute what the working model computes",
            expected=f"outputs equal within {RTOL:g} of the largest",
            found=f"{error:.3g}",
            do="choose another opset for the export, for example --opset 20",
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises RunError."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # a temporary file is private; the model need not be
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            f"{path} cannot be written",
            expected=f"{len(data)} bytes of room and the right to write",
            found=first_line(error),
            do="free some disk space" if full else "choose another path, or change its permissions",
        ) from error

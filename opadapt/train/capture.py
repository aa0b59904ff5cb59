"""Activations of named tensors of the original model, the targets of local distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from opadapt.errors import DataError, ModelError
from opadapt.train.evaluate import open_session, run_session


def with_outputs(proto: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model whose outputs are exactly the named tensors. Raises ModelError for an unknown one."""
    known = {i.name: i for i in [*proto.graph.value_info, *proto.graph.output, *proto.graph.input]}
    made = {name for node in proto.graph.node for name in node.output if name}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    del changed.graph.output[:]
    for name in tensors:
        if name not in made:
            raise ModelError(f"no node makes the tensor '{name}'", do="name an activation of the model")
        info = known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        changed.graph.output.append(info)
    return changed


def capture(
    proto: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    threads: int = 2,
    folder: Path | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Values of the named tensors, [samples, ...], over all batches of feeds, in order.

    ``tensors`` are activations or inputs of the model. With ``folder`` each array is written to
    ``folder/<number>.npy`` (number: position in ``tensors``) and returned as a read-only memory map; this
    bounds the memory by one batch. Raises ModelError for a tensor that does not exist, DataError without
    batches and for feeds that the model does not run on.
    """
    inputs = {i.name for i in proto.graph.input}
    wanted = [name for name in dict.fromkeys(tensors) if name not in inputs]
    session = open_session(with_outputs(proto, wanted), threads) if wanted else None
    chunks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in dict.fromkeys(tensors)}
    writers = {} if folder is None else {n: _Writer(folder / f"{i}.npy") for i, n in enumerate(chunks)}
    for feeds in batches:
        made = run_session(session, wanted, feeds) if session else []
        results = dict(feeds) | dict(zip(wanted, made, strict=True))
        for name in chunks:
            value = np.ascontiguousarray(results[name], dtype=np.float32)
            if name in writers:
                writers[name].append(value)
            else:
                chunks[name].append(value)
    if writers:
        return {name: writer.close() for name, writer in writers.items()}
    if any(not parts for parts in chunks.values()):
        raise DataError("nothing to capture", expected="one batch at least", found="no batch")
    return {name: np.concatenate(parts) for name, parts in chunks.items()}


class _Writer:
    """A float32 .npy that grows along its first axis; the header, whose length stays, is written again at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape: tuple[int, ...] | None = None
        self.file = path.open("wb")

    def append(self, value: NDArray[np.float32]) -> None:
        if self.shape is None:
            self._header(value.shape)
        self.shape = (len(value) + (self.shape[0] if self.shape else 0), *value.shape[1:])
        self.file.write(value.data)

    def _header(self, shape: tuple[int, ...]) -> None:
        self.file.seek(0)
        form = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, form)

    def close(self) -> NDArray[np.float32]:
        if self.shape is None:
            raise DataError("nothing to capture", expected="one batch at least", found="no batch")
        self._header(self.shape)
        self.file.close()
        mapped: NDArray[np.float32] = np.load(self.path, mmap_mode="r")
        return mapped

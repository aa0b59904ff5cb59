"""A model's outputs on data, through ONNX Runtime on this machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from opadapt.errors import DataError, ModelError
from opadapt.train.data import Split
from opadapt.train.memory import out_of_memory, ran_out
from opadapt.train.preprocess import Preprocess
from opadapt.train.signature import inputs_of, output_of

Arrays = dict[str, NDArray[Any]]


def _told(error: Exception) -> str:
    """What ONNX Runtime says, in one line: it names the indices that do not fit in lines of their own."""
    return shorten(str(error), 300, placeholder=" ...")


def open_session(proto: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU that leaves idle cores to others.

    Raises ModelError, and RunError where memory runs out.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        if ran_out(error):
            raise out_of_memory(error) from error
        raise ModelError("ONNX Runtime cannot load the model", found=_told(error)) from error


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """The named outputs for one batch. Raises DataError where the model does not run on the feeds, RunError where
    memory runs out."""
    try:
        found: list[NDArray[Any]] = session.run(outputs, dict(feeds))
    except Exception as error:  # as above
        if ran_out(error):
            raise out_of_memory(error) from error
        raise DataError(
            "ONNX Runtime cannot run the model on the data",
            found=_told(error),
        ) from error
    return found


def run_batched(
    proto: onnx.ModelProto,
    inputs: Mapping[str, NDArray[Any]],
    threads: int = 2,
    batch: int = 128,
    outputs: Collection[str] | None = None,
    prepare: Callable[[Arrays], Arrays] = dict,
) -> Arrays:
    """Outputs by name for all samples, computed ``batch`` at a time.

    ``inputs`` are [samples, ...] by input name; ``prepare`` turns a batch of them into the model's feeds
    (default: they are the feeds). A model with a fixed batch is run at that batch, the last one filled up by
    repetition. Raises ModelError where the model does not load, DataError where it does not run on the
    samples, RunError where memory runs out.
    """
    fixed = {port.batch for port in inputs_of(proto).values()} - {None}
    if len(fixed) > 1:
        raise ModelError(
            "the inputs have different fixed batches", found=", ".join(map(str, sorted(fixed, key=str)))
        )
    step = next(iter(fixed), None) or batch
    names = [output_of(proto, name).name for name in outputs or [o.name for o in proto.graph.output]]
    session = open_session(proto, threads)
    count = len(next(iter(inputs.values())))
    made: Arrays = {}
    for start in range(0, count, step):
        rows: Any = slice(start, min(start + step, count))
        size = rows.stop - start
        if fixed and size < step:
            rows = np.minimum(np.arange(start, start + step), count - 1)
        feeds = prepare({name: np.asarray(array[rows]) for name, array in inputs.items()})
        results = run_session(session, names, feeds)
        for name, result in zip(names, results, strict=True):
            if len(result) % (step if fixed else size):
                raise ModelError(f"output '{name}' has no batch axis", found=str(result.shape))
            per_sample = len(result) // (step if fixed else size)
            if name not in made:
                made[name] = np.empty((count * per_sample, *result.shape[1:]), result.dtype)
            made[name][start * per_sample : (start + size) * per_sample] = result[: size * per_sample]
    return made


def predict(
    proto: onnx.ModelProto,
    split: Split,
    preprocess: Preprocess,
    batch: int = 128,
    threads: int = 2,
    output: str | None = None,
) -> NDArray[Any]:
    """One output (the first by default) for every sample of a split, [samples, ...]. Raises as run_batched."""
    name = output_of(proto, output).name
    return run_batched(proto, split.inputs, threads, batch, [name], preprocess.numpy)[name]

"""Do two models compute the same? Random feeds, ONNX Runtime, the largest relative difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort

from opadapt.errors import ModelError, first_line
from opadapt.model.graph import NDArrayAny

Feeds = Mapping[str, NDArrayAny]

ORT_ERRORS = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in dir(ort.capi.onnxruntime_pybind11_state)
    if isinstance(getattr(ort.capi.onnxruntime_pybind11_state, name), type)
    and issubclass(getattr(ort.capi.onnxruntime_pybind11_state, name), Exception)
)
_QUIET = 4  # ONNX Runtime's severity "fatal": refusals reach the user as ModelError, once


def session(proto: onnx.ModelProto, optimise: bool = True) -> ort.InferenceSession:
    """A single-threaded CPU session. Raises ModelError where ONNX Runtime refuses the model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ModelError(
            "ONNX Runtime does not accept the model",
            expected=f"a model that ONNX Runtime {ort.__version__} loads",
            found=first_line(error),
            do="run the model in plain ONNX Runtime first, and export it again from the training framework",
        ) from error


def run(
    proto: onnx.ModelProto, feeds: Feeds, outputs: Sequence[str] | None = None, optimise: bool = True
) -> list[NDArrayAny]:
    """Outputs of one run. Raises ModelError where the model does not load or run."""
    return run_session(session(proto, optimise), feeds, outputs)


def run_session(
    made: ort.InferenceSession, feeds: Feeds, outputs: Sequence[str] | None = None
) -> list[NDArrayAny]:
    try:
        results: list[NDArrayAny] = made.run(None if outputs is None else list(outputs), dict(feeds))
    except (*ORT_ERRORS, ValueError) as error:
        raise ModelError(
            "the model does not run in ONNX Runtime",
            expected="a run with inputs " + ", ".join(f"{k} {v.dtype}{v.shape}" for k, v in feeds.items()),
            found=first_line(error),
            do="check the input shapes; --shape INPUT=... pins them",
        ) from error
    return results


def graph_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The real inputs: those of old files that only declare initializers are left out."""
    constants = {i.name for i in proto.graph.initializer}
    return [i for i in proto.graph.input if i.name not in constants]


def random_feeds(
    proto: onnx.ModelProto,
    rng: np.random.Generator,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> dict[str, NDArrayAny]:
    """One random array per input: normal floats, integers 0 or 1 (valid indices and masks), booleans.

    Dimensions without a number become ``batch``; ``shapes`` overrides the shapes by input name.
    """
    feeds: dict[str, NDArrayAny] = {}
    for info in graph_inputs(proto):
        tensor = info.type.tensor_type
        given = (shapes or {}).get(info.name)
        dims = [d.dim_value for d in tensor.shape.dim] if given is None else given
        shape = [d if isinstance(d, int) and d > 0 else batch for d in dims]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[info.name] = np.asarray(rng.standard_normal(shape), dtype=dtype)
        elif dtype == np.bool_ or np.issubdtype(dtype, np.integer):
            feeds[info.name] = np.asarray(rng.integers(0, 2, size=shape), dtype=dtype)
        else:
            raise ModelError(
                f"input '{info.name}' has type {onnx.TensorProto.DataType.Name(tensor.elem_type)}",
                expected="float, integer or boolean inputs",
                do="cut the text or complex preprocessing off the model and run it outside",
            )
    return feeds


def relative_error(a: NDArrayAny, b: NDArrayAny) -> float:
    """Largest |a - b| against the largest |a|; infinite where shapes, NaNs or infinities differ."""
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(
        x[~finite], y[~finite], equal_nan=True
    ):
        return float("inf")
    difference = float(np.max(np.abs(x[finite] - y[finite]), initial=0.0))
    return difference / max(float(np.max(np.abs(x[finite]), initial=0.0)), 1e-12)


def compare_outputs(
    a: onnx.ModelProto,
    b: onnx.ModelProto,
    feeds: Feeds | None = None,
    rng: np.random.Generator | None = None,
    batch: int = 1,
) -> float:
    """Largest relative error over all outputs, ``a`` being the reference (see ``relative_error``).

    Without ``feeds`` they are drawn from ``rng``. Outputs are matched by name. Raises ModelError.
    """
    if feeds is None:
        feeds = random_feeds(a, rng or np.random.default_rng(0), batch)
    names = [o.name for o in a.graph.output]
    if names != [o.name for o in b.graph.output]:
        raise ModelError(
            "the outputs differ", expected=", ".join(names), found=", ".join(o.name for o in b.graph.output)
        )
    pairs = zip(run(a, feeds, names), run(b, feeds, names), strict=True)
    return max((relative_error(x, y) for x, y in pairs), default=0.0)


def check(proto: onnx.ModelProto) -> None:
    """onnx's full check. Raises ModelError."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            "the model is not valid ONNX",
            expected="a model that onnx.checker accepts",
            found=first_line(error),
            do="check the original with onnx.checker.check_model, and export it again",
        ) from error

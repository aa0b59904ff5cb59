"""Shapes: pinning the inputs, inferring every tensor's, and the batch left free where that provably works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from opadapt.errors import ModelError, first_line
from opadapt.ir.types import BATCH, Dim
from opadapt.model import validate
from opadapt.model.graph import reads

Shapes = Mapping[str, Sequence[int | str]]
_PROOF_RTOL = 1e-5
_PROOF_COPIES = 3


def pin(proto: onnx.ModelProto, shapes: Shapes) -> dict[str, tuple[Dim, ...]]:
    """Set the graph inputs' shapes in place: given sizes, ``"N"`` for an open leading dimension.

    Returns the shapes by input. Raises ModelError for a dimension left open or a shape that does not fit.
    """
    inputs = validate.graph_inputs(proto)
    unknown = sorted(set(shapes) - {i.name for i in inputs})
    if unknown:
        raise ModelError(
            f"--shape names '{unknown[0]}', which is no input",
            expected="one of " + ", ".join(i.name for i in inputs),
            found=unknown[0],
            do="name one of the model's inputs",
        )
    return {info.name: _pin_input(info, shapes.get(info.name)) for info in inputs}


def _pin_input(info: onnx.ValueInfoProto, given: Sequence[int | str] | None) -> tuple[Dim, ...]:
    if not info.type.HasField("tensor_type"):
        raise ModelError(
            f"input '{info.name}' is no tensor",
            expected="tensor inputs",
            found=str(info.type.WhichOneof("value")),
            do="export the model with tensors as inputs",
        )
    tensor = info.type.tensor_type
    declared = [d.dim_value if d.dim_value > 0 else (d.dim_param or "?") for d in tensor.shape.dim]
    if given is None:
        if not tensor.HasField("shape"):
            raise ModelError(
                f"input '{info.name}' has no shape at all",
                expected="sizes for every dimension",
                do=f"add --shape {info.name}=... with its sizes, for example --shape {info.name}=N,3,224,224",
            )
        given = [BATCH if i == 0 and isinstance(d, str) else d for i, d in enumerate(declared)]
    elif tensor.HasField("shape"):
        _fits(info.name, declared, given)
        # N over a fixed size: freeing the batch is tried anyway, and the size is what is left if it fails
        given = [d if g == BATCH and isinstance(d, int) else g for g, d in zip(given, declared, strict=True)]
    still_open = [i for i, d in enumerate(given) if isinstance(d, str) and (i > 0 or d != BATCH)]
    if still_open:
        form = ",".join(f"D{i}" if i in still_open else str(d) for i, d in enumerate(given))
        example = ",".join("64" if i in still_open else str(d) for i, d in enumerate(given))
        what = ", ".join(f"{i} ('{declared[i]}')" for i in still_open)
        raise ModelError(
            f"input '{info.name}' has "
            + (f"an open dimension: {what}" if len(still_open) == 1 else f"open dimensions: {what}"),
            expected="a number for every dimension but the batch",
            found=f"{info.name}[{', '.join(map(str, declared))}]",
            do=f"add --shape {info.name}={form} with your numbers, for example --shape {info.name}={example}",
        )
    bad = [d for d in given if not isinstance(d, str) and d < 1]
    if bad:
        raise ModelError(
            f"--shape {info.name}={','.join(map(str, given))} is no shape",
            expected="positive numbers, and N for the leading dimension alone",
            found=str(bad[0]),
        )
    set_dims(info, given)
    return tuple(given)


def _fits(name: str, declared: Sequence[int | str], given: Sequence[int | str]) -> None:
    fits = len(declared) == len(given) and all(
        isinstance(d, str) or g == d or (g == BATCH and i == 0)
        for i, (d, g) in enumerate(zip(declared, given, strict=True))
    )
    if not fits:
        raise ModelError(
            f"--shape {name}={','.join(map(str, given))} contradicts the model",
            expected=f"{name}[{', '.join(map(str, declared))}], numbers in place of the open dimensions",
            found=",".join(map(str, given)),
        )


def set_dims(info: onnx.ValueInfoProto, dims: Sequence[int | str]) -> None:
    """Write a shape into a value info: numbers as sizes, text as symbols."""
    shape = info.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for dim in dims:
        if isinstance(dim, str):
            shape.dim.add().dim_param = dim
        else:
            shape.dim.add().dim_value = dim


def dims_of(info: onnx.ValueInfoProto) -> list[int | str] | None:
    """The shape as numbers and symbols (``"?"`` for nothing); None where the rank is unknown."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim]


def infer(proto: onnx.ModelProto, hints: Mapping[str, onnx.ValueInfoProto] | None = None) -> onnx.ModelProto:
    """The model with every tensor's type inferred afresh; ``hints`` are types known to be true.

    Symbols other than the batch are dropped. Raises ModelError where the types contradict each other.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    made = {name for node in bare.graph.node for name in node.output}
    outputs = {o.name for o in bare.graph.output}
    for name, hint in (hints or {}).items():
        if name in made and name not in outputs:
            bare.graph.value_info.append(hint)
    for output in bare.graph.output:
        if (hints or {}).get(output.name) is None:
            output.type.tensor_type.ClearField("shape")
        else:
            output.CopyFrom((hints or {})[output.name])
    try:
        typed = shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(
            "the model's shapes contradict each other",
            expected="shapes that onnx.shape_inference accepts",
            found=first_line(error),
            do="check --shape; otherwise export the model again",
        ) from error
    return typed


def complete(info: onnx.ValueInfoProto) -> bool:
    """Whether every dimension is a number or the batch."""
    dims = dims_of(info)
    return dims is not None and all(d == BATCH or not isinstance(d, str) for d in dims)


def type_all(
    proto: onnx.ModelProto, hints: Mapping[str, onnx.ValueInfoProto] | None = None
) -> onnx.ModelProto:
    """``infer``, then the shapes it could not find read off real runs at batch 2 and 3.

    A dimension that is 2 and 3 is the batch, an equal one a number; anything else stays open.
    """
    typed = infer(proto, hints)
    infos = {v.name: v for v in [*typed.graph.value_info, *typed.graph.output]}
    made = [name for node in typed.graph.node for name in node.output if name]
    loose = _data_dependent(typed)
    missing = [n for n in made if n not in loose and (n not in infos or not complete(infos[n]))]
    if not missing:
        return typed
    found = _measured(typed, missing)
    known = dict(hints or {}) | {v.name: v for v in typed.graph.value_info if complete(v)} | found
    return infer(proto, known)


_DATA_DEPENDENT = frozenset(
    {"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "If", "Scan", "Range"}
)


def _data_dependent(proto: onnx.ModelProto) -> set[str]:
    """Tensors whose shape may follow from values: one run says nothing about the next."""
    found: set[str] = set()
    for node in proto.graph.node:
        if node.op_type in _DATA_DEPENDENT or any(name in found for name in reads(node)):
            found.update(node.output)
    return found


def _measured(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, onnx.ValueInfoProto]:
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    del probe.graph.value_info[:]
    rng = np.random.default_rng(0)
    try:
        made = validate.session(probe, optimise=False)
        runs = [validate.run_session(made, validate.random_feeds(proto, rng, b), names) for b in (2, 3)]
    except ModelError:
        return {}  # the comparison with the original, which follows, gives the reason to the user
    found: dict[str, onnx.ValueInfoProto] = {}
    for name, a, b in zip(names, *runs, strict=True):
        if not isinstance(a, np.ndarray) or a.ndim != b.ndim:
            continue
        dims = [
            x if x == y else (BATCH if (x, y) == (2, 3) else f"{name}_{i}")
            for i, (x, y) in enumerate(zip(a.shape, b.shape, strict=True))
        ]
        info = onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), None)
        set_dims(info, dims)
        found[name] = info
    return found


def free_batch(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with the batch free, or None where it computes something else then, or does not run.

    The batch is the leading dimension of the inputs that have it open; where none has, of all inputs, if it is
    the same. Constant ``Reshape`` targets that spell it out get a 0 ("as the input") in its place. Proof: one run
    of three samples against three runs of one, on normal random inputs, equal within 1e-5 of the largest output.
    """
    leading = {i.name: dims[0] if (dims := dims_of(i)) else None for i in validate.graph_inputs(proto)}
    batched = [name for name, d in leading.items() if d == BATCH] or list(leading)
    size = leading[batched[0]] if batched else None
    if size is None or any(leading[name] != size for name in batched):
        return None
    freed = onnx.ModelProto()
    freed.CopyFrom(proto)
    if isinstance(size, int):
        _free_reshapes(freed, size)
    for info in validate.graph_inputs(freed):
        if info.name in batched:
            set_dims(info, [BATCH, *(dims_of(info) or [])[1:]])
    for output in freed.graph.output:
        output.type.tensor_type.ClearField("shape")
    del freed.graph.value_info[:]
    return freed if _batch_proven(freed, batched, size if isinstance(size, int) else 1) else None


def _free_reshapes(proto: onnx.ModelProto, size: int) -> None:
    constants = {i.name: i for i in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = numpy_helper.to_array(constants[node.input[1]])
        if target.size and target.flat[0] == size and target.size > 1:
            name = f"{node.output[0]}/free_shape"
            freed = np.concatenate([np.zeros(1, np.int64), target.ravel()[1:]])
            proto.graph.initializer.append(numpy_helper.from_array(freed, name))
            node.input[1] = name


def _batch_proven(proto: onnx.ModelProto, batched: Sequence[str], size: int) -> bool:
    feeds = validate.random_feeds(proto, np.random.default_rng(0), batch=_PROOF_COPIES * size)
    try:
        made = validate.session(proto)
        whole = validate.run_session(made, feeds)
        parts = [
            validate.run_session(
                made, {k: v[i * size : (i + 1) * size] if k in batched else v for k, v in feeds.items()}
            )
            for i in range(_PROOF_COPIES)
        ]
    except ModelError:
        return False
    for number, together in enumerate(whole):
        singly = [p[number] for p in parts]
        if together.ndim == 0 or any(s.ndim != together.ndim for s in singly):
            return False
        if validate.relative_error(np.concatenate(singly), together) > _PROOF_RTOL:
            return False
    return True

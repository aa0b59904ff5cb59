"""A model as read -> the form everything else works on (see ``graph.Model``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from opadapt.errors import ModelError
from opadapt.ir.types import BATCH, Dim
from opadapt.model import shapes as shape_rules
from opadapt.model import validate
from opadapt.model.constants import fold_constants
from opadapt.model.graph import Model, Source
from opadapt.model.opset import inline, to_opset
from opadapt.model.order import sort_nodes
from opadapt.resources import WORKING_IR_VERSION, WORKING_OPSET

RTOL = 1e-4


def normalise(
    proto: onnx.ModelProto, source: Source, shapes: Mapping[str, Sequence[int | str]] | None = None
) -> Model:
    """The working form of a model, proved to compute what the file computes.

    Functions are inlined, the working opset is set, inputs get their shapes (``shapes`` by input name; an open
    leading dimension is the batch ``N``), constants are folded, the batch is made free where that provably
    changes nothing, nodes get stable unique names, every tensor is typed, and the outputs are compared with
    those of the original in ONNX Runtime on random inputs. Raises ModelError with the reason.
    """
    proto = _without_double_names(proto)
    work = inline(proto)
    work = _without_constant_inputs(work)
    sort_nodes(work)
    pinned = shape_rules.pin(work, shapes or {})
    work = to_opset(shape_rules.infer(work), WORKING_OPSET, WORKING_IR_VERSION)
    work = fold_constants(work)
    work = _with_batch(work, pinned)
    name_nodes(work)
    validate.check(work)
    _compare(proto, work, pinned)
    return Model(work, Source(source.path, source.opset, source.ir_version, proto, pinned))


def _without_double_names(proto: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime refuses two nodes of one name, so the original could not be compared with."""
    named = [n.name for n in proto.graph.node if n.name]
    if len(named) == len(set(named)):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    name_nodes(result)
    return result


def _without_constant_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Before IR version 4 every initializer was declared as an input too."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    real = validate.graph_inputs(result)
    copies = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in real]
    del result.graph.input[:]
    result.graph.input.extend(copies)
    return result


def _with_batch(proto: onnx.ModelProto, pinned: Mapping[str, tuple[Dim, ...]]) -> onnx.ModelProto:
    """The batch as ``N`` where it is proven to be one, as a number elsewhere."""
    free = shape_rules.free_batch(proto)
    if free is not None:
        return fold_constants(free)
    if not any(BATCH in dims for dims in pinned.values()):
        return proto
    # the file says the batch is open, but it does not behave as one: 1 is the only size the user can expect
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for info in fixed.graph.input:
        shape_rules.set_dims(info, [1 if d == BATCH else d for d in pinned[info.name]])
    return fold_constants(fixed)


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give every node a unique name: its own if it has one, else operator and position, in place."""
    taken = {n.name for n in proto.graph.node}
    seen: set[str] = set()
    for position, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            base = node.name or f"{node.op_type}_{position}"
            name, k = base, 1
            while name in taken:
                name, k = f"{base}_{k}", k + 1
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _compare(original: onnx.ModelProto, work: onnx.ModelProto, pinned: Mapping[str, tuple[Dim, ...]]) -> None:
    feeds = validate.random_feeds(original, np.random.default_rng(0), 1, pinned)
    error = validate.compare_outputs(original, work, feeds)
    if not error <= RTOL:
        raise ModelError(
            "the normalised model does not compute what the file computes",
            expected=f"outputs equal within {RTOL:g} of the largest",
            found=f"{error:.3g}",
            do=f"export the model at opset {WORKING_OPSET}, which needs no conversion",
        )

"""What shape inference knows, written into the graph: constants in place of shape arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from opadapt.ir.types import BATCH
from opadapt.model import shapes
from opadapt.model.graph import NDArrayAny


def use_known_shapes(proto: onnx.ModelProto) -> bool:
    """One pass over the nodes, in place; whether anything changed.

    ``Shape`` of a fixed shape becomes a constant, ``Reshape`` to a known shape gets a constant target, ``Resize`` to
    computed sizes gets constant scales, ``CastLike`` of a known type becomes ``Cast``.
    """
    graph = proto.graph
    types = {v.name: v for v in [*graph.input, *graph.value_info, *graph.output]}
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if len(i.raw_data) < 4096}
    changed = False
    for node in graph.node:
        if node.op_type in ("Shape", "Size"):
            changed |= _constant_shape(node, types)
        elif node.op_type == "Reshape":
            target = _reshape_target(node, types, constants)
            if target is not None:
                name = f"{node.output[0]}/shape"
                graph.initializer.append(numpy_helper.from_array(target, name))
                node.input[1] = name
                del node.attribute[:]
                constants[name] = target
                changed = True
        elif node.op_type == "CastLike" and node.input[1] in types:
            to = types[node.input[1]].type.tensor_type.elem_type
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, node.name, to=to))
            changed = True
        elif node.op_type == "Resize":
            scales = _resize_scales(node, types, constants)
            if scales is not None:
                name = f"{node.output[0]}/scales"
                graph.initializer.append(numpy_helper.from_array(scales, name))
                del node.input[2:]
                node.input.append(name)
                changed = True
    return changed


def _constant_shape(node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto]) -> bool:
    info = types.get(node.input[0])
    dims = shapes.dims_of(info) if info is not None else None
    if dims is None:
        return False
    bounds = {a.name: a.i for a in node.attribute}
    if node.op_type == "Shape":
        dims = dims[bounds.get("start", 0) : bounds.get("end", len(dims))]
    if any(isinstance(d, str) for d in dims):
        return False
    value = np.array(dims if node.op_type == "Shape" else np.prod([int(d) for d in dims]), np.int64)
    constant = helper.make_node("Constant", [], node.output, node.name, value=numpy_helper.from_array(value))
    node.CopyFrom(constant)
    return True


def _reshape_target(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> NDArrayAny | None:
    """A constant target with the batch as 0 where it leads input and result, as -1 elsewhere; None: keep."""
    source, result = (types.get(n) for n in (node.input[0], node.output[0]))
    into = shapes.dims_of(source) if source is not None and shapes.complete(source) else None
    if into is None:
        return None
    out = shapes.dims_of(result) if result is not None and shapes.complete(result) else None
    given = constants.get(node.input[1])
    if out is None and given is not None:
        out = _solved(
            into, [int(v) for v in given], any(a.name == "allowzero" and a.i for a in node.attribute)
        )
    if out is None or out.count(BATCH) > 1 or 0 in out:
        return None
    leads = out[:1] == [BATCH] == into[:1]
    target = np.array([(0 if leads else -1) if d == BATCH else d for d in out], np.int64)
    return None if given is not None and np.array_equal(given, target) else target


def _solved(into: list[int | str], given: list[int], allowzero: bool) -> list[int | str] | None:
    """The result of a Reshape to a constant with a -1; None where the batch does not stay one dimension."""
    if allowzero:
        return None
    out: list[int | str] = [into[i] if d == 0 and i < len(into) else d for i, d in enumerate(given)]
    if -1 not in out:
        return out
    numbers = int(np.prod([d for d in into if isinstance(d, int)], dtype=np.int64))
    rest = int(np.prod([d for d in out if isinstance(d, int) and d != -1], dtype=np.int64))
    batch_left = into.count(BATCH) - out.count(BATCH)
    if rest == 0 or numbers % rest or batch_left not in (0, 1) or (batch_left and numbers != rest):
        return None
    return [(BATCH if batch_left else numbers // rest) if d == -1 else d for d in out]


def _resize_scales(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> NDArrayAny | None:
    """Scales in place of computed sizes (they are computed because they hold the batch); None: keep."""
    if len(node.input) < 4 or not node.input[3] or node.input[3] in constants:
        return None
    infos = [types.get(n) for n in (node.input[0], node.output[0])]
    into, out = (shapes.dims_of(i) if i is not None and shapes.complete(i) else None for i in infos)
    plain = all(a.name not in ("axes", "keep_aspect_ratio_policy") for a in node.attribute)
    if into is None or out is None or not plain:
        return None
    pairs = [(1, 1) if a == b == BATCH else (a, b) for a, b in zip(into, out, strict=True)]
    if any(isinstance(a, str) or isinstance(b, str) for a, b in pairs):
        return None
    scales = np.array([int(b) / int(a) for a, b in pairs], np.float32)
    fits = all(int(np.floor(np.float32(int(a)) * s)) == b for (a, b), s in zip(pairs, scales, strict=True))
    return scales if fits else None

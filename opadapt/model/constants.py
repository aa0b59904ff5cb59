"""What does not depend on the inputs becomes an initializer; what does nothing goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from opadapt.errors import ModelError
from opadapt.model import shapes, validate
from opadapt.model.graph import NDArrayAny, drop_dead, reads
from opadapt.model.known_shapes import use_known_shapes

# Folding these would throw away what they are for: random values, and weights kept in 8 bits
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
_NEVER = frozenset(_RANDOM | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_LARGEST_BYTES = 8 << 20  # a constant larger than this and than what it is made from stays computed
_ROUNDS = 16


def fold_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Constants and all that is computed from them become initializers, known shapes become constants, identities
    and dead nodes go. Names of what stays are kept. The result is typed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for _ in range(_ROUNDS):
        before = len(result.graph.node)
        _evaluate(result)
        _inline_branches(result)
        _drop_identities(result)
        drop_dead(result)
        result = shapes.infer(result, _known(result))
        if use_known_shapes(result) or len(result.graph.node) != before:
            continue
        result = shapes.type_all(result, _known(result))  # slower, and finds more: last
        if not use_known_shapes(result):
            break
    drop_dead(result)
    return result


def _known(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    return {v.name: v for v in [*proto.graph.value_info, *proto.graph.output] if shapes.complete(v)}


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _evaluate(proto: onnx.ModelProto) -> None:
    """One run of ONNX Runtime over all nodes whose inputs are constant."""
    sizes = {i.name: len(i.raw_data) or i.ByteSize() for i in proto.graph.initializer}
    foldable: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        plain = node.op_type not in _NEVER and not _has_subgraph(node)
        if plain and all(name in sizes for name in reads(node)):
            foldable.append(node)
            sizes.update(dict.fromkeys(node.output, 0))
    if not foldable:
        return
    made = {name for node in foldable for name in node.output if name}
    rest = [n for n in proto.graph.node if not made & set(n.output)]
    wanted = made & ({name for node in rest for name in reads(node)} | {o.name for o in proto.graph.output})
    values = _run_constants(proto, foldable, sorted(wanted))
    inputs_bytes = sum(sizes.values())
    kept = {name: v for name, v in values.items() if v.nbytes <= max(_LARGEST_BYTES, inputs_bytes)}
    for name, value in kept.items():
        proto.graph.initializer.append(numpy_helper.from_array(value.copy(), name))
    nodes = [n for n in proto.graph.node if not (n.output and all(not o or o in kept for o in n.output))]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _run_constants(
    proto: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]
) -> Mapping[str, NDArrayAny]:
    if not wanted:
        return {}
    used = {name for node in nodes for name in reads(node)}
    graph = helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [i for i in proto.graph.initializer if i.name in used],
    )
    part = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    try:
        values = validate.run(part, {}, wanted, optimise=False)
    except ModelError:
        # one node that ONNX Runtime cannot compute must not keep the others
        if len(wanted) == 1:
            return {}
        return {
            k: v for name in wanted for k, v in _run_constants(proto, _needed(nodes, name), [name]).items()
        }
    return {name: v for name, v in zip(wanted, values, strict=True) if isinstance(v, np.ndarray)}


def _needed(nodes: list[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def _inline_branches(proto: onnx.ModelProto) -> None:
    """An ``If`` whose condition is constant becomes the branch it takes."""
    constants = {i.name: i for i in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type != "If" or node.input[0] not in constants:
            nodes.append(node)
            continue
        taken = "then_branch" if numpy_helper.to_array(constants[node.input[0]]).item() else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == taken)
        prefix = f"{node.name or node.output[0]}/"
        own = {name: prefix + name for inner in branch.node for name in inner.output if name}
        own |= {i.name: prefix + i.name for i in branch.initializer}
        for tensor in branch.initializer:
            moved = proto.graph.initializer.add()
            moved.CopyFrom(tensor)
            moved.name = own[tensor.name]
        if any(map(_has_subgraph, branch.node)):
            nodes.append(node)  # renaming captured names below is not worth it: the If stays opaque
            continue
        for inner in branch.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(inner)
            copy.name = prefix + inner.name
            copy.input[:] = [own.get(name, name) for name in inner.input]
            copy.output[:] = [own.get(name, name) for name in inner.output]
            nodes.append(copy)
        for outer, output in zip(node.output, branch.output, strict=True):
            nodes.append(
                helper.make_node("Identity", [own.get(output.name, output.name)], [outer], f"{prefix}{outer}")
            )
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _is_identity(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> bool:
    test = _IDENTITIES.get(node.op_type)
    return test is not None and not any(node.output[1:]) and test(node, types, constants)


def _same_type(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> bool:
    a, b = types.get(node.input[0]), types.get(node.output[0])
    if a is None or b is None or not shapes.complete(a) or not shapes.complete(b):
        return False
    same_element = a.type.tensor_type.elem_type == b.type.tensor_type.elem_type
    return same_element and shapes.dims_of(a) == shapes.dims_of(b)


def _whole_slice(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> bool:
    """With steps ahead alone, what has all elements has them in their order; a flip keeps the type as well."""
    steps = node.input[4] if len(node.input) > 4 else ""
    ahead = not steps or (steps in constants and min(constants[steps].tolist(), default=1) > 0)
    return ahead and _same_type(node, types, constants)


def _no_training(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> bool:
    return (
        len(node.input) < 3
        or not node.input[2]
        or (node.input[2] in constants and not constants[node.input[2]].item())
    )


def _pads_nothing(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> bool:
    return node.input[1] in constants and not constants[node.input[1]].any()


def _identity_perm(
    node: onnx.NodeProto, types: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, NDArrayAny]
) -> bool:
    perm = [list(a.ints) for a in node.attribute if a.name == "perm"]
    return bool(perm) and perm[0] == sorted(perm[0])


_IDENTITIES: dict[str, Callable[..., bool]] = {
    "Identity": lambda *_: True,
    "Dropout": _no_training,
    "Pad": _pads_nothing,
    "Transpose": _identity_perm,
    **dict.fromkeys(("Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"), _same_type),
    "Slice": _whole_slice,
    "Concat": lambda node, *_: len(node.input) == 1,
}


def _drop_identities(proto: onnx.ModelProto) -> None:
    """Nodes that hand their input through go; a graph output keeps its name."""
    graph = proto.graph
    types = {v.name: v for v in [*graph.input, *graph.value_info, *graph.output]}
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if len(i.raw_data) < 4096}
    outputs = {o.name for o in graph.output}
    fixed = {i.name for i in graph.input} | {i.name for i in graph.initializer} | outputs
    captured = {name for n in graph.node if _has_subgraph(n) for name in reads(n)}
    rename: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
        if not _is_identity(node, types, constants) or node.output[0] in captured:
            kept.append(node)
        elif node.output[0] not in outputs:
            rename[node.output[0]] = node.input[0]
        elif node.input[0] in fixed or node.input[0] in captured:
            kept.append(node)
        else:
            rename[node.input[0]] = node.output[0]  # the producer takes over the output's name
            fixed.add(node.output[0])
            for earlier in kept:
                earlier.input[:] = [rename.get(name, name) for name in earlier.input]
                earlier.output[:] = [rename.get(name, name) for name in earlier.output]
    del graph.node[:]
    graph.node.extend(kept)

"""Down to an older opset: each node is relabelled where its meaning there is the same, rewritten where a rule
knows how, refused otherwise."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import defs, helper, inliner, numpy_helper

from opadapt.errors import ModelError
from opadapt.model.downgrade_rules import CHANGED, RULES, Context, Nodes, NoForm
from opadapt.model.graph import drop_dead


def downgrade(proto: onnx.ModelProto, current: int, opset: int) -> onnx.ModelProto:
    """The same model at an older opset. Raises ModelError naming the operator that has no form there."""
    result = _expand_functions(proto, opset)
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in [*result.graph.input, *result.graph.value_info, *result.graph.output]
        if v.type.tensor_type.HasField("shape")
    }
    constants = {i.name: numpy_helper.to_array(i) for i in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    ranks |= {name: value.ndim for name, value in constants.items()}
    taken = {name for node in result.graph.node for name in (*node.input, *node.output)} | set(constants)

    def fresh(wanted: str) -> str:
        names = (wanted if k == 0 else f"{wanted}_{k}" for k in range(len(taken) + 1))
        name = next(n for n in names if n not in taken)
        taken.add(name)
        return name

    context = Context(opset, constants, ranks, fresh, [])
    nodes = [new for node in result.graph.node for new in _lowered(node, context, current)]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(context.added)
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", opset))
    drop_dead(result)
    return result


def _expand_functions(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Operators newer than ``opset`` (Attention, RMSNormalization) replaced by the definition onnx ships."""
    wanted = set()
    for node in proto.graph.node:
        newest = _schema(node.op_type, _version(proto))
        if newest is None:
            continue
        changed = CHANGED.get(node.op_type, 0) > opset and newest.since_version >= CHANGED.get(
            node.op_type, 0
        )
        has_body = _has_definition(newest)
        if has_body and node.op_type not in RULES and (changed or not _exists(node.op_type, opset)):
            wanted.add(("", node.op_type))
    if not wanted:
        return proto
    full = onnx.ModelProto()
    full.CopyFrom(proto)
    for node in full.graph.node:
        if ("", node.op_type) in wanted:
            _state_defaults(node, _version(proto))
    typed = onnx.shape_inference.infer_shapes(full, data_prop=True)
    # the inliner asks for the type of every operand, and looks among the value infos alone
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in typed.graph.initializer
    )
    return inliner.inline_selected_functions(typed, sorted(wanted), inline_schema_functions=True)


def _state_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Attributes left out, with their defaults: the inliner leaves a body's reference to a missing one empty."""
    given = {a.name for a in node.attribute}
    schema = _schema(node.op_type, opset)
    for name, attribute in schema.attributes.items() if schema is not None else ():
        if name not in given and attribute.default_value.name:
            node.attribute.append(attribute.default_value)


def _has_definition(schema: Any) -> bool:
    """Whether onnx says the operator in terms of others (its type stubs do not know these two attributes)."""
    return bool(schema.has_function or schema.has_context_dependent_function)


def _version(proto: onnx.ModelProto) -> int:
    return int(proto.opset_import[0].version)


def _exists(op: str, opset: int) -> bool:
    return _schema(op, opset) is not None


def _schema(op: str, opset: int) -> defs.OpSchema | None:
    try:
        schema = defs.get_schema(op, opset)
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _lowered(node: onnx.NodeProto, context: Context, current: int) -> Nodes:
    below, rule = RULES.get(node.op_type, (0, None))
    try:
        if rule is not None and context.opset < below:
            return rule(node, context)
        return [_relabelled(node, context, current)]
    except NoForm as reason:
        raise ModelError(
            f"operator {node.op_type} (node '{node.name}') has no form at opset {context.opset}",
            expected=f"operators of opset {context.opset}",
            found=str(reason),
            do="choose a newer opset for the export, for example --opset 17 or --opset 20",
        ) from None


def _relabelled(node: onnx.NodeProto, context: Context, current: int) -> onnx.NodeProto:
    """The node as it is, attributes the older schema lacks dropped where they hold their default."""
    now, then = _schema(node.op_type, current), _schema(node.op_type, context.opset)
    if now is None or then is None:
        since = "a newer opset" if now is None else f"opset {now.since_version}"
        raise NoForm(f"the operator came with {since}")
    if now.since_version == then.since_version:
        return node
    if then.since_version < CHANGED.get(node.op_type, 0) <= now.since_version:
        raise NoForm(f"its meaning changed with opset {CHANGED[node.op_type]}")
    if len([name for name in node.input if name]) > then.max_input or len(node.output) > then.max_output:
        raise NoForm(f"it takes at most {then.max_input} inputs and {then.max_output} outputs there")
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    for attribute in node.attribute:
        if attribute.name in then.attributes:
            result.attribute.append(attribute)
            continue
        default = now.attributes[attribute.name].default_value
        if default.name and helper.get_attribute_value(default) == helper.get_attribute_value(attribute):
            continue
        raise NoForm(f"attribute {attribute.name} is newer")
    return result

"""Between opset versions: up through onnx's adapters, down by rules and relabelling.

onnxscript's version converter only relabels below opset 18 (it has adapters from 19 up), so the way up is
``onnx.version_converter``. Its way down lacks most adapters; the rules of ``downgrade`` replace it.
"""

from __future__ import annotations

import onnx
from onnx import inliner, version_converter

from opadapt.errors import ModelError, first_line
from opadapt.model.downgrade import downgrade
from opadapt.model.workbench import set_attribute


def default_opset(proto: onnx.ModelProto) -> int:
    """The version of the default domain that a model imports. Raises ModelError without one."""
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ModelError(
        "the model imports no opset of the default domain",
        expected="an opset_import with an empty domain",
        found=", ".join(f"{e.domain} {e.version}" for e in proto.opset_import),
        do="export the model with standard ONNX operators",
    )


def inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Model-local functions replaced by their bodies. Raises ModelError."""
    if not proto.functions:
        return proto
    try:
        return inliner.inline_local_functions(proto, convert_version=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            "the model's functions cannot be inlined",
            expected="model-local functions without recursion",
            found=first_line(error),
            do="export the model without functions",
        ) from error


def to_opset(proto: onnx.ModelProto, opset: int, ir_version: int) -> onnx.ModelProto:
    """The model at another opset and IR version, importing the default domain alone.

    Raises ModelError where an operator has no form at that version.
    """
    current = default_opset(proto)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", current))
    for node in result.graph.node:
        node.domain = ""  # "ai.onnx" is another name of it
    if opset > current:
        result = _upgrade(result, opset)
    elif opset < current:
        result = downgrade(result, current, opset)
    result.ir_version = ir_version
    return result


def _upgrade(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    proto.ir_version = max(proto.ir_version, 4)  # from 4 on initializers need not be inputs
    old_resize = default_opset(proto) < 11
    try:
        result = version_converter.convert_version(proto, opset)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        raise ModelError(
            f"the model does not convert from opset {default_opset(proto)} to {opset}",
            expected="operators that onnx.version_converter knows",
            found=first_line(error),
            do=f"export the model again at opset {opset}",
        ) from error
    if old_resize:
        for node in result.graph.node:
            if node.op_type == "Resize":
                # what Upsample and Resize computed before opset 11; the adapter leaves the new default
                set_attribute(node, "coordinate_transformation_mode", "asymmetric")
                set_attribute(node, "nearest_mode", "floor")
    return result

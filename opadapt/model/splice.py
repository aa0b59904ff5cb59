"""Replacing regions of a model by programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from opadapt.errors import ModelError, ProgramError
from opadapt.ir.program import Binding, Program
from opadapt.lower import Lowered, lower
from opadapt.model import shapes, validate
from opadapt.model.graph import Model, drop_dead
from opadapt.model.regions import Region


@dataclass(frozen=True, eq=False)
class Spliced:
    """The new model, and for each region what it became (for reading trained weights back)."""

    model: Model
    lowered: Mapping[Region, Lowered]


def splice(model: Model, replacements: Mapping[Region, tuple[Program, Binding]]) -> Model:
    """The model with each region's nodes replaced by its program's (see ``splice_parts``)."""
    return splice_parts(model, replacements).model


def splice_parts(model: Model, replacements: Mapping[Region, tuple[Program, Binding]]) -> Spliced:
    """Replace each region by a lowered program of the same signature.

    The region's output tensor keeps its name, everything new is named ``adapted_<k>/...`` with a ``k`` the
    model does not use yet, initializers nobody reads are dropped, types are inferred again, the checker runs.
    Raises ModelError where regions overlap or are not of this model, ProgramError where a program does not fit.
    """
    _check_regions(model, replacements)
    at: dict[str, Region] = {region.nodes[-1]: region for region in replacements}
    gone = {name for region in replacements for name in region.nodes}
    prefix = _prefixes(model)
    lowered: dict[Region, Lowered] = {}
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    nodes: list[onnx.NodeProto] = []
    hints = {v.name: v for v in [*proto.graph.value_info, *proto.graph.output] if shapes.complete(v)}
    for node in model.proto.graph.node:
        if node.name in at:
            # everything a region reads is made before its last node, and read after it
            region = at[node.name]
            program, binding = replacements[region]
            part = lower(program, binding, region.inputs, region.output, next(prefix))
            lowered[region] = part
            nodes.extend(part.nodes)
            proto.graph.initializer.extend(
                numpy_helper.from_array(value, name) for name, value in part.initializers.items()
            )
            for name, type_ in part.types.items():
                hints.setdefault(
                    name, helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(type_.shape))
                )
        elif node.name not in gone:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    drop_dead(proto)
    typed = shapes.type_all(proto, hints)
    validate.check(typed)
    return Spliced(model.with_proto(typed), lowered)


def _check_regions(model: Model, replacements: Mapping[Region, tuple[Program, Binding]]) -> None:
    owner: dict[str, Region] = {}
    for region, (program, _) in replacements.items():
        for name in region.nodes:
            if name not in model.nodes:
                raise ModelError(
                    f"region '{region.name}' is not of this model", expected=f"a node '{name}'", found="none"
                )
            if name in owner:
                raise ModelError(
                    f"regions '{owner[name].name}' and '{region.name}' overlap",
                    expected="each node in one region at most",
                    found=f"node '{name}' in both",
                    do="replace one of them",
                )
            owner[name] = region
        wanted = tuple(model.types[t] for t in region.inputs), model.types[region.output]
        got = program.inputs, program.signature.output
        if wanted != got:
            raise ProgramError(
                f"the program does not fit region '{region.name}'",
                expected=f"({', '.join(map(str, wanted[0]))}) -> {wanted[1]}",
                found=str(program.signature),
            )


def _prefixes(model: Model) -> Iterator[str]:
    taken = {n.split("/", 1)[0] for n in [*model.nodes, *model.producer, *model.initializers]}
    k = 0
    while True:
        if f"adapted_{k}" not in taken:
            yield f"adapted_{k}/"
        k += 1

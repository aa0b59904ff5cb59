"""program -> ONNX nodes: cover the program with matches from the output backwards, then write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from opadapt.errors import ProgramError
from opadapt.ir.program import Binding, Program
from opadapt.ir.spec import Array
from opadapt.ir.types import TensorType
from opadapt.lower.emit import Emitter, Layout, Tensor, layout_of
from opadapt.lower.match import Match
from opadapt.lower.plain import PLAIN
from opadapt.lower.recognise import RECOGNISERS
from opadapt.lower.view import View
from opadapt.resources import WORKING_IR_VERSION, WORKING_OPSET


@dataclass(frozen=True)
class Lowered:
    """What a program became.

    ``layout`` says for every initializer made from a parameter how (see ``raise_params``); ``constants``
    names the initializers that are no parameters and must not be trained; ``types`` gives the types of the
    tensors made by the nodes, as far as they hold a value of the program.
    """

    nodes: list[onnx.NodeProto]
    initializers: dict[str, Tensor]
    layout: dict[str, Layout]
    constants: frozenset[str]
    types: dict[str, TensorType]


def _match(view: View, value: int) -> Match:
    """The first fast form that fits the value, or its plain operator."""
    op = view.program[value].op
    for recogniser in RECOGNISERS.get(op, ()):
        found = recogniser(view, value)
        if found is not None:
            return found
    return PLAIN[op](view, value)


def _cover(view: View, agreed: frozenset[str] = frozenset()) -> dict[int, Match]:
    """For every value that must have a tensor, how it is made (``agreed``: see layout_of)."""
    first = len(view.program.inputs)
    cover: dict[int, Match] = {}
    demanded = {view.program.output}
    # a match reads smaller values only, so one pass downwards sees every demand before its value
    for value in range(view.program.output, first - 1, -1):
        if value in demanded:
            cover[value] = match = _match(view, value)
            demanded.update(match.operands)
            demanded.update(s.value for s in match.statics if layout_of(view, s, agreed) is None)
    return cover


def _agreed(view: View, cover: Mapping[int, Match]) -> frozenset[str]:
    """The parameters that several kernels read, all of them in the same layout."""
    wanted: dict[str, list[Layout]] = {}
    for match in cover.values():
        for static in match.statics:
            layout = layout_of(view, static, view.param_readers)
            if layout is not None:
                wanted.setdefault(layout.param, []).append(layout)
    return frozenset(
        name
        for name, layouts in wanted.items()
        if len(set(layouts)) == 1 < len(layouts) == view.param_readers[name]
    )


def lower(program: Program, binding: Binding, inputs: Sequence[str], output: str, prefix: str) -> Lowered:
    """ONNX nodes (topologically ordered) that read tensors ``inputs`` and make tensor ``output``.

    Every other tensor, node and initializer name begins with ``prefix``; parameter ``p`` becomes the
    initializer ``prefix + p`` in the layout its kernel wants. Raises ProgramError where the binding does not
    fit.
    """
    if len(inputs) != len(program.inputs):
        raise ProgramError("lower: input names", expected=str(len(program.inputs)), found=str(len(inputs)))
    view = View(program)
    out = Emitter(view, binding, inputs, output, prefix)
    if view.step(program.output) is None:
        out.node("Identity", [inputs[program.output]], output)
    cover = _cover(view)
    out.agreed = _agreed(view, cover)
    if out.agreed:
        cover = _cover(view, out.agreed)
    for value, match in sorted(cover.items()):
        target = out.target(value)
        match.emit(out, target)
        out.names.setdefault(value, target)
    made = {name for node in out.nodes for name in node.output}
    types = {name: program.types[value] for value, name in out.names.items() if name in made}
    return Lowered(out.nodes, out.initializers, out.layout, frozenset(out.constants), types)


def raise_params(lowered: Lowered, initializers: Mapping[str, Array]) -> dict[str, Array]:
    """The binding (program layout) of initializers trained after lowering; ProgramError if one lacks."""
    binding = {}
    for name, layout in lowered.layout.items():
        value = initializers.get(name)
        if value is None or tuple(value.shape) != layout.shape:
            found = "nothing" if value is None else str(value.shape)
            raise ProgramError(f"initializer '{name}'", expected=str(layout.shape), found=found)
        binding[layout.param] = layout.inverse(np.asarray(value, dtype=np.float32))
    return binding


def to_model(program: Program, binding: Binding, batch: int | None) -> onnx.ModelProto:
    """A standalone model: inputs ``x0``, ``x1``, ..., output ``y``; the batch stays symbolic (N) where None.

    Raises ProgramError where a parameter is named like an input or the output.
    """
    names = [f"x{i}" for i in range(len(program.inputs))]
    clash = set(program.params) & {*names, "y"}
    if clash:
        raise ProgramError(
            "to_model: a parameter named like an input or output", found=", ".join(sorted(clash))
        )
    lowered = lower(program, binding, names, "y", "")

    def info(name: str, type_: TensorType) -> onnx.ValueInfoProto:
        shape = type_.shape if batch is None else type_.at_batch(batch)
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))

    graph = helper.make_graph(
        lowered.nodes,
        "program",
        [info(name, type_) for name, type_ in zip(names, program.inputs, strict=True)],
        [info("y", program.signature.output)],
        [numpy_helper.from_array(value, name) for name, value in lowered.initializers.items()],
        value_info=[info(name, type_) for name, type_ in lowered.types.items() if name != "y"],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", WORKING_OPSET)], ir_version=WORKING_IR_VERSION
    )


def raise_model(program: Program, binding: Binding, model: onnx.ModelProto) -> dict[str, Array]:
    """The binding held by a trained ``to_model(program, binding, ...)``, in program layout."""
    names = [f"x{i}" for i in range(len(program.inputs))]
    trained = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    return raise_params(lower(program, binding, names, "y", ""), trained)


__all__ = ["Lowered", "lower", "raise_model", "raise_params", "to_model"]

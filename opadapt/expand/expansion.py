"""ONNX nodes -> program: one handler per node, in order, then only what the output needs is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from opadapt.errors import ProgramError, Refused
from opadapt.expand.context import Constant, Context, refuse
from opadapt.expand.table import HANDLERS
from opadapt.ir.canonical import live_values
from opadapt.ir.program import Builder, Instruction, Program
from opadapt.ir.spec import Array
from opadapt.ir.types import TensorType


@dataclass(frozen=True, eq=False)
class Expanded:
    """A region as a program.

    ``binding`` holds the parameters' values in the program's layout; ``origin`` names the initializer that
    each parameter came from.
    """

    program: Program
    binding: dict[str, Array]
    origin: dict[str, str]


def expand(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str],
    output: str,
    types: Mapping[str, TensorType],
    constants: Mapping[str, Constant],
) -> Expanded:
    """The program of a region: ``nodes`` in topological order, from activations ``inputs`` to ``output``.

    ``types`` gives the types of the inputs (of any further tensor it names, the expansion's type is checked
    against it). Raises Refused("expand", reason) for an operator or a form of it that has no expansion.
    """
    for name in inputs:
        if name not in types:
            raise Refused("expand", f"input '{name}' is no float32 tensor of known shape")
    builder = Builder([types[name] for name in inputs])
    context = Context(builder, {name: i for i, name in enumerate(inputs)}, constants)
    for node in nodes:
        _expand_node(context, node, types)
    if output not in context.values:
        raise Refused("expand", f"output '{output}' is made by none of the nodes")
    program = _live(builder.build(context.values[output]))
    kept = program.params
    return Expanded(
        program,
        {name: value for name, value in context.binding.items() if name in kept},
        {name: source for name, source in context.origin.items() if name in kept},
    )


def _expand_node(context: Context, node: onnx.NodeProto, types: Mapping[str, TensorType]) -> None:
    handler = HANDLERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if handler is None:
        raise Refused("expand", f"no expansion for operator {node.op_type} (node '{node.name}')")
    try:
        made = handler(context, node)
    except ProgramError as error:
        raise refuse(node, str(error)) from error
    for name, value in zip(node.output, made if isinstance(made, list) else [made], strict=False):
        context.values[name] = value
        found, stated = context.builder.types[value], types.get(name)
        if stated is not None and stated != found:
            raise refuse(node, f"makes '{name}' of type {found}, but the model says {stated}")


def _live(program: Program) -> Program:
    """The program without instructions its output does not need."""
    needed = live_values(program)
    builder = Builder(program.inputs)
    numbers = dict(enumerate(range(len(program.inputs))))
    for position, step in enumerate(program.body):
        value = program.number(position)
        if value in needed:
            renumbered = Instruction(step.op, tuple(numbers[a] for a in step.args), step.attrs)
            numbers[value] = builder.append(renumbered)
    return builder.build(numbers[program.output])


__all__ = ["Expanded", "expand"]

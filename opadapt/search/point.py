"""Point mutations: small edits of one program. Each takes a valid program and gives another valid one, or raises.

Those that change attributes are in ``point_attributes``; here are those that change instructions, and the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Builder, Instruction, Program, make
from opadapt.ir.types import BATCH, TensorType
from opadapt.search import point_attributes
from opadapt.search.depth import cut_points
from opadapt.search.edit import DoesNotApply, Mutation, Rng, finish, is_param, pick
from opadapt.search.space import Space

_ELEMENTWISE = {name: spec.arity for name, spec in TABLE.items() if spec.kind == "elementwise"}
# Attributes of the element-wise instructions that have any: ReLU6, hard tanh and the hard gate.
_BOUNDS: Mapping[str, tuple[Mapping[str, float], ...]] = {
    "clip": ({"min": 0.0, "max": 6.0}, {"min": -1.0, "max": 1.0}, {"min": 0.0, "max": 1.0})
}
_DEPTHWISE = frozenset({"pad", "window", "param", "contract"})


def _draw_elementwise(
    rng: Rng, space: Space, args: tuple[int, ...], besides: str | None = None
) -> Instruction:
    """An element-wise instruction that the space allows, of these operands."""
    ops = [
        op
        for op, arity in _ELEMENTWISE.items()
        if arity == len(args) and op in space.instructions and op != besides
    ]
    op = pick(rng, ops, f"other element-wise instruction of {len(args)} operands in the space")
    return make(op, args, **pick(rng, _BOUNDS.get(op, ({},)), "bounds"))


def elementwise(program: Program, rng: Rng, space: Space) -> Program:
    """Another element-wise function of the same operands."""
    found = [i for i, step in enumerate(program.body) if step.op in _ELEMENTWISE]
    position = pick(rng, found, "element-wise instruction")
    steps = list(program.body)
    steps[position] = _draw_elementwise(rng, space, steps[position].args, besides=steps[position].op)
    return finish(program, steps)


def operand(program: Program, rng: Rng, space: Space) -> Program:
    """Another operand, of the same type, made earlier."""
    several = [i for i, s in enumerate(program.body) if len(s.args) > 1]
    position = pick(rng, several, "instruction of two operands")
    step = program.body[position]
    slot = int(rng.integers(len(step.args)))
    wanted = program.types[step.args[slot]]
    others = [
        v for v in range(program.number(position)) if program.types[v] == wanted and v != step.args[slot]
    ]
    args = list(step.args)
    args[slot] = pick(rng, others, "other operand of that type")
    steps = list(program.body)
    steps[position] = Instruction(step.op, tuple(args), step.attrs)
    return finish(program, steps)


def _replace_value(program: Program, old: int, new: int) -> Program:
    steps = [Instruction(s.op, tuple(new if a == old else a for a in s.args), s.attrs) for s in program.body]
    return finish(program, steps, new if program.output == old else program.output)


def delete(program: Program, rng: Rng, space: Space) -> Program:
    """Drop one instruction: its readers read its operand, which has the same type."""
    droppable = [
        i
        for i, s in enumerate(program.body)
        if any(program.types[a] == program.types[program.number(i)] for a in s.args)
    ]
    position = pick(rng, droppable, "instruction that keeps its operand's type")
    step, value = program.body[position], program.number(position)
    same = [a for a in step.args if program.types[a] == program.types[value]]
    return _replace_value(program, value, pick(rng, same, "operand of that type"))


def shortcut(program: Program, rng: Rng, space: Space) -> Program:
    """Drop a stretch: the readers of a value read an earlier value of the same type."""
    pairs = [
        (old, new)
        for old in range(len(program.inputs), len(program.types))
        for new in range(old)
        if program.types[old] == program.types[new]
        and program.types[old].rank > 1
        and not is_param(program, old)
        and not is_param(program, new)
    ]
    old, new = pick(rng, pairs, "two values of one type")
    return _replace_value(program, old, new)


def bypass(program: Program, rng: Rng, space: Space) -> Program:
    """Drop a stretch between two cut points: whole blocks of a stage, which a shortcut would hardly ever meet."""
    pairs = [
        (old, new)
        for new, old in combinations(cut_points(program), 2)
        if program.types[old] == program.types[new]
    ]
    old, new = pick(rng, pairs, "two cut points of one type")
    return _replace_value(program, old, new)


def _insert(program: Program, after: int, grow: Callable[[Builder, int], int]) -> Program:
    """Insert what ``grow`` builds after a value; its readers read the new value."""
    builder = Builder(program.inputs)
    numbers = list(range(len(program.inputs)))
    renamed = dict(enumerate(numbers))
    if after < len(program.inputs):
        renamed[after] = grow(builder, after)
    for position, step in enumerate(program.body):
        value = program.number(position)
        made = builder.append(Instruction(step.op, tuple(renamed[a] for a in step.args), step.attrs))
        renamed[value] = grow(builder, made) if value == after else made
    return finish(program, builder.body, renamed[program.output])


def _activations_of(program: Program) -> list[int]:
    return [v for v, t in enumerate(program.types) if t.shape[:1] == (BATCH,)]


def insert_elementwise(program: Program, rng: Rng, space: Space) -> Program:
    """A new element-wise instruction of one operand after some activation."""
    after = pick(rng, _activations_of(program), "activation")
    drawn = _draw_elementwise(rng, space, (after,))
    return _insert(program, after, lambda b, v: b.append(Instruction(drawn.op, (v,), drawn.attrs)))


def insert_depthwise(program: Program, rng: Rng, space: Space) -> Program:
    """A new depthwise 3x3 convolution after some 4-D activation."""
    if not space.instructions >= _DEPTHWISE:
        raise DoesNotApply("the space allows no depthwise convolution")
    spatial = [
        v
        for v in _activations_of(program)
        if program.types[v].rank == 4 and min(_sizes(program.types[v])) > 2
    ]
    after = pick(rng, spatial, "activation of two spatial axes")
    channels = program.types[after].shape[1]
    name = unused(program, "dw")

    def grow(b: Builder, v: int) -> int:
        padded = b.emit("pad", v, pads=((0, 0), (0, 0), (1, 1), (1, 1)), value=0.0)
        window = b.emit("window", padded, axes=(2, 3), kernel=(3, 3), stride=(1, 1), dilation=(1, 1))
        weight = b.emit("param", name=name, shape=(channels, 3, 3))
        return b.emit("contract", window, weight, einsum="nchwij,cij->nchw")

    return _insert(program, after, grow)


def _sizes(t: TensorType) -> list[int]:
    return [d for d in t.shape[2:] if isinstance(d, int)]


def unused(program: Program, stem: str) -> str:
    """A parameter name that the program does not have yet."""
    number = 0
    while f"{stem}{number}" in program.params:
        number += 1
    return f"{stem}{number}"


MUTATIONS: Mapping[str, Mutation] = {
    "kernel": point_attributes.kernel,
    "dilation": point_attributes.dilation,
    "width": point_attributes.width,
    "groups": point_attributes.groups,
    "axis": point_attributes.axis,
    "factor": point_attributes.factor,
    "elementwise": elementwise,
    "operand": operand,
    "delete": delete,
    "shortcut": shortcut,
    "bypass": bypass,
    "insert_elementwise": insert_elementwise,
    "insert_depthwise": insert_depthwise,
}

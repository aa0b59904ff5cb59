"""Point mutations: small edits of one program. Each takes a valid program and gives a valid one, or raises."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from opadapt.errors import ProgramError
from opadapt.ir.compute import split_einsum
from opadapt.ir.instructions import TABLE
from opadapt.ir.program import Builder, Instruction, Program, make
from opadapt.ir.types import BATCH, TensorType
from opadapt.search.reinfer import reinfer

Rng = np.random.Generator
Mutation = Callable[[Program, Rng, Collection[str]], Program]

KERNELS = (1, 3, 5)
DILATIONS = (1, 2, 3)
WIDTHS = (0.25, 0.5, 0.75, 1.25, 1.5)
ACTIVATIONS = ("relu", "sigmoid", "tanh", "abs", "square")


def _pick(rng: Rng, items: Sequence[int], what: str) -> int:
    if not items:
        raise ProgramError(f"nothing to mutate: no {what}")
    return items[int(rng.integers(len(items)))]


def _positions(program: Program, ops: Collection[str]) -> list[int]:
    return [i for i, step in enumerate(program.body) if step.op in ops]


def _finish(program: Program, steps: Sequence[Instruction], output: int | None = None) -> Program:
    return reinfer(
        program.inputs, steps, program.output if output is None else output, program.signature.output
    )


def _resized_window(
    program: Program, position: int, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> Program:
    """Change a window's kernel or dilation, and the padding before it so that its output keeps its size."""
    steps = list(program.body)
    window = steps[position]
    source = window.args[0]
    pad = program[source] if source >= len(program.inputs) and program[source].op == "pad" else None
    readers = sum(source in step.args for step in program.body)
    pads = [list(p) for p in pad.attr["pads"]] if pad else [[0, 0] for _ in program.types[source].shape]
    for i, axis in enumerate(window.attr["axes"]):
        old = window.attr["dilation"][i] * (window.attr["kernel"][i] - 1)
        change = dilation[i] * (kernel[i] - 1) - old
        pads[axis][0] += change // 2
        pads[axis][1] += change - change // 2
    if any(p < 0 for pair in pads for p in pair) or (pad is None and any(map(any, pads))) or readers > 1:
        raise ProgramError("no padding to take the window's change")
    if pad is not None:
        new_pads = tuple(tuple(p) for p in pads)
        steps[source - len(program.inputs)] = make("pad", pad.args, pads=new_pads, value=pad.attr["value"])
    steps[position] = make("window", window.args, **{**window.attr, "kernel": kernel, "dilation": dilation})
    return _finish(program, steps)


def kernel(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Another kernel size along one axis, or all."""
    position = _pick(rng, _positions(program, {"window"}), "window")
    window = program.body[position]
    size = int(rng.choice(KERNELS))
    one = int(rng.integers(len(window.attr["axes"]) + 1))
    new = tuple(
        size if one in (i, len(window.attr["axes"])) else k for i, k in enumerate(window.attr["kernel"])
    )
    return _resized_window(program, position, new, window.attr["dilation"])


def dilation(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Another dilation, the same along every axis."""
    position = _pick(rng, _positions(program, {"window"}), "window")
    window = program.body[position]
    new = (int(rng.choice(DILATIONS)),) * len(window.attr["axes"])
    return _resized_window(program, position, window.attr["kernel"], new)


def width(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Another number of hidden channels: a free letter of a contraction's parameter (also the rank of a factor)."""
    contracts = [i for i in _positions(program, {"contract"}) if _is_param(program, program.body[i].args[1])]
    position = _pick(rng, contracts, "contraction with a parameter")
    a, b, _ = split_einsum(program.body[position].attr["einsum"])
    leaf = program.body[position].args[1]
    free = [axis for axis, letter in enumerate(b) if letter not in a]
    axis = _pick(rng, free, "free axis")
    shape = list(program[leaf].attr["shape"])
    scaled = shape[axis] * float(rng.choice(WIDTHS))
    shape[axis] = max(1, round(scaled / 4) * 4 if shape[axis] >= 8 else round(scaled))
    steps = list(program.body)
    steps[leaf - len(program.inputs)] = make("param", name=program[leaf].attr["name"], shape=tuple(shape))
    return _finish(program, steps)


def _is_param(program: Program, value: int) -> bool:
    return value >= len(program.inputs) and program[value].op == "param"


def groups(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Twice or half as many groups in a grouped contraction (contract "ng...,g...->ng...")."""
    grouped = [
        i
        for i in _positions(program, {"contract"})
        if program.body[i].attr["einsum"].startswith("ng")
        and _is_param(program, program.body[i].args[1])
        and program.body[i].args[0] >= len(program.inputs)
        and program[program.body[i].args[0]].op == "reshape"
    ]
    position = _pick(rng, grouped, "grouped contraction")
    source, leaf = program.body[position].args
    shape, weight = list(program[source].attr["shape"]), list(program[leaf].attr["shape"])
    double = bool(rng.integers(2))
    for sizes, start in ((shape, 1), (weight, 0)):
        axes = [start, start + 1] if sizes is shape else [0, 1, 2]
        for axis in axes:
            grow = (axis == start) == double
            if not grow and sizes[axis] % 2:
                raise ProgramError("the groups do not halve")
            sizes[axis] = sizes[axis] * 2 if grow else sizes[axis] // 2
    steps = list(program.body)
    steps[source - len(program.inputs)] = make("reshape", program[source].args, shape=tuple(shape))
    steps[leaf - len(program.inputs)] = make("param", name=program[leaf].attr["name"], shape=tuple(weight))
    return _finish(program, steps)


def activation(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Another element-wise function of one operand."""
    unary = [i for i in _positions(program, spec_names(1)) if program.body[i].op != "clip"]
    position = _pick(rng, unary, "element-wise instruction")
    choices = [op for op in ACTIVATIONS if op in allowed and op != program.body[position].op]
    if not choices:
        raise ProgramError("the space allows no other element-wise instruction")
    steps = list(program.body)
    steps[position] = make(choices[int(rng.integers(len(choices)))], program.body[position].args)
    return _finish(program, steps)


def spec_names(arity: int) -> set[str]:
    """Names of the element-wise instructions of an arity."""
    return {name for name, spec in TABLE.items() if spec.kind == "elementwise" and spec.arity == arity}


def operand(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Another operand, of the same type, made earlier."""
    position = _pick(
        rng, [i for i, s in enumerate(program.body) if len(s.args) > 1], "instruction of two operands"
    )
    step = program.body[position]
    slot = int(rng.integers(len(step.args)))
    wanted = program.types[step.args[slot]]
    others = [
        v for v in range(program.number(position)) if program.types[v] == wanted and v != step.args[slot]
    ]
    args = list(step.args)
    args[slot] = _pick(rng, others, "other operand of that type")
    steps = list(program.body)
    steps[position] = Instruction(step.op, tuple(args), step.attrs)
    return _finish(program, steps)


def _replace_value(program: Program, old: int, new: int) -> Program:
    steps = [Instruction(s.op, tuple(new if a == old else a for a in s.args), s.attrs) for s in program.body]
    return _finish(program, steps, new if program.output == old else program.output)


def delete(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Drop one instruction: its readers read its operand, which has the same type."""
    droppable = [
        i
        for i, s in enumerate(program.body)
        if any(program.types[a] == program.types[program.number(i)] for a in s.args)
    ]
    position = _pick(rng, droppable, "instruction that keeps its operand's type")
    step, value = program.body[position], program.number(position)
    same = [a for a in step.args if program.types[a] == program.types[value]]
    return _replace_value(program, value, same[int(rng.integers(len(same)))])


def shortcut(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """Drop a stretch: the readers of a value read an earlier value of the same type."""
    pairs = [
        (old, new)
        for old in range(len(program.inputs), len(program.types))
        for new in range(old)
        if program.types[old] == program.types[new]
        and program.types[old].rank > 1
        and not _is_param(program, old)
        and not _is_param(program, new)
    ]
    if not pairs:
        raise ProgramError("nothing to mutate: no two values of one type")
    old, new = pairs[int(rng.integers(len(pairs)))]
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
    return _finish(Program(program.inputs, tuple(builder.body), renamed[program.output]), builder.body)


def _activations_of(program: Program) -> list[int]:
    return [v for v, t in enumerate(program.types) if t.shape[:1] == (BATCH,)]


def insert_activation(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """A new element-wise instruction after some activation."""
    after = _pick(rng, _activations_of(program), "activation")
    choices = [op for op in ACTIVATIONS if op in allowed]
    if not choices:
        raise ProgramError("the space allows no element-wise instruction")
    op = choices[int(rng.integers(len(choices)))]
    return _insert(program, after, lambda b, v: b.emit(op, v))


def insert_depthwise(program: Program, rng: Rng, allowed: Collection[str]) -> Program:
    """A new depthwise 3x3 convolution after some 4-D activation."""
    spatial = [
        v
        for v in _activations_of(program)
        if program.types[v].rank == 4 and min(_sizes(program.types[v])) > 2
    ]
    after = _pick(rng, spatial, "activation of two spatial axes")
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


MUTATIONS: dict[str, Mutation] = {
    "kernel": kernel,
    "dilation": dilation,
    "width": width,
    "groups": groups,
    "activation": activation,
    "operand": operand,
    "delete": delete,
    "shortcut": shortcut,
    "insert_activation": insert_activation,
    "insert_depthwise": insert_depthwise,
}

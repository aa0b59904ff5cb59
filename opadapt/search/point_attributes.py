"""Point mutations that change attributes: kernel, dilation, width, groups, axis, and factors of all kinds."""

from __future__ import annotations

from collections.abc import Mapping

from opadapt.ir.compute import split_einsum
from opadapt.ir.program import Instruction, Program, make
from opadapt.ir.types import BATCH
from opadapt.search.edit import DoesNotApply, Rng, finish, is_param, pick, pick_choice, positions
from opadapt.search.space import Space

WIDTHS = (0.25, 0.5, 0.75, 1.25, 1.5)
# Instructions that work along an axis and could along another.
_ALONG = frozenset({"slice", "shift", "subsample", "upsample", "concat", "split", "sum", "mean", "max"})
# Of those: they change a resolution, and mostly something later changes it back.
_RESAMPLING = frozenset({"subsample", "upsample"})
# Instruction -> its attributes that say how much or which part; of several, those that move together.
_FACTORS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "shift": (("offset",),),
    "subsample": (("step",),),
    "upsample": (("factor",),),
    "slice": (("start",), ("stop",), ("start", "stop")),
    "split": (("index",), ("parts",)),
}


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
        raise DoesNotApply("no padding to take the window's change")
    if pad is not None:
        new_pads = tuple(tuple(p) for p in pads)
        steps[source - len(program.inputs)] = make("pad", pad.args, pads=new_pads, value=pad.attr["value"])
    steps[position] = make("window", window.args, **{**window.attr, "kernel": kernel, "dilation": dilation})
    return finish(program, steps)


def kernel(program: Program, rng: Rng, space: Space) -> Program:
    """Another kernel size of the space's choices along one axis, or all."""
    position = pick(rng, positions(program, {"window"}), "window")
    window = program.body[position]
    size = pick_choice(rng, space, "kernel")
    one = int(rng.integers(len(window.attr["axes"]) + 1))
    new = tuple(
        size if one in (i, len(window.attr["axes"])) else k for i, k in enumerate(window.attr["kernel"])
    )
    return _resized_window(program, position, new, window.attr["dilation"])


def dilation(program: Program, rng: Rng, space: Space) -> Program:
    """Another dilation of the space's choices, the same along every axis."""
    position = pick(rng, positions(program, {"window"}), "window")
    window = program.body[position]
    new = (pick_choice(rng, space, "dilation"),) * len(window.attr["axes"])
    return _resized_window(program, position, window.attr["kernel"], new)


def width(program: Program, rng: Rng, space: Space) -> Program:
    """Another number of hidden channels: a free letter of a contraction's parameter (also the rank of a factor)."""
    contracts = [i for i in positions(program, {"contract"}) if is_param(program, program.body[i].args[1])]
    position = pick(rng, contracts, "contraction with a parameter")
    a, b, _ = split_einsum(program.body[position].attr["einsum"])
    leaf = program.body[position].args[1]
    axis = pick(rng, [axis for axis, letter in enumerate(b) if letter not in a], "free axis")
    shape = list(program[leaf].attr["shape"])
    scaled = shape[axis] * pick(rng, WIDTHS, "width")
    shape[axis] = max(1, round(scaled / 4) * 4 if shape[axis] >= 8 else round(scaled))
    steps = list(program.body)
    steps[leaf - len(program.inputs)] = make("param", name=program[leaf].attr["name"], shape=tuple(shape))
    return finish(program, steps)


def groups(program: Program, rng: Rng, space: Space) -> Program:
    """Twice or half as many groups in a grouped contraction (contract "ng...,g...->ng...")."""
    grouped = [
        i
        for i in positions(program, {"contract"})
        if program.body[i].attr["einsum"].startswith("ng")
        and is_param(program, program.body[i].args[1])
        and program.body[i].args[0] >= len(program.inputs)
        and program[program.body[i].args[0]].op == "reshape"
    ]
    position = pick(rng, grouped, "grouped contraction")
    source, leaf = program.body[position].args
    shape, weight = list(program[source].attr["shape"]), list(program[leaf].attr["shape"])
    double = bool(rng.integers(2))
    for sizes, start in ((shape, 1), (weight, 0)):
        axes = [start, start + 1] if sizes is shape else [0, 1, 2]
        for axis in axes:
            grow = (axis == start) == double
            if not grow and sizes[axis] % 2:
                raise DoesNotApply("the groups do not halve")
            sizes[axis] = sizes[axis] * 2 if grow else sizes[axis] // 2
    steps = list(program.body)
    steps[source - len(program.inputs)] = make("reshape", program[source].args, shape=tuple(shape))
    steps[leaf - len(program.inputs)] = make("param", name=program[leaf].attr["name"], shape=tuple(weight))
    return finish(program, steps)


def axis(program: Program, rng: Rng, space: Space) -> Program:
    """The same along another axis: any of known size for a shift, one of equal size for all other instructions."""
    position = pick(rng, positions(program, _ALONG), "instruction along an axis")
    step = program.body[position]
    shape = program.types[step.args[0]].shape
    taken = step.attr.get("axes") or (step.attr["axis"],)
    old = pick(rng, taken, "axis")
    free = [a for a, size in enumerate(shape) if a not in taken and size != BATCH]
    new = pick(
        rng, [a for a in free if step.op == "shift" or shape[a] == shape[old]], "other axis of that size"
    )
    steps = list(program.body)
    for i in _together(program, position, rng):
        steps[i] = _along(steps[i], old, new)
    return finish(program, steps)


def _along(step: Instruction, old: int, new: int) -> Instruction:
    attrs = dict(step.attr)
    if "axes" in attrs:
        attrs["axes"] = tuple(sorted(new if a == old else a for a in attrs["axes"]))
    else:
        attrs["axis"] = new
    return make(step.op, step.args, **attrs)


def factor(program: Program, rng: Rng, space: Space) -> Program:
    """Another offset of a shift, step, factor, or part of a slice or split, near the one there is."""
    position = pick(rng, positions(program, _FACTORS), "instruction with a factor")
    step = program.body[position]
    which = int(rng.integers(len(_FACTORS[step.op])))
    value = step.attr[_FACTORS[step.op][which][0]]
    near = sorted({value - 1, value + 1, 2 * value, value // 2, -value} - {value})
    change = pick(rng, near, "other value") - value
    steps = list(program.body)
    for i in _together(program, position, rng):
        changed = {name: steps[i].attr[name] + change for name in _FACTORS[steps[i].op][which]}
        steps[i] = make(steps[i].op, steps[i].args, **{**steps[i].attr, **changed})
    return finish(program, steps)


def _together(program: Program, position: int, rng: Rng) -> list[int]:
    """The instruction alone; as often, where it changes a resolution, with all that do so along its axis."""
    step = program.body[position]
    if step.op not in _RESAMPLING or rng.integers(2):
        return [position]
    return [i for i in positions(program, _RESAMPLING) if program.body[i].attr["axis"] == step.attr["axis"]]


__all__ = ["axis", "dilation", "factor", "groups", "kernel", "width"]

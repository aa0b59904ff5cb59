"""One form for programs that mean the same by plain reading, and a digest of it.

Before -> after: constants are folded, dead code goes, ``pad by 0`` and its kind go, equal instructions merge,
instructions and the operands of the commuting ones come in one order. No arithmetic is reassociated; only a zero
may change its sign.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from opadapt.ir.compute import split_einsum
from opadapt.ir.fold import fold_constants
from opadapt.ir.instructions import COMMUTATIVE
from opadapt.ir.program import Builder, Instruction, Program, make
from opadapt.ir.spec import Attrs
from opadapt.ir.text import print_program
from opadapt.ir.types import TensorType


def live_values(program: Program, output: int | None = None, given: int | None = None) -> frozenset[int]:
    """The values that a value (the program's output, unless given) depends on, itself included. What ``given`` is made
    of is left out."""
    live, pending = set[int](), [program.output if output is None else output]
    while pending:
        value = pending.pop()
        if value not in live:
            live.add(value)
            if value >= len(program.inputs) and value != given:
                pending.extend(program[value].args)
    return frozenset(live)


def _same_type(types: Sequence[TensorType], result: TensorType, attrs: Attrs) -> bool:
    return types[0] == result


# Whether an instruction gives its only operand back unchanged, by instruction.
_TRIVIAL: Mapping[str, Callable[[Sequence[TensorType], TensorType, Attrs], bool]] = {
    "pad": _same_type,
    "slice": _same_type,
    "shift": lambda types, result, attrs: attrs["offset"] == 0,
    "subsample": lambda types, result, attrs: attrs["step"] == 1,
    "upsample": lambda types, result, attrs: attrs["factor"] == 1,
    "reshape": _same_type,
    "transpose": lambda types, result, attrs: list(attrs["perm"]) == sorted(attrs["perm"]),
    "concat": lambda types, result, attrs: len(types) == 1,
    "split": lambda types, result, attrs: attrs["parts"] == 1,
    "broadcast": _same_type,
    "clip": lambda types, result, attrs: attrs["min"] == -math.inf and attrs["max"] == math.inf,
}
# Instruction -> the constant that, as an operand of these positions, leaves the other operand as it is.
_NEUTRAL: Mapping[str, tuple[float, tuple[int, ...]]] = {
    "add": (0.0, (0, 1)),
    "sub": (0.0, (1,)),
    "mul": (1.0, (0, 1)),
    "div": (1.0, (1,)),
}
# Instructions that change nothing the second time.
_IDEMPOTENT = frozenset({"relu", "abs"})


def _simplified(program: Program) -> list[int]:
    """For each value, the equal value that stands for it (itself, or an earlier one)."""
    stands = list(range(len(program.inputs)))
    for position, step in enumerate(program.body):
        number = program.number(position)
        args = [stands[a] for a in step.args]
        types, result = [program.types[a] for a in args], program.types[number]
        twice = step.op in _IDEMPOTENT and _op(program, args[0]) == step.op
        if twice or (step.op in _TRIVIAL and _TRIVIAL[step.op](types, result, step.attr)):
            number = args[0]
        elif step.op in _NEUTRAL:
            constant, positions = _NEUTRAL[step.op]
            others = [args[1 - where] for where in positions if _is_const(program, args[where], constant)]
            number = next((other for other in others if program.types[other] == result), number)
        stands.append(number)
    return stands


def _op(program: Program, value: int) -> str | None:
    return program[value].op if value >= len(program.inputs) else None


def _is_const(program: Program, value: int, constant: float) -> bool:
    return _op(program, value) == "const" and program[value].attr["value"] == constant


def _hashes(program: Program, stands: Sequence[int]) -> list[tuple[bool, bytes]]:
    """For each value: whether it is free of inputs, and a hash of how it is made (no names, no letters)."""
    result: list[tuple[bool, bytes]] = []
    for number, type_ in enumerate(program.inputs):
        result.append((False, _sha(["input", str(number), str(type_)])))
    for step in program.body:
        parts = [result[stands[a]] for a in step.args]
        if step.op in COMMUTATIVE:
            parts.sort()
        attrs = [f"{k}={plain_einsum(v) if k == 'einsum' else v!r}" for k, v in step.attrs if k != "name"]
        free = all(free for free, _ in parts)
        result.append((free, _sha([step.op, *attrs, *(text.hex() for _, text in parts)])))
    return result


def _sha(parts: Iterable[str]) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()


def canonical(program: Program) -> Program:
    """The program's canonical form: equal meaning, signature and parameter names; idempotent.

    Operands of commuting instructions come computed values first, those made of parameters alone after them.
    """
    program = fold_constants(program)
    stands = _simplified(program)
    hashes = _hashes(program, stands)
    builder = Builder(program.inputs)
    made: dict[int, int] = {number: number for number in range(len(program.inputs))}
    merged: dict[Instruction, int] = {}
    orders: dict[int, tuple[int, ...]] = {}

    def order(value: int) -> tuple[int, ...]:
        step = program[value]
        args = tuple(stands[a] for a in step.args)
        if step.op in COMMUTATIVE:
            # equal hashes: what is made already comes first, so that a second pass finds the same order
            args = tuple(sorted(args, key=lambda a: (*hashes[a], made.get(a, math.inf), a)))
        return args

    output = stands[program.output]
    pending = [output]
    while pending:
        value = pending[-1]
        if value in made:
            pending.pop()
            continue
        if value not in orders:
            orders[value] = order(value)
        args = orders[value]
        missing = [a for a in args if a not in made]
        if missing:
            pending.extend(reversed(missing))
            continue
        step = Instruction(program[value].op, tuple(made[a] for a in args), program[value].attrs)
        if step not in merged:
            merged[step] = builder.append(step)
        made[value] = merged[step]
        pending.pop()
    return builder.build(made[output])


def digest(program: Program) -> str:
    """SHA-256 (hex) of the canonical text: blind to parameter names, einsum letters and operand order."""
    form = canonical(program)
    names = {name: f"p{i}" for i, name in enumerate(form.params)}
    body = tuple(_anonymous(step, names) for step in form.body)
    return _sha([print_program(Program(form.inputs, body, form.output))]).hex()


def _anonymous(step: Instruction, names: Mapping[str, str]) -> Instruction:
    if step.op == "param":
        return make("param", name=names[step.attr["name"]], shape=step.attr["shape"])
    if step.op == "contract":
        return make("contract", step.args, einsum=plain_einsum(step.attr["einsum"]))
    return step


def plain_einsum(text: str) -> str:
    """The einsum with its letters renamed a, b, c, .. by order of appearance."""
    a, b, out = split_einsum(text)
    letters = {old: new for new, old in zip(_ALPHABET, dict.fromkeys(a + b), strict=False)}
    first, second, result = ("".join(letters[c] for c in part) for part in (a, b, out))
    return f"{first},{second}->{result}"


_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

__all__ = ["canonical", "digest", "live_values", "plain_einsum"]

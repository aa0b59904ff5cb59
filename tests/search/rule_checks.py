"""Applying shipped rules in tests, and how far the result is from the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from rule_programs import Array, image, sample

from opadapt.ir.canonical import canonical
from opadapt.ir.interpret import run
from opadapt.ir.program import Binding, Program
from opadapt.search.candidate import Candidate
from opadapt.search.rewrite import apply, variants
from opadapt.search.seen import Seen
from opadapt.search.space import Rule, load_space
from opadapt.search.vary import reduced

SPACE = load_space()


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def first(
    rule: Rule, program: Program, binding: Binding, samples: Sequence[Array] = (), **choice: int
) -> tuple[Program, Binding]:
    """The rule applied at its first occurrence (with the choice given, if any)."""
    seen = Seen(Candidate(program, (binding,), "original", (tuple(samples),) if samples else ()))
    for match, found in variants(rule, program):
        if all(found[k] == v for k, v in choice.items()):
            return apply(rule, program, match, found, binding, rng(), partial(seen, 0))
    raise AssertionError(f"{rule.name} does not apply")


def exactly_reduced(program: Program, binding: Binding) -> tuple[Program, Binding]:
    """The program after every exact rule, until none applies."""
    left = reduced(Candidate(program, (binding,), "original"), SPACE.exact(), 0)
    return left.program, left.bindings[0]


def error(program: Program, binding: Binding, changed: Program, new: Binding) -> float:
    """Largest difference of the outputs over the largest output."""
    inputs = sample(program)
    before, after = run(program, inputs, binding), run(changed, inputs, new)
    return float(np.abs(after - before).max() / np.abs(before).max())


def squared_error(program: Program, binding: Binding, changed: Program, new: Binding) -> float:
    """Mean squared difference of the outputs over the mean square of the output."""
    inputs = sample(program)
    before, after = run(program, inputs, binding), run(changed, inputs, new)
    return float(np.square(after - before).mean() / np.square(before).mean())


def unconditional(name: str, **choose: tuple[int, ...]) -> Rule:
    rule = SPACE.rule(name)
    return replace(rule, where=(), choose={**rule.choose, **choose})


def single_conv(out: int = 16, stride: int = 1, kernel: int = 3, channels: int = 16) -> Program:
    b = image(channels, 12)
    return canonical(b.build(b.conv(0, "w", out, kernel=kernel, stride=stride)))


def changed_error(name: str, program: Program, w: Mapping[str, Array], **choice: int) -> float:
    binding = {k: v.astype(np.float32) for k, v in w.items()}
    return error(program, binding, *first(SPACE.rule(name), program, binding, **choice))

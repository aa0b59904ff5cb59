"""A candidate: a program, its weights for every member of a group, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opadapt.errors import ProgramError
from opadapt.ir.canonical import canonical, digest
from opadapt.ir.program import Binding, Program
from opadapt.ir.spec import Array


@dataclass(frozen=True, eq=False)
class Candidate:
    """A program with one binding per member of the group it is for.

    ``origin`` says in words how it was made ("seed", "rule separable", "mutation kernel", "crossover").
    ``samples``: some recorded values [rows, ...] of the program's inputs for each member, from which new weights may
    be computed; empty where there are none.
    """

    program: Program
    bindings: tuple[Binding, ...]
    origin: str
    samples: tuple[tuple[Array, ...], ...] = ()

    @property
    def digest(self) -> str:
        return digest(self.program)


def tidy(
    program: Program,
    bindings: tuple[Binding, ...],
    origin: str,
    samples: tuple[tuple[Array, ...], ...] = (),
) -> Candidate:
    """The candidate in canonical form, with the weights of removed parameters dropped."""
    clean = canonical(program)
    kept = tuple({name: binding[name] for name in clean.params} for binding in bindings)
    for binding in kept:
        for name, shape in clean.params.items():
            if binding[name].shape != tuple(shape):
                raise ProgramError(f"param '{name}'", expected=str(shape), found=str(binding[name].shape))
    return Candidate(clean, kept, origin, samples)


def inherit(old: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Weights of a new shape from weights of an old one: centred where an axis is a small kernel, leading
    elsewhere; new elements of a kernel are zero (the function is kept), other new ones small and random."""
    if old.ndim != len(shape):
        return fresh(shape, rng)
    result = np.asarray(old, dtype=np.float32)
    for axis, (have, want) in enumerate(zip(old.shape, shape, strict=True)):
        kernel = have % 2 == 1 and want % 2 == 1 and max(have, want) <= 7
        low = abs(have - want) // 2 if kernel else 0
        if want < have:
            result = np.take(result, range(low, low + want), axis=axis)
        elif want > have and kernel:
            pads = [(low, low) if a == axis else (0, 0) for a in range(old.ndim)]
            result = np.pad(result, pads)
        elif want > have:
            extra = (*result.shape[:axis], want - have, *result.shape[axis + 1 :])
            noise = rng.standard_normal(extra) * (float(result.std()) or 0.05)
            result = np.concatenate([result, noise.astype(np.float32)], axis=axis)
    return np.ascontiguousarray(result, dtype=np.float32)


def fresh(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """He initialisation (arXiv 1502.01852), taking every axis but the first as the fan-in; vectors are zero."""
    if len(shape) < 2:
        return np.zeros(shape, np.float32)
    fan_in = int(np.prod(shape[1:]))
    return np.asarray(rng.standard_normal(shape) * np.sqrt(2.0 / fan_in), dtype=np.float32)


def rebind(program: Program, binding: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """A binding for a changed program: weights kept where name and shape agree, inherited where only the name
    does, fresh for new names."""
    result: dict[str, Array] = {}
    for name, shape in program.params.items():
        old = binding.get(name)
        if old is None:
            result[name] = fresh(tuple(shape), rng)
        else:
            result[name] = old if old.shape == tuple(shape) else inherit(old, tuple(shape), rng)
    return result

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

    ``origin`` says in words how it was made, ``by`` which way of variation made it of its parents ("rule separable",
    "mutation kernel", "crossover"; empty for a seed).
    ``samples``: some recorded values [rows, ...] of the program's inputs for each member, from which new weights may
    be computed; empty where there are none.
    """

    program: Program
    bindings: tuple[Binding, ...]
    origin: str
    samples: tuple[tuple[Array, ...], ...] = ()
    by: str = ""

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
    elsewhere; new elements of a kernel are zero (the function is kept), other new ones small and random. Where the
    groups of a grouped convolution are others, the weights between channels that share a group in both stay."""
    if old.ndim != len(shape):
        return fresh(shape, rng)
    if _changes_groups(old.shape, shape):
        return _regrouped(old, shape)
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


def _changes_groups(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether [G, O/G, C/G, kernel] has another G, of the same O and C."""
    return (
        len(old) > 3
        and old[0] != new[0]
        and (old[0] * old[1], old[0] * old[2], *old[3:]) == (new[0] * new[1], new[0] * new[2], *new[3:])
    )


def _regrouped(old: Array, shape: tuple[int, ...]) -> Array:
    groups, outputs, inner, *kernel = old.shape
    dense = np.zeros((groups, outputs, groups, inner, *kernel), np.float32)
    dense[range(groups), :, range(groups)] = old
    split = dense.reshape(shape[0], shape[1], shape[0], shape[2], *kernel)
    return np.ascontiguousarray(split[range(shape[0]), :, range(shape[0])])


def identity(shape: tuple[int, ...]) -> Array:
    """A depthwise kernel [channels, *kernel] of odd sizes that gives back what it reads."""
    result = np.zeros(shape, np.float32)
    result.reshape(shape[0], -1)[:, result[0].size // 2] = 1
    return result


def fresh(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """He initialisation (arXiv 1502.01852), taking every axis but the first as the fan-in; vectors are zero."""
    if len(shape) < 2:
        return np.zeros(shape, np.float32)
    fan_in = int(np.prod(shape[1:]))
    return np.asarray(rng.standard_normal(shape) * np.sqrt(2.0 / fan_in), dtype=np.float32)


def rebind(program: Program, binding: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """A binding for a changed program: weights kept where name and shape agree, inherited where only the name
    does. A new kernel of a depthwise convolution does nothing yet; other new weights are fresh."""
    result: dict[str, Array] = {}
    for name, shape in program.params.items():
        old = binding.get(name)
        if old is None:
            kernel = len(shape) == 3 and all(size % 2 for size in shape[1:])
            result[name] = identity(tuple(shape)) if kernel else fresh(tuple(shape), rng)
        else:
            result[name] = old if old.shape == tuple(shape) else inherit(old, tuple(shape), rng)
    return result

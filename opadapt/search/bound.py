"""A lower bound on the latency of a program, learned from the latencies measured before it.

A latency is taken for a sum of what a program does, each at a rate that is not negative (least squares: Lawson and
Hanson 1974, chapter 23). Such a sum ranks badly, and need not rank: the bound lies below it by more than it was ever
above a measured latency, so that no program is refused that does as much as a fast one did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from opadapt.ir.cost import count_batched_macs, count_bytes, count_kinds, count_macs
from opadapt.ir.program import Program

ENOUGH = 20  # measured programs; there is no bound before
CAUTION = 1.25  # times the largest excess seen: the next may be larger


class Work(NamedTuple):
    """What a program does, counted at batch 1. Every program is one ``call``."""

    dense_macs: int
    batched_macs: int
    bytes: int
    computing: int  # instructions
    moving: int  # instructions that only move data
    call: int = 1


def work_of(program: Program) -> Work:
    """The work of a program's live instructions."""
    kinds, batched = count_kinds(program), count_batched_macs(program)
    moving = kinds["structure"]
    return Work(
        dense_macs=count_macs(program) - batched,
        batched_macs=batched,
        bytes=count_bytes(program),
        computing=kinds.total() - kinds["leaf"] - moving,
        moving=moving,
    )


@dataclass(frozen=True)
class Bound:
    """``rates`` (s per unit of work, as ``Work`` orders them) times the work, less ``slack_s``."""

    rates: tuple[float, ...] = (0.0,) * len(Work._fields)
    slack_s: float = 0.0

    def __call__(self, work: Work) -> float:
        """The least latency (s) of a program that does this; without rates 0 or less."""
        return sum(rate * amount for rate, amount in zip(self.rates, work, strict=True)) - self.slack_s


def learn(seen: Sequence[tuple[Work, float]]) -> Bound:
    """The bound that these works and their latencies (s) allow: for none of them above its latency.

    How far a prediction may be above the truth is asked of what it was made from, and of each with the rates that the
    others give it: what was measured only once would else be its own witness.
    """
    if len(seen) < ENOUGH:
        return Bound()
    works = np.array([work for work, _ in seen], dtype=np.float64)
    latencies_s = np.array([latency_s for _, latency_s in seen])
    fit = _fitted(works, latencies_s)
    excess_s = [0.0]
    for i, (work, latency_s) in enumerate(seen):
        others = _fitted(np.delete(works, i, axis=0), np.delete(latencies_s, i))
        excess_s.append(max(fit(work), others(work)) - latency_s)
    return Bound(fit.rates, CAUTION * max(excess_s))


def _fitted(works: NDArray[np.float64], latencies_s: NDArray[np.float64]) -> Bound:
    """The rates of least squares, without slack. All is scaled to at most 1: bytes are millions, seconds millionths."""
    units = works.max(axis=0)
    units[units == 0] = 1.0
    unit_s = float(latencies_s.max()) or 1.0
    rates, _ = nnls(works / units, latencies_s / unit_s, maxiter=100 * len(units))
    return Bound(tuple(float(rate) for rate in rates * unit_s / units))

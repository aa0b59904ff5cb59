"""Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943; with quarters as in Hyperband, Li et al. 2018).

A generation is distilled in rungs, each of them four times as long as the one before. The better half of what a rung
has trained goes on to the next; the others keep the error that they have, which more steps would have lowered.
"""

from __future__ import annotations

from collections.abc import Mapping

from opadapt.search.evolve import Scores

GROWTH = 4  # steps of a rung, in those of the one before


def rung_steps(steps: int, rungs: int) -> list[int]:
    """Optimiser steps of each rung, the last of ``steps``: (8, 30) for 30 in two rungs. Where a quarter is no fewer
    steps, there are fewer rungs."""
    return sorted({-(-steps // GROWTH**back) for back in range(rungs)})


def better_half(found: Mapping[int, Scores]) -> list[int]:
    """The keys of those that go on, in their order: half of them, rounded up, by non-dominated rank in latency and
    damage, then by damage."""
    ranks = _ranks(found)
    order = sorted(found, key=lambda i: (ranks[i], found[i].damage, i))
    return sorted(order[: (len(order) + 1) // 2])


def _ranks(found: Mapping[int, Scores]) -> dict[int, int]:
    """Non-dominated ranks (Deb et al. 2002, section III A), 0 the best: one more than the worst rank that beats it."""
    ranks: dict[int, int] = {}
    for i in sorted(found, key=lambda i: (found[i].latency_s, found[i].damage)):
        beaten_by = [rank for j, rank in ranks.items() if _beats(found[j], found[i])]
        ranks[i] = 1 + max(beaten_by, default=-1)
    return ranks


def _beats(one: Scores, other: Scores) -> bool:
    mine, theirs = (one.latency_s, one.damage), (other.latency_s, other.damage)
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

"""Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943; with quarters as in Hyperband, Li et al. 2018).

A generation is distilled in rungs, each of them four times as long as the one before. The better half of what a rung
has trained goes on to the next; the others keep the error that they have, which more steps would have lowered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opadapt.search.evolve import Scores

GROWTH = 4  # steps of a rung, in those of the one before


def rung_steps(steps: int, rungs: int) -> list[int]:
    """Optimiser steps of each rung, the last of ``steps``: (8, 30) for 30 in two rungs. Where a quarter is no fewer
    steps, there are fewer rungs."""
    return sorted({-(-steps // GROWTH**back) for back in range(rungs)})


def better_half(found: Mapping[int, Scores]) -> list[int]:
    """The keys of those that go on, in their order: half of them, rounded up, by non-dominated rank in latency and
    damage. Of the rank that not all have room in, those that are spread evenly over it, from the fastest to the least
    damaged: the fast ones are what a search for speed needs."""
    ranks = _ranks(found)
    half, chosen = (len(found) + 1) // 2, list[int]()
    for rank in sorted(set(ranks.values())):
        front = sorted(
            (i for i in found if ranks[i] == rank), key=lambda i: (found[i].latency_s, found[i].damage, i)
        )
        chosen += _spread(front, half - len(chosen))
    return sorted(chosen)


def _spread(front: Sequence[int], room: int) -> list[int]:
    """At most ``room`` of a front, its ends among them; the last one where there is room for one alone."""
    last = len(front) - 1
    if room > last:
        return list(front)
    return [front[last - k * last // max(room - 1, 1)] for k in range(room)]


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

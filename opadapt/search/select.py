"""Joint selection: at most one program per region, regions not overlapping, least damage under a latency target.

A 0/1 programme solved exactly by HiGHS (scipy.optimize.milp; Huangfu and Hall 2018):
minimise the summed damage, subject to the summed saving reaching what is needed and to each node of the model
being replaced at most once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from opadapt.errors import Refused


@dataclass(frozen=True)
class Option:
    """One program for one region: what it saves (s) and what it harms (damage inside the whole model)."""

    region: str
    nodes: tuple[str, ...]
    saved_s: float
    damage: float
    key: str


def select(options: Sequence[Option], needed_s: float, toll: float = 0.0) -> list[Option]:
    """The options of least summed damage, each with a ``toll`` beside it, that together save at least ``needed_s``
    seconds.

    Raises Refused("select") where even the most saving choice falls short; the reason names how much it saves.
    """
    useful = [o for o in options if o.saved_s > 0 and np.isfinite(o.damage)]
    most = _solve(useful, cost=[-o.saved_s for o in useful], needed_s=0.0)
    reachable = sum(o.saved_s for o in most)
    if reachable < needed_s:
        raise Refused(
            "select",
            f"all replacements together save {reachable * 1e3:.3f} ms, the target needs {needed_s * 1e3:.3f} ms",
        )
    return _solve(useful, cost=[max(o.damage, 0.0) + toll for o in useful], needed_s=needed_s)


def most_saving(options: Sequence[Option]) -> float:
    """The largest saving (s) that options without overlap can reach together."""
    useful = [o for o in options if o.saved_s > 0 and np.isfinite(o.damage)]
    return float(sum(o.saved_s for o in _solve(useful, [-o.saved_s for o in useful], 0.0)))


def saving_within(options: Sequence[Option], most_damage: float) -> float:
    """The largest saving (s) of options without overlap whose damages add up to at most ``most_damage``."""
    useful = [o for o in options if o.saved_s > 0 and np.isfinite(o.damage)]
    cost = [-o.saved_s for o in useful]
    return float(sum(o.saved_s for o in _solve(useful, cost, 0.0, most_damage)))


def _solve(
    options: Sequence[Option], cost: Sequence[float], needed_s: float, most_damage: float = np.inf
) -> list[Option]:
    if not options:
        return []
    nodes = {node: row for row, node in enumerate(dict.fromkeys(n for o in options for n in o.nodes))}
    pairs = [(nodes[n], column) for column, o in enumerate(options) for n in o.nodes]
    rows, columns = zip(*pairs, strict=True)
    overlap = csr_array((np.ones(len(pairs)), (rows, columns)), shape=(len(nodes), len(options)))
    # Seconds are around 1e-5, below the solver's feasibility tolerance: count in the needed saving, or in the largest.
    unit = needed_s or max(o.saved_s for o in options)
    saved = np.array([[o.saved_s / unit for o in options]])
    scale = max((abs(c) for c in cost), default=0.0) or 1.0
    constraints = [LinearConstraint(overlap, -np.inf, 1.0), LinearConstraint(saved, needed_s / unit, np.inf)]
    if np.isfinite(most_damage):
        harm = np.array([[max(o.damage, 0.0) for o in options]])
        constraints.append(LinearConstraint(harm, -np.inf, most_damage))
    result = milp(
        np.array(cost) / scale,
        integrality=np.ones(len(options), dtype=np.int8),
        bounds=Bounds(0, 1),
        constraints=constraints,
    )
    if result.x is None:
        raise Refused("select", f"no selection saves {needed_s * 1e3:.3f} ms: {result.message}")
    return [o for o, chosen in zip(options, result.x, strict=True) if chosen > 0.5]

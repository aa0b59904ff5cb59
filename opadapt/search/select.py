"""Joint selection: at most one program per region, regions not overlapping, least damage under a latency target.

A 0/1 programme solved exactly by HiGHS (scipy.optimize.milp; Huangfu and Hall 2018):
minimise the summed damage, subject to the summed saving reaching what is needed and to each node of the model
being replaced at most once. What two programs harm beyond the sum of both counts where both are chosen: the product
of their variables is a variable of its own (McCormick 1976, exact for 0/1 variables).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from opadapt.errors import Refused


@dataclass(frozen=True)
class Option:
    """One program for one region: what it saves (s) and what it harms (damage inside the whole model).

    ``beside``: by the key of another option, the damage of both together less the damages of each. A pair stands in one
    of the two.
    """

    region: str
    nodes: tuple[str, ...]
    saved_s: float
    damage: float
    key: str
    beside: Mapping[str, float] = field(default_factory=dict)


def select(options: Sequence[Option], needed_s: float, toll: float = 0.0) -> list[Option]:
    """The options of least damage together, each with a ``toll`` on top, that together save at least ``needed_s``
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
    columns = {o.key: column for column, o in enumerate(useful)}
    pairs = {
        (column, columns[other]): extra
        for column, o in enumerate(useful)
        for other, extra in o.beside.items()
        if other in columns
    }
    return _solve(useful, [max(o.damage, 0.0) + toll for o in useful], needed_s, pairs=pairs)


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
    options: Sequence[Option],
    cost: Sequence[float],
    needed_s: float,
    most_damage: float = np.inf,
    pairs: Mapping[tuple[int, int], float] | None = None,
) -> list[Option]:
    """The options of least cost; ``pairs``: by their columns, what two of them cost beside that; infinite: they
    exclude one another."""
    if not options:
        return []
    apart = [pair for pair, extra in (pairs or {}).items() if not np.isfinite(extra)]
    pairs = {pair: extra for pair, extra in (pairs or {}).items() if np.isfinite(extra)}
    count = len(options) + len(pairs)
    nodes = {node: row for row, node in enumerate(dict.fromkeys(n for o in options for n in o.nodes))}
    places = [(nodes[n], column) for column, o in enumerate(options) for n in o.nodes]
    places += [(len(nodes) + row, column) for row, pair in enumerate(apart) for column in pair]
    rows, columns = zip(*places, strict=True)
    overlap = csr_array((np.ones(len(places)), (rows, columns)), shape=(len(nodes) + len(apart), count))
    # Seconds are around 1e-5, below the solver's feasibility tolerance: count in the needed saving, or in the largest.
    unit = needed_s or max(o.saved_s for o in options)
    none = [0.0] * len(pairs)
    saved = np.array([[o.saved_s / unit for o in options] + none])
    costs = np.array([*cost, *pairs.values()])
    scale = float(np.abs(costs).max()) or 1.0
    constraints = [LinearConstraint(overlap, -np.inf, 1.0), LinearConstraint(saved, needed_s / unit, np.inf)]
    if np.isfinite(most_damage):
        harm = np.array([[max(o.damage, 0.0) for o in options] + none])
        constraints.append(LinearConstraint(harm, -np.inf, most_damage))
    if pairs:
        constraints.append(_products(list(pairs), len(options)))
    result = milp(
        costs / scale,
        integrality=np.repeat(np.array([1, 0], np.int8), [len(options), len(pairs)]),
        bounds=Bounds(0, 1),
        constraints=constraints,
    )
    if result.x is None:
        raise Refused("select", f"no selection saves {needed_s * 1e3:.3f} ms: {result.message}")
    return [o for o, chosen in zip(options, result.x[: len(options)], strict=True) if chosen > 0.5]


def _products(pairs: Sequence[tuple[int, int]], options: int) -> LinearConstraint:
    """The variables behind those of the options are the products of these pairs: ``z <= x``, ``z <= y`` and
    ``z >= x + y - 1``."""
    rows = np.zeros((3 * len(pairs), options + len(pairs)))
    for number, (one, other) in enumerate(pairs):
        first, second, both = rows[3 * number : 3 * number + 3]
        first[[one, options + number]] = -1.0, 1.0
        second[[other, options + number]] = -1.0, 1.0
        both[[one, other, options + number]] = 1.0, 1.0, -1.0
    return LinearConstraint(csr_array(rows), -np.inf, np.tile([0.0, 0.0, 1.0], len(pairs)))

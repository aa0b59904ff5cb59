#!/usr/bin/env python3
"""Is it worth measuring where the time goes? The groups that latency, MACs and chance choose, searched alike.

    python scripts/bench/ranking.py -c configs/quickstart/quickstart.yaml [--top 1 2 3] [--damage 0.01 0.05]
        [--out build/ranking]

All groups of the model are searched once. Then, for each way of ranking and each number N of groups, the largest
speed-up is computed that replacements in the top N groups reach together within a summed damage (KL divergence to the
original on held-back training data, before fine-tuning; 0/1 programme): what a search of N groups would have had to
offer. For chance, the mean over all choices of N groups. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from opadapt.experiment import create_run, load_experiment, open_run
from opadapt.report.progress import PlainProgress
from opadapt.search.select import Option, saving_within
from opadapt.steps.activations import record
from opadapt.steps.baseline import measure
from opadapt.steps.context import open_context
from opadapt.steps.explore import rank_groups
from opadapt.steps.harm import Harm
from opadapt.steps.searching import search_groups

ALL = 1000  # groups: more than any model has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("--top", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--damage", type=float, nargs="+", default=[0.01, 0.05, 0.2])
    parser.add_argument("--out", type=Path, default=Path("build/ranking"))
    given = parser.parse_args()
    base = load_experiment(given.config)
    changes = {
        "search": base.search.model_copy(update={"top_groups": ALL}),
        "name": "ranking",
        "runs": given.out.absolute() / "runs",
        "budget_minutes": None,
    }
    folder = given.out.absolute() / "runs" / "ranking"
    if not folder.exists():
        create_run(base.model_copy(update=changes))
    with open_context(
        open_run(folder), folder, PlainProgress(lambda s: print(s, file=sys.stderr))
    ) as context:
        assert context.dataset is not None
        model = context.original
        profile = measure(context, model, "original")
        ranked = rank_groups(context, model, profile)
        activations = record(context, context.dataset, model, [r.group for r in ranked], "round0")
        harm = Harm(context, context.dataset, model)
        explored, found = search_groups(context, model, profile, ranked, activations, harm)
    macs = {node.name: node.macs for node in profile.nodes}
    names = [one.name for one in explored]
    options: dict[str, list[Option]] = {name: [] for name in names}
    for offer in found.values():
        options[offer.group].append(offer.option)
    latency = {one.name: one.ranked.latency_s for one in explored}
    work = {
        one.name: sum(macs.get(n, 0) for m in one.ranked.group.members for n in m.region.nodes)
        for one in explored
    }

    def speedup(groups: Sequence[str], damage: float) -> float:
        saved_s = saving_within([o for g in groups for o in options[g]], damage)
        return profile.wall.value / (profile.wall.value - saved_s)

    table = Table("damage", "groups", "by latency", "by MACs", "by chance", "all groups")
    for damage in given.damage:
        for top in [n for n in given.top if n < len(names)]:
            orders = [sorted(names, key=lambda n, by=by: -by[n]) for by in (latency, work)]  # type: ignore[misc]
            chance = [speedup(g, damage) for g in itertools.combinations(names, top)]
            cells = [speedup(order[:top], damage) for order in orders] + [statistics.mean(chance)]
            cells.append(speedup(names, damage))
            table.add_row(f"{damage:g}", str(top), *(f"{cell:.2f}x" for cell in cells))
    Console(width=80).print(table)
    print(f"{len(names)} groups, predicted from measured savings; no fine-tuning")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How well each way of searching uses its trials: hypervolume against trials, evolution beside its ablations.

    python scripts/bench/search_efficiency.py -c configs/quickstart/quickstart.yaml [--trials 500] [--seeds 5]
        [--group 0] [--methods evolution random] [--error 1.0] [--out build/efficiency]

For every seed the worst group of the model (or the ``--group``-th worst) is searched by each method with the same
number of trials: a trial is a candidate that was asked for, refused or not. The hypervolume is the share of the unit
square (latency over the original's, error of the region's output after a short distillation over ``--error``, both at
most 1) that the scored candidates dominate; 0 is the original alone. An ``--error`` that leaving the region out does
not reach tells more than 1: there most of the area is that program's. What a candidate saves is measured beside the
original; the group's share of the model's latency, which it is a part of, is the median of the profiles of all runs.
Prints the median and the 95 % interval of the mean over the seeds (Student's t) at several numbers of trials, then
the mean by which the first method is ahead of each other one, seed by seed, with its interval, and writes
efficiency.json and efficiency.png. Interrupted, it goes on where it was. Needs the packages of the dependency group
"bench".
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from rich.console import Console
from rich.table import Column, Table
from ruamel.yaml import YAML
from scipy.stats import t as student

from opadapt.experiment import Experiment, create_run, load_experiment, open_run
from opadapt.report.progress import PlainProgress
from opadapt.resources import shipped
from opadapt.steps.activations import record
from opadapt.steps.ahead import run
from opadapt.steps.baseline import measure
from opadapt.steps.context import open_context
from opadapt.steps.explore import explore, rank_groups

SHOWN = (100, 200, 300, 500, 1000)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "evolution": {},
    "no crossover": {"crossover": 0.0},
    "no rules": {"rewrite": 0.0, "space": "without rules"},
    "not adaptive": {"adaptive": False},
    "random": {"method": "random"},
}


def without_rules(out: Path) -> str:
    """A copy of the shipped space that holds no rules: seeds and mutations are point mutations alone."""
    yaml = YAML(typ="safe")
    with shipped("search_space", "default.yaml").open() as file:
        space = yaml.load(file)
    target = out / "without_rules.yaml"
    with target.open("w") as file:
        yaml.dump(space | {"rules": []}, file)
    return str(target)


def variant(base: Experiment, method: str, seed: int, trials: int, out: Path) -> Experiment:
    settings = dict(METHODS[method])
    if settings.get("space") == "without rules":
        settings["space"] = without_rules(out)
    # errors after different numbers of steps could not be compared
    settings |= {"generations": -(-trials // base.search.population), "rungs": 1}
    name = f"{method.replace(' ', '-')}-{seed}"
    changes = {
        "search": base.search.model_copy(update=settings),
        "seed": seed,
        "name": name,
        "runs": out / "runs",
        "budget_minutes": None,
    }
    return base.model_copy(update=changes)


@dataclass(frozen=True)
class Searched:
    """The group's share of the model's latency by the run's profile, and for every trial in the order asked for the
    share of the model's latency that it saves and its damage; None of one that was refused."""

    share: float
    trials: Sequence[tuple[float, float] | None]

    def curve(self, share: float, error: float, trials: int) -> list[float]:
        """The hypervolume after each trial up to an error, where the group has this share of the model's latency."""
        points: list[tuple[float, float]] = []
        found = []
        for trial in self.trials[:trials]:
            if trial is not None:
                saved, damage = trial
                points.append((max(1 - saved / share, 0.0), max(min(damage / error, 1.0), 0.0)))
            found.append(hypervolume(points))
        return found


def searched(experiment: Experiment, number: int) -> Searched:
    """A search of the group, from its run's journal as far as that goes."""
    folder = experiment.runs / str(experiment.name)
    experiment = open_run(folder) if folder.exists() else experiment
    if not folder.exists():
        experiment, folder = create_run(experiment)
    with open_context(
        experiment, folder, PlainProgress(lambda line: print(line, file=sys.stderr))
    ) as context:
        assert context.dataset is not None
        profile = measure(context, context.original, "original")
        ranked = rank_groups(context, context.original, profile)[number]
        activations = record(context, context.dataset, context.original, [ranked.group], "round0")
        run(explore(context, context.original, profile, ranked, activations))
        share = ranked.latency_s / profile.wall.value
        rows = [row for _, row in context.journal.results("candidate")]
    return Searched(
        share,
        [
            ((1 - row["latency_s"] / ranked.member_s) * share, row["damage"]) if "latency_s" in row else None
            for row in rows
        ],
    )


def hypervolume(points: list[tuple[float, float]]) -> float:
    """The area of the unit square that points (both coordinates minimised) dominate."""
    area, lowest = 0.0, 1.0
    for x, y in sorted(points):
        if x < 1 and y < lowest:
            area += (1 - x) * (lowest - y)
            lowest = y
    return area


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean (Student's t)."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return mean, mean
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5
    return mean - half, mean + half


def show(curves: Mapping[str, list[list[float]]], trials: int) -> None:
    columns = [n for n in SHOWN if n <= trials]
    first, *others = curves
    table = Table(Column("method", width=12), *(f"{n} trials" for n in columns))
    at = {m: [[c[min(n, len(c)) - 1] for c in found] for n in columns] for m, found in curves.items()}
    for method, found in at.items():
        table.add_row(method, *(cell(f"{statistics.median(values):.3f}", values) for values in found))
    for other in others:
        # seed by seed: searches of one seed share what was measured
        found = [
            [a - b for a, b in zip(*pair, strict=False)] for pair in zip(at[first], at[other], strict=True)
        ]
        table.add_row(f"{first} less {other}", *(cell(f"{statistics.mean(v):+.3f}", v) for v in found))
    Console(width=80).print(table)


def cell(figure: str, values: list[float]) -> str:
    low, high = interval(values)
    return f"{figure}\n{low:.3f}..{high:.3f}"


def picture(curves: Mapping[str, list[list[float]]], file: Path) -> None:
    values = []
    for method, found in curves.items():
        for trial in range(9, max(map(len, found)), 10):
            now = [c[min(trial, len(c) - 1)] for c in found]
            low, high = interval(now)
            values.append(
                {"method": method, "trials": trial + 1, "mean": float(np.mean(now)), "low": low, "high": high}
            )
    data = alt.Data(values=values)  # type: ignore[no-untyped-call]
    base = alt.Chart(data).encode(x="trials:Q", color=alt.Color("method:N", title=None))
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title="hypervolume"), y2="high:Q")
    (band + base.mark_line().encode(y="mean:Q")).properties(width=560, height=360).save(file, scale_factor=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--group", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--error", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("build/efficiency"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    base = load_experiment(given.config)
    runs: dict[str, list[Searched]] = {method: [] for method in given.methods}
    for seed in range(given.seeds):
        for method in given.methods:
            experiment = variant(base, method, seed, given.trials, given.out.absolute())
            runs[method].append(searched(experiment, given.group))
        share = statistics.median(run.share for found in runs.values() for run in found)
        curves = {
            m: [run.curve(share, given.error, given.trials) for run in found] for m, found in runs.items()
        }
        show(curves, given.trials)
    (given.out / "efficiency.json").write_text(json.dumps(curves))
    picture(curves, given.out / "efficiency.png")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()

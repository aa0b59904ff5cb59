"""Which of several selections is trained to the end, and at which rate: each is trained for a short while first.

Damages of single replacements do not add up, and say little about what training recovers. So selections of another
kind compete: the more every replacement costs beside its damage, the fewer and bolder ones are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import mean
from typing import Any

from opadapt.errors import Refused
from opadapt.model.graph import Model
from opadapt.steps.context import Context
from opadapt.steps.students import Offers, Student, calibrated
from opadapt.steps.tuning import WHOLE, Share, Tuned, metric_of, prepared, tune, weights, with_weights
from opadapt.train.data import Dataset
from opadapt.train.metrics import Metric

LEAST_MINUTES = 1.0  # of a heat: in less nothing is learned
RATE = "learning_rate"  # of the settings of a fine-tuning
TOLL = 4.0  # on every replacement, in mean damages of the mildest selection: from one contender to the next


@dataclass(frozen=True)
class Winner:
    """The student that goes on, what it is then (as ``prepared`` gives it), the share of the time that is left for it,
    and settings that were found: the way of execution that was fastest, and the rate."""

    student: Student
    start: Model
    share: Share = WHOLE
    found: Mapping[str, Any] = field(default_factory=dict)


def contenders(
    context: Context, model: Model, wall_s: float, offers: Offers, goal: float, count: int
) -> list[Student]:
    """At most ``count`` different students that reach the goal, the mildest first; it alone where it does not reach
    it. Raises Refused("select") out of reach."""
    mildest = calibrated(context, model, wall_s, offers, goal)
    found = {mildest.keys: mildest}
    toll = mean(max(offer.option.damage, 0.0) for offer in mildest.offers)
    for _ in range(count - 1 if mildest.speedup >= goal else 0):
        other = calibrated(context, model, wall_s, offers, goal, toll)
        if other.speedup >= goal:
            found.setdefault(other.keys, other)
        toll *= TOLL
    return list(found.values())


def winner(
    context: Context,
    dataset: Dataset,
    students: Sequence[Student],
    tag: str,
    share: Share = WHOLE,
    found: Mapping[str, Any] | None = None,
) -> Winner:
    """The student, and the rate, that a short fine-tuning leaves with the best validation metric. One alone has not to
    prove itself, and without time for it the first is taken. ``share``: what all of it may take. ``found``: settings
    that were found before, which are kept. Raises Refused where none can be trained."""
    search, found = context.experiment.search, dict(found or {})
    rates = () if RATE in found else search.rates
    runners = [(student, rate) for student in students for rate in rates or (None,)]
    part = search.heat_share
    if len(runners) == 1 or not _has_time(context, part * share.left, tag):
        return Winner(students[0], prepared(context, students[0].spliced.model), share, found)
    metric = metric_of(context)
    best: tuple[float, Student, Model, dict[str, float]] | None = None
    refusal: Refused | None = None
    for number, (student, rate) in enumerate(runners, start=1):
        start, heat = prepared(context, student.spliced.model), f"{tag}-heat{number}"
        own = {} if rate is None else {RATE: rate}
        try:
            tuned = tune(context, dataset, start, heat, student.borders, share.part(part), found | own)
        except Refused as refused:
            refusal = refused
            continue
        found |= tuned.execution or {}
        value = _value(tuned, metric)
        context.progress.note(
            f"heat {number} of {len(runners)}: {len(student.offers)} replacements, {student.speedup:.2f}x, "
            f"{'' if rate is None else f'rate {rate:g}, '}{metric.name} {metric.in_points(value):.2f} after a short "
            "fine-tuning"
        )
        if best is None or (value > best[0] if metric.higher_is_better else value < best[0]):
            best = value, student, with_weights(start, weights(tuned.model.proto)), own
    if best is None:
        assert refusal is not None
        raise refusal
    rest = Share(share.settings * (1 - part * len(runners)), share.left)
    return Winner(best[1], best[2], rest, found | best[3])


def _has_time(context: Context, share: float, tag: str) -> bool:
    """Decided once: a resumed run does what the first one did."""
    left = context.left_minutes()
    enough = left is None or left * share >= LEAST_MINUTES
    return bool(context.journal.once("plan", f"{tag}-heats", lambda: {"heats": enough})["heats"])


def _value(tuned: Tuned, metric: Metric) -> float:
    """The validation metric; the worst there is where it is no number."""
    return tuned.value if isfinite(tuned.value) else -inf if metric.higher_is_better else inf

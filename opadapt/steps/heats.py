"""Which of several selections is trained to the end: each of them is trained for a short while first.

Damages of single replacements do not add up, and say little about what training recovers. So selections of another
kind compete: the more every replacement costs beside its damage, the fewer and bolder ones are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from opadapt.errors import Refused
from opadapt.model.graph import Model
from opadapt.steps.context import Context
from opadapt.steps.students import Offers, Student, calibrated
from opadapt.steps.tuning import WHOLE, Share, metric_of, prepared, tune, weights, with_weights
from opadapt.train.data import Dataset

TOLL = 4.0  # on every replacement, in mean damages of the mildest selection: from one contender to the next


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
    context: Context, dataset: Dataset, students: Sequence[Student], tag: str, share: Share = WHOLE
) -> tuple[Student, Model]:
    """The student that a short fine-tuning leaves with the best validation metric, and what it is then, as
    ``prepared`` gives it. One alone has not to prove itself. ``share``: what the fine-tuning to the end will get.
    Raises Refused where none can be trained."""
    if len(students) == 1:
        return students[0], prepared(context, students[0].spliced.model)
    metric, share = metric_of(context), share.part(context.experiment.search.heat_share)
    best: tuple[float, Student, Model] | None = None
    refusal: Refused | None = None
    for number, student in enumerate(students, start=1):
        start = prepared(context, student.spliced.model)
        try:
            tuned = tune(context, dataset, start, f"{tag}-heat{number}", student.borders, share)
        except Refused as refused:
            refusal = refused
            continue
        value = max((r.metric for r in tuned.history), key=lambda m: m if metric.higher_is_better else -m)
        context.progress.note(
            f"selection {number} of {len(students)}: {len(student.offers)} replacements, "
            f"{student.speedup:.2f}x, {metric.name} {metric.in_points(value):.2f} after a short fine-tuning"
        )
        better = best is None or (value > best[0] if metric.higher_is_better else value < best[0])
        if better:
            best = value, student, with_weights(start, weights(tuned.model.proto))
    if best is None:
        assert refusal is not None
        raise refusal
    return best[1], best[2]

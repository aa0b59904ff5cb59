"""Select, build, fine-tune and judge; back off when the tolerance refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from numpy.typing import NDArray

from opadapt.errors import Refused
from opadapt.measure.timing import Estimate
from opadapt.model.graph import Model
from opadapt.report.data import Attempt, TrainingPoint
from opadapt.search.select import most_saving
from opadapt.steps.context import Context
from opadapt.steps.offer import Offer
from opadapt.steps.students import Student, calibrated, first_goal
from opadapt.steps.tuning import compare, metric_of, points, tune, weights, with_weights
from opadapt.train.accept import Verdict
from opadapt.train.data import Dataset

SHRINK = 0.75  # a refused aim of 1 + g becomes 1 + SHRINK * g
LEAST_AIM = 1.05


@dataclass(frozen=True)
class Accepted:
    """An assembled model within tolerance, and what it is made of."""

    model: Model
    offers: tuple[Offer, ...]


@dataclass(frozen=True)
class Assembled:
    """The accepted model, if any, and the history of the attempts."""

    accepted: Accepted | None
    attempts: tuple[Attempt, ...]
    training: tuple[TrainingPoint, ...]
    reason: str


def assemble(
    context: Context,
    dataset: Dataset,
    model: Model,
    wall_s: float,
    offers: Mapping[str, Offer],
    aim: float | None,
    round_: int,
) -> Assembled:
    """From the most ambitious aim down: the first selection that holds the tolerance after fine-tuning.

    ``aim`` is the speed-up over ``model`` that is wanted; None: as fast as the tolerance allows. A refused attempt's
    weights are the start of the next one.
    """
    reachable = wall_s / max(wall_s - most_saving([o.option for o in offers.values()]), 1e-12)
    goal = aim or first_goal(context, dataset, model, wall_s, offers, reachable)
    least = min(LEAST_AIM, aim or LEAST_AIM)
    attempts: list[Attempt] = []
    training: list[TrainingPoint] = []
    refused: tuple[Student, Model] | None = None
    while len(attempts) < context.experiment.search.max_attempts and goal >= least:
        if attempts and context.stop("attempt", round_, len(attempts)):
            context.warn("the budget leaves no time for another attempt")
            break
        number = len(attempts) + 1
        try:
            student = calibrated(context, model, wall_s, offers, goal)
        except Refused as refusal:
            attempts.append(_attempt(round_, number, goal, None, None, refusal.reason))
            goal = min(_less(goal), 1 + (reachable - 1) * 0.95)
            continue
        context.progress.note(
            f"attempt {number}: {len(student.offers)} replacements, {student.speedup:.2f}x before fine-tuning"
        )
        start = student.spliced.model if refused is None else _warm(student, *refused)
        try:
            tuned = tune(
                context,
                dataset,
                start,
                f"round{round_}-attempt{number}",
                [o.member.region.output for o in student.offers],
            )
        except Refused as refusal:
            attempts.append(_attempt(round_, number, goal, student, None, refusal.reason))
            goal = _less(goal)
            continue
        training += points(tuned, number, metric_of(context))
        verdict = compare(context, dataset, tuned.model, dataset.validation, "validation")
        attempts.append(_attempt(round_, number, goal, student, verdict, verdict.reason))
        context.progress.note(("accepted: " if verdict.accepted else "refused: ") + verdict.reason)
        if verdict.accepted:
            accepted = Accepted(tuned.model, student.offers)
            return Assembled(accepted, tuple(attempts), tuple(training), verdict.reason)
        refused, goal = (student, tuned.model), _less(goal)
    reason = attempts[-1].reason if attempts else "no replacement saves enough to be worth it"
    return Assembled(None, tuple(attempts), tuple(training), reason)


def _less(goal: float) -> float:
    return 1 + SHRINK * (goal - 1)


def _warm(student: Student, before: Student, trained: Model) -> Model:
    """The student with the weights that a refused attempt left behind, wherever both have the same part."""
    values = weights(trained.proto)
    start = with_weights(student.spliced.model, {k: v for k, v in values.items() if "adapted_" not in k})
    moved: dict[str, NDArray[Any]] = {}
    old = {o.option.key: o for o in before.offers}
    for offer in student.offers:
        if offer.option.key not in old:
            continue
        then = before.spliced.lowered[old[offer.option.key].member.region]
        now = student.spliced.lowered[offer.member.region]
        by_param = {layout.param: name for name, layout in then.layout.items()}
        moved |= {
            name: values[by_param[layout.param]]
            for name, layout in now.layout.items()
            if by_param[layout.param] in values
        }
    return with_weights(start, moved)


def _attempt(
    round_: int, number: int, goal: float, student: Student | None, verdict: Verdict | None, reason: str
) -> Attempt:
    return Attempt(
        round=round_ + 1,
        attempt=number,
        aim_speedup=goal,
        replacements=0 if student is None else len(student.offers),
        speedup=None if student is None else student.speedup,
        difference=difference(verdict) if verdict is not None and isfinite(verdict.loss) else None,
        accepted=verdict is not None and verdict.accepted,
        reason=reason,
    )


def difference(verdict: Verdict) -> Estimate:
    """Adapted minus original in the metric's unit, from a verdict's loss."""
    if verdict.higher_is_better:
        return Estimate(-verdict.loss, -verdict.high, -verdict.low)
    return Estimate(verdict.loss, verdict.low, verdict.high)

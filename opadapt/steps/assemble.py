"""Select, build, fine-tune and judge: one model that reaches the target, or several of different speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opadapt.errors import Refused
from opadapt.model.graph import Model
from opadapt.report.data import Attempt, TrainingPoint
from opadapt.search.select import most_saving
from opadapt.steps.attempt import LEAST_AIM, Accepted, Attempts
from opadapt.steps.context import Context
from opadapt.steps.harm import Harm
from opadapt.steps.heats import contenders
from opadapt.steps.offer import Offer
from opadapt.steps.pairs import corrected
from opadapt.steps.points import several
from opadapt.steps.students import first_goal
from opadapt.steps.tuning import Share
from opadapt.train.data import Dataset

SHRINK = 0.75  # a refused aim of 1 + g becomes 1 + SHRINK * g
ATTEMPT_SHARE = 0.9  # of what the budget leaves; a further attempt goes on from this one's weights


@dataclass(frozen=True)
class Assembled:
    """The accepted model, if any, and the history of the attempts.

    ``points``: of a round that makes several models, all accepted ones; ``accepted`` is the fastest of them.
    """

    accepted: Accepted | None
    attempts: tuple[Attempt, ...]
    training: tuple[TrainingPoint, ...]
    reason: str
    points: tuple[Accepted, ...] = ()


def assemble(
    context: Context,
    dataset: Dataset,
    model: Model,
    wall_s: float,
    offers: Mapping[str, Offer],
    aim: float | None,
    round_: int,
    harm: Harm,
) -> Assembled:
    """``aim`` is the speed-up over ``model`` that is wanted; None: as fast as the tolerance allows, and
    ``search.points`` models in all."""
    attempts = Attempts(context, dataset, round_)
    reachable = wall_s / max(wall_s - most_saving([o.option for o in offers.values()]), 1e-12)
    goal = aim or first_goal(context, dataset, model, wall_s, offers, reachable)
    offers = corrected(context, harm, offers, wall_s * (1 - 1 / goal))
    points: list[Accepted] = []
    if aim is None and context.experiment.search.points > 1:
        points = several(attempts, model, wall_s, offers, goal)
        accepted = max(points, key=lambda point: point.speedup, default=None)
    else:
        accepted = _backing_off(attempts, model, wall_s, offers, goal, reachable, aim)
    if accepted is not None:
        reason = accepted.reason
    else:
        reason = attempts.made[-1].reason if attempts.made else "no replacement saves enough to be worth it"
    return Assembled(accepted, tuple(attempts.made), tuple(attempts.training), reason, tuple(points))


def _backing_off(
    attempts: Attempts,
    model: Model,
    wall_s: float,
    offers: Mapping[str, Offer],
    goal: float,
    reachable: float,
    aim: float | None,
) -> Accepted | None:
    """From the most ambitious aim down: the first selection that holds the tolerance after fine-tuning."""
    context, search = attempts.context, attempts.context.experiment.search
    least = min(LEAST_AIM, aim or LEAST_AIM)
    while len(attempts.made) < search.max_attempts and goal >= least and not attempts.no_time():
        # after one that was trained there is no time for a choice
        trained = any(attempt.speedup is not None for attempt in attempts.made)
        last = len(attempts.made) + 1 == search.max_attempts
        try:
            count = 1 if trained else search.selections
            students = contenders(context, model, wall_s, offers, goal, count)
        except Refused as refusal:
            attempts.refuse(goal, refusal)
            goal = min(_less(goal), 1 + (reachable - 1) * 0.95)
            continue
        share = Share(left=1.0 if last else ATTEMPT_SHARE)
        if (accepted := attempts.try_out(goal, students, share)) is not None:
            return accepted
        goal = _less(goal)
    return None


def _less(goal: float) -> float:
    return 1 + SHRINK * (goal - 1)

"""Several models of different speed in one round: selections from the fastest down, each fine-tuned for a share of the
time from the weights of the one before."""

from __future__ import annotations

from opadapt.errors import Refused
from opadapt.model.graph import Model
from opadapt.steps.attempt import LEAST_AIM, Accepted, Attempts
from opadapt.steps.heats import contenders
from opadapt.steps.students import Offers, Student
from opadapt.steps.tuning import Share


def aims(goal: float, count: int) -> list[float]:
    """``count`` speed-ups from ``goal`` down in equal steps towards 1, without those that are worth no attempt."""
    steps = (1 + (goal - 1) * k / count for k in range(count, 0, -1))
    return [aim for aim in steps if aim >= LEAST_AIM]


def several(attempts: Attempts, model: Model, wall_s: float, offers: Offers, goal: float) -> list[Accepted]:
    """The accepted ones of at most ``search.points`` models, the most ambitious first. A refused one leaves its weights
    to the next all the same.

    Each gets an equal share of the time: of the epochs and minutes that are set, so that together they take what one
    model would; of what the budget leaves, one part of as many as are still to come.
    """
    selections = _selections(attempts, model, wall_s, offers, goal)
    accepted: list[Accepted] = []
    for number, (aim, students) in enumerate(selections):
        if attempts.no_time():
            break
        share = Share(1 / len(selections), 1 / (len(selections) - number))
        if (point := attempts.try_out(aim, students, share)) is not None:
            accepted.append(point)
    return accepted


def _selections(
    attempts: Attempts, model: Model, wall_s: float, offers: Offers, goal: float
) -> list[tuple[float, list[Student]]]:
    """The students that compete for each aim; an aim whose selection was met before makes no new point. All are built
    and timed before the first is trained, so that it is known how many share the time."""
    context, search = attempts.context, attempts.context.experiment.search
    found: list[tuple[float, list[Student]]] = []
    met: set[frozenset[str]] = set()
    for aim in aims(goal, search.points):
        try:
            # only the first has time for a choice; what lost it would lose again
            students = contenders(context, model, wall_s, offers, aim, 1 if met else search.selections)
        except Refused as refusal:
            attempts.refuse(aim, refusal)
            continue
        if students[0].keys in met:
            context.progress.note(f"{aim:.2f}x needs the replacements of a faster model: no point of its own")
        else:
            found.append((aim, students))
        met.update(student.keys for student in students)
    return found

"""Select, build, fine-tune and judge; back off when the tolerance refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from opadapt.errors import Refused
from opadapt.measure.timing import Estimate
from opadapt.model.graph import Model
from opadapt.report.data import Attempt, TrainingPoint
from opadapt.search.select import most_saving
from opadapt.steps.context import Context
from opadapt.steps.heats import contenders, winner
from opadapt.steps.offer import Offer
from opadapt.steps.students import Student, first_goal
from opadapt.steps.tuning import compare, metric_of, points, tune, weights, with_weights
from opadapt.train.accept import Verdict
from opadapt.train.data import Dataset

SHRINK = 0.75  # a refused aim of 1 + g becomes 1 + SHRINK * g
LEAST_AIM = 1.05
ATTEMPT_SHARE = 0.9  # of what the budget leaves; a further attempt goes on from this one's weights


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
    settings = context.experiment.search
    while len(attempts) < settings.max_attempts and goal >= least:
        if attempts and context.stop("attempt", round_, len(attempts)):
            context.warn("the budget leaves no time for another attempt")
            break
        number = len(attempts) + 1
        try:
            # after one that was trained there is no time for a choice
            trained = any(attempt.speedup is not None for attempt in attempts)
            count = 1 if trained else settings.selections
            students = contenders(context, model, wall_s, offers, goal, count)
        except Refused as refusal:
            attempts.append(_attempt(round_, number, goal, None, None, refusal.reason))
            goal = min(_less(goal), 1 + (reachable - 1) * 0.95)
            continue
        tag, student = f"round{round_}-attempt{number}", students[0]
        try:
            won = winner(context, dataset, students, tag)
            student, start = won.student, won.start
            context.progress.note(
                f"attempt {number}: {len(student.offers)} replacements, {student.speedup:.2f}x before fine-tuning"
            )
            if refused is not None:
                start = _warm(start, student, *refused)
            share = ATTEMPT_SHARE if number < settings.max_attempts else 1.0
            tuned = tune(
                context,
                dataset,
                start,
                tag,
                student.borders,
                part=won.part,
                share=share,
                execution=won.execution,
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


def _warm(start: Model, student: Student, before: Student, trained: Model) -> Model:
    """``start`` (the student, prepared) with the weights that a refused attempt left behind, where both have the node.

    They are found by node and not by name: a replaced part is named after how many come before it, and the biases
    that fine-tuning needs are parameters of no program.
    """
    values = weights(trained.proto)
    now, then = ({n.output[0]: n for n in model.proto.graph.node} for model in (start, trained))
    moved = {
        name: values[earlier]
        for mine, theirs in _common(student, before, [t for t in now if t in then])
        for name, earlier in zip(now[mine].input, then[theirs].input, strict=True)
        if earlier in values
    }
    return with_weights(start, moved)


def _common(student: Student, before: Student, tensors: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The nodes that two students have in common, by what they are called in each: those of ``tensors``, made by both
    models, that lie in no replaced part, and the parts that are replaced by the same program."""
    inside = {
        n.output[0] for s in (student, before) for part in s.spliced.lowered.values() for n in part.nodes
    }
    yield from ((tensor, tensor) for tensor in tensors if tensor not in inside)
    old = {o.option.key: before.spliced.lowered[o.member.region] for o in before.offers}
    for offer in student.offers:
        if offer.option.key in old:
            now, then = student.spliced.lowered[offer.member.region], old[offer.option.key]
            yield from ((a.output[0], b.output[0]) for a, b in zip(now.nodes, then.nodes, strict=True))


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

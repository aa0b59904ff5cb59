"""One attempt after the other: a selection fine-tuned and judged. Each starts from what the one before learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from opadapt.errors import Refused
from opadapt.measure.timing import Estimate
from opadapt.model.graph import Model
from opadapt.report.data import Attempt, TrainingPoint
from opadapt.steps.context import Context
from opadapt.steps.heats import winner
from opadapt.steps.offer import Offer
from opadapt.steps.students import Student
from opadapt.steps.tuning import WHOLE, Share, compare, metric_of, points, tune, weights, with_weights
from opadapt.train.accept import Verdict
from opadapt.train.data import Dataset

LEAST_AIM = 1.05  # a speed-up that is worth an attempt, where none was asked for


@dataclass(frozen=True)
class Accepted:
    """An assembled model within tolerance, what it is made of, its measured speed-up over the round's model before
    fine-tuning, and why it was accepted."""

    model: Model
    offers: tuple[Offer, ...]
    speedup: float
    reason: str


@dataclass
class Attempts:
    """The attempts of one round, in order, and their training curves."""

    context: Context
    dataset: Dataset
    round_: int
    made: list[Attempt] = field(default_factory=list)
    training: list[TrainingPoint] = field(default_factory=list)
    before: tuple[Student, Model] | None = None  # the last one that was trained, and what to
    found: Mapping[str, Any] = field(
        default_factory=dict
    )  # the way that was fastest to train it, and the rate

    def no_time(self) -> bool:
        """Whether the budget leaves no time for another attempt. The first one is always made."""
        if not self.made or not self.context.stop("attempt", self.round_, len(self.made)):
            return False
        self.context.warn("the budget leaves no time for another attempt")
        return True

    def try_out(self, goal: float, students: Sequence[Student], share: Share = WHOLE) -> Accepted | None:
        """Fine-tune the best of these students and judge it; None where it is refused, or cannot be trained.

        ``goal``: the speed-up that was aimed at. ``share``: how much time the fine-tuning may take.
        """
        context, number = self.context, len(self.made) + 1
        tag, student = f"round{self.round_}-attempt{number}", students[0]
        try:
            won = winner(context, self.dataset, students, tag, share, self.found)
            student, start = won.student, won.start
            context.progress.note(
                f"attempt {number}: {len(student.offers)} replacements, {student.speedup:.2f}x before fine-tuning"
            )
            if self.before is not None:
                start = _warm(start, student, *self.before)
            tuned = tune(context, self.dataset, start, tag, student.borders, won.share, won.found)
        except Refused as refusal:
            self.refuse(goal, refusal, student)
            return None
        self.before, self.found = (student, tuned.model), {**won.found, **(tuned.execution or {})}
        self.training += points(tuned, number, metric_of(context))
        verdict = compare(context, self.dataset, tuned.model, self.dataset.validation, "validation")
        self._add(goal, student, verdict, verdict.reason)
        context.progress.note(("accepted: " if verdict.accepted else "refused: ") + verdict.reason)
        if not verdict.accepted:
            return None
        return Accepted(tuned.model, student.offers, student.speedup, verdict.reason)

    def refuse(self, goal: float, refusal: Refused, student: Student | None = None) -> None:
        """Note an attempt that led to no trained model."""
        self._add(goal, student, None, refusal.reason)

    def _add(self, goal: float, student: Student | None, verdict: Verdict | None, reason: str) -> None:
        self.made.append(
            Attempt(
                round=self.round_ + 1,
                attempt=len(self.made) + 1,
                aim_speedup=goal,
                replacements=0 if student is None else len(student.offers),
                speedup=None if student is None else student.speedup,
                difference=difference(verdict) if verdict is not None and isfinite(verdict.loss) else None,
                accepted=verdict is not None and verdict.accepted,
                reason=reason,
            )
        )


def _warm(start: Model, student: Student, before: Student, trained: Model) -> Model:
    """``start`` (the student, prepared) with the weights that an earlier attempt left behind, where both have the node.

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


def difference(verdict: Verdict) -> Estimate:
    """Adapted minus original in the metric's unit, from a verdict's loss."""
    if verdict.higher_is_better:
        return Estimate(-verdict.loss, -verdict.high, -verdict.low)
    return Estimate(verdict.loss, verdict.low, verdict.high)

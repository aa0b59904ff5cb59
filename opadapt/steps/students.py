"""Students: selections built into whole models and timed, and the speed-up to aim at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from opadapt.errors import Refused
from opadapt.journal import content_key
from opadapt.measure.timing import Timing, in_processes
from opadapt.model.graph import Model
from opadapt.model.splice import Spliced, splice_parts
from opadapt.search.select import select
from opadapt.steps.context import Context
from opadapt.steps.folding import folded
from opadapt.steps.offer import Offer
from opadapt.steps.speedup import speedup
from opadapt.steps.tuning import judged
from opadapt.train.data import Dataset

CALIBRATIONS = 5
STUDENT_PROCESSES = 6  # that measure anew, as many as an interval needs; an hour of training depends on them
LEAST = 0.01  # of the wall time, that is left of it at least
ROUNDING = 1e-6  # the solver's
LADDER = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # shares of the reachable gain, tried downwards

Offers = Mapping[str, Offer]


@dataclass(frozen=True)
class Student:
    """A selection built, with its speed-up over the model it changes, by the measurements of this and others."""

    offers: tuple[Offer, ...]
    spliced: Spliced
    speedup: float

    @property
    def keys(self) -> frozenset[str]:
        """Which selection it is."""
        return frozenset(o.option.key for o in self.offers)

    @property
    def borders(self) -> list[str]:
        """The outputs of what was replaced."""
        return [o.member.region.output for o in self.offers]

    def cost(self, toll: float) -> float:
        """The damage of all replacements, each with a toll beside it."""
        return sum(o.option.damage + toll for o in self.offers)


def build(model: Model, chosen: Sequence[Offer]) -> Spliced:
    """The model with the chosen programs in place of their regions."""
    return splice_parts(model, {o.member.region: (o.candidate.program, o.trained.binding) for o in chosen})


def chosen_for(offers: Offers, needed_s: float, toll: float = 0.0) -> tuple[Offer, ...]:
    """The selection of least cost that should save so many seconds. Raises Refused("select")."""
    return tuple(offers[option.key] for option in select([o.option for o in offers.values()], needed_s, toll))


def calibrated(
    context: Context, model: Model, wall_s: float, offers: Offers, goal: float, toll: float = 0.0
) -> Student:
    """The cheapest selection found whose speed-up reaches the goal, as far as measuring can tell.

    Savings of single groups do not add up exactly, so the demand is corrected by the share of them that assembled
    models show: the median of all that were measured, since of single measurements those that err upwards would be
    taken. Where no selection reaches the goal, the fastest is returned. Raises Refused("select") out of reach.
    """
    needed_s, kept = wall_s * (1 - 1 / goal), 1.0
    found: dict[frozenset[str], tuple[tuple[Offer, ...], Spliced, float]] = {}
    context.progress.stage(f"measure selections for {goal:.2f}x", CALIBRATIONS * _timing(context).processes)
    while len(found) < CALIBRATIONS and kept > 0:
        try:
            chosen = chosen_for(offers, needed_s / kept, toll)
        except Refused:
            if not found:
                raise
            break
        key = frozenset(o.option.key for o in chosen)
        if key in found:
            break
        spliced = build(model, chosen)
        saved_s = wall_s * (1 - 1 / _speedup(context, model, spliced.model, len(found)))
        found[key] = chosen, spliced, saved_s / _claimed_s(chosen)
        kept = median(share for _, _, share in found.values())
    students = [
        Student(chosen, spliced, wall_s / max(wall_s - kept * _claimed_s(chosen), LEAST * wall_s))
        for chosen, spliced, _ in found.values()
    ]
    enough = [s for s in students if s.speedup >= goal * (1 - ROUNDING)]
    return min(enough, key=lambda s: s.cost(toll)) if enough else max(students, key=lambda s: s.speedup)


def _claimed_s(chosen: Sequence[Offer]) -> float:
    return sum(o.option.saved_s for o in chosen)


def _timing(context: Context) -> Timing:
    return in_processes(context.experiment.timing, STUDENT_PROCESSES)


def _speedup(context: Context, base: Model, student: Model, before: int = 0) -> float:
    """Measured speed-up of a student, as it would be exported, over the base, after ``before`` other students."""
    timing = _timing(context)

    def show(processes: int) -> None:
        context.progress.advance(before * timing.processes + processes)

    return speedup(context, base, folded(context, student, "student"), timing, show)


def first_goal(
    context: Context, dataset: Dataset, model: Model, wall_s: float, offers: Offers, reachable: float
) -> float:
    """Without a target: the largest speed-up whose student, not yet fine-tuned, loses no more than fine-tuning
    usually wins back: ``search.recoverable`` times the tolerance, on the validation data."""
    settings = context.experiment.search
    context.progress.stage("find how far to go", len(LADDER))
    goal = 1.0
    for step, share in enumerate(LADDER, start=1):
        goal = 1 + (reachable - 1) * share
        needed_s = wall_s * (1 - 1 / goal)
        chosen = chosen_for(offers, needed_s)
        key = content_key(model.digest, *sorted(o.option.key for o in chosen))

        def measure(chosen: Sequence[Offer] = chosen) -> dict[str, float]:
            found = judged(context, dataset, build(model, chosen).model, dataset.validation, "validation")
            return {"loss": found.loss, "allowed": found.allowed}

        row = context.journal.once("screen", key, measure)
        context.progress.advance(step, f"{goal:.2f}x loses {row['loss']:.1f} points before fine-tuning")
        if row["loss"] <= settings.recoverable * row["allowed"]:
            break
    return goal

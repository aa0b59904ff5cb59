"""What happened in the rounds of a run, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from opadapt.experiment import Target
from opadapt.measure.profile import Profile
from opadapt.report.data import Attempt, FrontPoint, TrainingPoint
from opadapt.search.evolve import Individual
from opadapt.steps.assemble import Assembled
from opadapt.steps.explore import Explored
from opadapt.steps.offer import Offer


@dataclass
class History:
    """Grows by one entry a round."""

    explored: list[Explored] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    training: list[TrainingPoint] = field(default_factory=list)
    accepted: list[Offer] = field(default_factory=list)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    reason: str = "nothing was tried"

    def add(self, explored: Sequence[Explored], assembled: Assembled) -> None:
        self.explored.extend(explored)
        self.attempts.extend(assembled.attempts)
        self.training.extend(assembled.training)
        for one in explored:
            self.refusals.update(one.refusals)
        if assembled.accepted is not None:
            self.accepted.extend(assembled.accepted.offers)
        self.reason = assembled.reason

    @staticmethod
    def aim(target: Target | None, baseline: Profile, now: Profile) -> float | None:
        """The speed-up still wanted of the model as it is now; None without a target."""
        if target is None:
            return None
        return target.as_speedup(baseline.wall.value) * now.wall.value / baseline.wall.value

    def front(self) -> tuple[FrontPoint, ...]:
        """Every evaluated candidate as a point of its group's front."""
        chosen = {(offer.candidate.digest, _group(offer)) for offer in self.accepted}
        points = []
        for one in self.explored:
            finalists = {i.candidate.digest for i in one.finalists}
            name = one.ranked.group.members[0].region.name
            points.extend(
                _point(i, name, i.candidate.digest in finalists, (i.candidate.digest, name) in chosen)
                for i in one.archive
            )
        return tuple(points)


def _group(offer: Offer) -> str:
    return offer.group


def _point(individual: Individual, group: str, on_front: bool, chosen: bool) -> FrontPoint:
    return FrontPoint(
        group=group,
        label=individual.candidate.origin,
        latency_s=individual.scores.latency_s,
        damage=individual.scores.damage,
        parameters=int(individual.fitness.values[2]),
        on_front=on_front,
        chosen=chosen,
    )

"""What happened in the rounds of a run, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from opadapt.ir.cost import count_params
from opadapt.ir.text import print_program
from opadapt.model.graph import Model
from opadapt.report.data import Attempt, FrontPoint, Replacement, TrainingPoint
from opadapt.steps.assemble import Assembled
from opadapt.steps.attempt import Accepted
from opadapt.steps.explore import Explored
from opadapt.steps.offer import Offer


@dataclass
class History:
    """Grows by one entry a round."""

    explored: list[Explored] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    training: list[TrainingPoint] = field(default_factory=list)
    accepted: list[Offer] = field(default_factory=list)
    points: list[Accepted] = field(default_factory=list)  # with the offers of the rounds before them
    exact: list[Replacement] = field(default_factory=list)
    folded: int = 0  # nodes that folding took away, without data
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    reason: str = "nothing was tried"

    def add(self, explored: Sequence[Explored], assembled: Assembled) -> None:
        self.explored.extend(explored)
        self.attempts.extend(assembled.attempts)
        self.training.extend(assembled.training)
        for one in explored:
            self.refusals.update(one.refusals)
        self.points += [replace(p, offers=(*self.accepted, *p.offers)) for p in assembled.points]
        if assembled.accepted is not None:
            self.accepted.extend(assembled.accepted.offers)
        if assembled.accepted is not None or not self.accepted:
            only = f"{self.exactly}, and nothing else: " if self.exact and not self.accepted else ""
            self.reason = f"{only}{assembled.reason}"

    @property
    def exactly(self) -> str:
        """How much was replaced by what computes the same."""
        return f"{len(self.exact)} exact replacement{'s' * (len(self.exact) != 1)}"

    @property
    def changed(self) -> bool:
        return bool(self.exact or self.accepted or self.folded)

    def fall_back(self, model: Model) -> Model | None:
        """Give up this model of several; the fastest of the others takes its place, if there is one."""
        self.points = [point for point in self.points if point.model.digest != model.digest]
        if not self.points:
            return None
        best = max(self.points, key=lambda point: point.speedup)
        self.accepted, self.reason = list(best.offers), best.reason
        return best.model

    def withdraw(self, reason: str) -> None:
        """Nothing of it is exported after all."""
        self.exact, self.accepted, self.points, self.folded, self.reason = [], [], [], 0, reason

    def bound(self, speedup: float) -> str:
        """Which constraint kept the run from its target, and how; ``speedup``: of the exported file."""
        if not self.attempts:
            return f"search: {self.reason}"
        last = self.attempts[-1].round
        refused = [a for a in self.attempts if a.round == last and not a.accepted]
        if refused:
            final = refused[-1]
            if final.speedup is None:
                return f"search: {final.reason}"
            before = "" if last == 1 else f" over round {last - 1}"
            kind = "training" if final.difference is None else "tolerance"
            return f"{kind}: at {final.speedup:.2f}x{before} {final.reason}"
        selected = self.attempts[-1]
        assert selected.speedup is not None  # it was accepted
        if selected.speedup < selected.aim_speedup:
            return f"search: no selection was faster than {selected.speedup:.2f}x"
        return f"latency: {selected.speedup:.2f}x when it was selected, {speedup:.2f}x as exported"

    @property
    def replacements(self) -> tuple[Replacement, ...]:
        return (*self.exact, *(_replacement(offer) for offer in self.accepted))

    def front(self) -> tuple[FrontPoint, ...]:
        """Every evaluated candidate as a point of its group's front."""
        chosen = {(offer.candidate.digest, offer.group) for offer in self.accepted}
        points: list[FrontPoint] = []
        for one in self.explored:
            front = {i.candidate.digest for i in one.front}
            points.extend(
                FrontPoint(
                    group=one.name,
                    label=i.candidate.origin,
                    latency_s=i.scores.latency_s,
                    damage=i.scores.damage,
                    parameters=count_params(i.candidate.program),
                    on_front=i.candidate.digest in front,
                    chosen=(i.candidate.digest, one.name) in chosen,
                )
                for i in one.archive
            )
        return tuple(points)


def _replacement(offer: Offer) -> Replacement:
    before = offer.member.expanded.program
    return Replacement(
        region=offer.member.region.name,
        kind=offer.member.region.kind,
        nodes=offer.member.region.nodes,
        rule=offer.candidate.origin,
        before=print_program(before),
        after=print_program(offer.candidate.program),
        latency_before_s=offer.latency_before_s,
        latency_after_s=offer.latency_before_s - offer.option.saved_s,
        parameters_before=count_params(before),
        parameters_after=count_params(offer.candidate.program),
        damage=offer.option.damage,
    )

"""What the search offers to the joint selection: programs trained for every member, with their damage."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from opadapt.errors import Refused
from opadapt.journal import content_key
from opadapt.measure.profile import Profile
from opadapt.model.graph import Model
from opadapt.model.regions import Member
from opadapt.search.candidate import Candidate
from opadapt.search.select import Option
from opadapt.search.stages import stream
from opadapt.steps.activations import Activations
from opadapt.steps.context import Context
from opadapt.steps.explore import Explored
from opadapt.steps.harm import Harm
from opadapt.steps.latency import GroupLatency
from opadapt.steps.training import GroupTraining, Trained


@dataclass(frozen=True)
class Offer:
    """An option of the selection with everything needed to build it."""

    option: Option
    group: str
    member: Member
    candidate: Candidate
    trained: Trained
    latency_before_s: float


async def offers(
    context: Context,
    model: Model,
    profile: Profile,
    explored: Explored,
    activations: Activations,
    harm: Harm,
) -> dict[str, Offer]:
    """Every finalist of a group timed carefully and trained for every member, with its damage inside the whole model;
    by option key."""
    ranked, name = explored.ranked, explored.name
    members = ranked.group.members
    finalists = _Finalists(context, model, profile, explored)
    training = GroupTraining(context, ranked.group, activations)
    candidates = await finalists.ready()
    context.progress.stage(
        f"distil {len(explored.finalists)} programs for {len(members)} x {name}",
        len(explored.finalists) * len(members),
    )
    tried = {i.candidate.digest: i.scores.rungs for i in explored.finalists}
    finished = training.finish(candidates, tried, context.experiment.search.finalist_steps)
    async with contextlib.aclosing(candidates), contextlib.aclosing(finished):
        trained = [one async for one in finished]
    context.progress.stage(f"damage of {name}", len(trained))
    harms = await harm(
        context,
        [{members[m].region: (candidate.program, t.binding)} for candidate, m, t in trained],
        [
            content_key(activations.folder.name, members[m].region.name, candidate.digest, t.nmse)
            for candidate, m, t in trained
        ],
    )
    found: dict[str, Offer] = {}
    for (candidate, m, weights), damage in zip(trained, harms, strict=True):
        region = members[m].region
        saved_s = ranked.member_s - finalists.latency_s[candidate.digest]
        key = content_key(region.name, candidate.digest)
        option = Option(region.name, region.nodes, saved_s, damage, key)
        found[key] = Offer(option, name, members[m], candidate, weights, ranked.member_s)
    return found


class _Finalists:
    """The finalists of a group with a careful latency of one member (s), by digest: the fastest of many quick readings
    is also the luckiest of them."""

    def __init__(self, context: Context, model: Model, profile: Profile, explored: Explored) -> None:
        self.context, self.explored = context, explored
        self.latency_s: dict[str, float] = {}
        ranked = explored.ranked
        self._latency = GroupLatency(
            context, model, ranked.group, profile.wall.value, ranked.member_s, context.experiment.timing
        )

    async def ready(self) -> AsyncGenerator[Candidate, None]:
        """Those that can be timed, as they come; where the machine that trains is also measured, all at once."""
        if self.context.apart:
            return self._timed()
        self.context.progress.stage("time the finalists", len(self.explored.finalists))
        return stream([candidate async for candidate in self._timed()])

    async def _timed(self) -> AsyncGenerator[Candidate, None]:
        left = iter(self.explored.finalists)
        candidates = [i.candidate for i in self.explored.finalists]
        # side by side with the distillation its progress is the one that is shown
        results = self._latency(stream(candidates)) if self.context.apart else self._latency.timed(candidates)
        async with contextlib.aclosing(results):
            async for value in results:
                candidate = next(left).candidate
                if not isinstance(value, Refused):
                    self.latency_s[candidate.digest] = value
                    yield candidate

"""What the search offers to the joint selection: programs trained for every member, with their damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opadapt.journal import content_key
from opadapt.model.regions import Member
from opadapt.search.candidate import Candidate
from opadapt.search.select import Option
from opadapt.steps.activations import Activations
from opadapt.steps.context import Context
from opadapt.steps.explore import Explored
from opadapt.steps.harm import Harm
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


def offers(
    context: Context,
    explored: Sequence[Explored],
    activations: Activations,
    harm: Harm,
) -> dict[str, Offer]:
    """Every finalist trained for every member, with its damage inside the whole model; by option key. With the search's
    share of the budget used up, only those of the groups before."""
    found: dict[str, Offer] = {}
    for number, one in enumerate(explored):
        group = one.ranked.group
        if number and context.stop_search(activations.folder.name, group.key, "offers"):
            context.warn(f"the budget left time for the replacements of {number} of {len(explored)} groups")
            break
        candidates = [individual.candidate for individual in one.finalists]
        name = group.members[0].region.name
        context.progress.stage(
            f"distil {len(candidates)} programs for {len(group.members)} x {name}",
            len(candidates) * len(group.members),
        )
        trained = GroupTraining(context, group, activations).finish(
            candidates, context.experiment.search.finalist_steps
        )
        context.progress.stage(f"damage of {name}", len(trained))
        harms = harm(
            [{group.members[m].region: (candidates[c].program, t.binding)} for (c, m), t in trained.items()],
            [
                content_key(
                    activations.folder.name, group.members[m].region.name, candidates[c].digest, t.nmse
                )
                for (c, m), t in trained.items()
            ],
        )
        for ((c, m), weights), damage in zip(trained.items(), harms, strict=True):
            region = group.members[m].region
            latency_s = one.finalists[c].scores.latency_s
            key = content_key(region.name, candidates[c].digest)
            option = Option(region.name, region.nodes, one.ranked.member_s - latency_s, damage, key)
            found[key] = Offer(option, name, group.members[m], candidates[c], weights, one.ranked.member_s)
    return found

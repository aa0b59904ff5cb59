"""Choose the groups worth searching, and evolve programs for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from opadapt.errors import Refused
from opadapt.ir.cost import count_params
from opadapt.ir.spec import Array
from opadapt.ir.text import print_program
from opadapt.journal import content_key
from opadapt.lower import to_model
from opadapt.measure.profile import Profile
from opadapt.measure.rank import rank_regions
from opadapt.model.graph import Model
from opadapt.model.opset import default_opset, to_opset
from opadapt.model.regions import Group, groups, regions
from opadapt.search.candidate import Candidate, tidy
from opadapt.search.evolve import Evolution, Individual, Scores
from opadapt.search.stages import Stages
from opadapt.steps.activations import Activations
from opadapt.steps.context import Context
from opadapt.steps.latency import GroupLatency
from opadapt.steps.training import GroupTraining

_KINDS = ("stage", "block", "chain", "operator")


@dataclass(frozen=True)
class Ranked:
    """A group with its measured latency (s, all members together), parameters and score of the ranking."""

    group: Group
    latency_s: float
    parameters: int
    score: float

    @property
    def kind(self) -> str:
        return self.group.members[0].region.kind

    @property
    def member_s(self) -> float:
        return self.latency_s / len(self.group.members)


@dataclass(frozen=True)
class Explored:
    """What the search of one group found: the front, those of it that go on, all that was tried, and refusals."""

    ranked: Ranked
    finalists: tuple[Individual, ...]
    front: tuple[Individual, ...]
    archive: tuple[Individual, ...]
    refusals: dict[tuple[str, str], int]

    @property
    def name(self) -> str:
        return self.ranked.group.members[0].region.name


def rank_groups(context: Context, model: Model, profile: Profile) -> list[Ranked]:
    """The groups to search: ``top_groups`` of the ranking, then as many whole stages as are asked for. Those hold
    what the groups hold: the joint selection decides between them."""
    search = context.experiment.search
    ranked = all_groups(context, model, profile)
    stages = search.stages if context.space.choices.get("depth") else 0
    return [
        *[r for r in ranked if r.kind != "stage"][: search.top_groups],
        *[r for r in ranked if r.kind == "stage"][:stages],
    ]


def all_groups(
    context: Context, model: Model, profile: Profile, *, overlapping: bool = False
) -> list[Ranked]:
    """The groups of a model, worst first by measured latency and parameters, then whole stages, likewise; unless
    ``overlapping``, without those whose nodes the groups before them cover already."""
    settings = context.experiment
    search = settings.search
    fit = [r for r in regions(model) if r.kind == "stage" or len(r.nodes) <= search.max_region_nodes]
    by_key = {group.key: group for group in groups(model, fit)}
    nodes = ((key, [n for m in group.members for n in m.region.nodes]) for key, group in by_key.items())
    found = [
        Ranked(by_key[row.name], row.latency_s, row.parameters, row.score)
        for row in rank_regions(profile, nodes, settings.rank)
    ]
    # larger kinds first: a block holds what its operators hold and leaves more room; operators alone take what
    # no block covers. Of equal scores likewise the larger region.
    found.sort(
        key=lambda r: (_KINDS.index(r.kind), -r.score, -len(r.group.members[0].region.nodes), r.group.key)
    )
    cost_s = {node.name: node.latency_s for node in profile.nodes}
    most = 1.0 if overlapping else search.max_overlap
    ranked: list[Ranked] = []
    for whole in (False, True):
        alike = [r for r in found if (r.kind == "stage") == whole]
        ranked += sorted(_without_overlap(alike, cost_s, most), key=lambda r: -r.score)
    return ranked


def _without_overlap(found: Sequence[Ranked], cost_s: dict[str, float], most: float) -> list[Ranked]:
    """Those of which at most the share ``most`` of the latency lies in groups chosen before them."""
    chosen: list[Ranked] = []
    covered: set[str] = set()
    for ranked in found:
        nodes = {n for member in ranked.group.members for n in member.region.nodes}
        shared_s = sum(cost_s.get(n, 0.0) for n in nodes & covered)
        if ranked.latency_s > 0 and shared_s <= most * ranked.latency_s:
            chosen.append(ranked)
            covered |= nodes
    return chosen


def original_candidate(group: Group, samples: tuple[tuple[Array, ...], ...] = ()) -> Candidate:
    """The group's own program, with the weights of its members (and samples of what they read, if any)."""
    bindings = tuple(member.expanded.binding for member in group.members)
    return tidy(group.program, bindings, "original", samples)


async def explore(
    context: Context, model: Model, profile: Profile, ranked: Ranked, activations: Activations
) -> Explored:
    """Evolve programs for a group: NSGA-II over latency, damage and parameters, cheapest check first."""
    config = context.experiment.search
    original = original_candidate(ranked.group, activations.samples(ranked.group))
    latency = GroupLatency(
        context, model, ranked.group, profile.wall.value, ranked.member_s, context.quick_timing
    )
    training = GroupTraining(context, ranked.group, activations)
    stages = Stages(
        original=original,
        original_latency_s=ranked.member_s,
        config=config,
        lower=partial(lowers, opset=context.opset),
        latency=latency,
        rungs=training.rungs,
        overlap=context.apart,
        advance=context.progress.advance,
    )
    evolution = Evolution(
        original,
        Scores(ranked.member_s, 0.0),
        context.space,
        config,
        context.rng("evolve", activations.folder.name, ranked.group.key),
        whole=ranked.kind == "stage",
    )
    name = ranked.group.members[0].region.name
    context.progress.note(
        f"searching {len(ranked.group.members)} x {name}: {ranked.latency_s * 1e3:.3f} ms, "
        f"{ranked.latency_s / profile.wall.value:.0%} of the latency"
    )
    while not evolution.done:
        if evolution.generation and context.stop_search(
            activations.folder.name, ranked.group.key, evolution.generation
        ):
            context.warn("the budget ended the search early")
            break
        asked = evolution.ask()
        context.progress.stage(f"generation {evolution.generation} of {name}", len(asked))
        results = await stages.evaluate(asked)
        _journal(context, model, ranked.group, asked, results)
        evolution.tell(results)
    front = evolution.front()
    return Explored(
        ranked,
        spread(front, config.finalists),
        tuple(front),
        tuple(evolution.archive),
        dict(evolution.refusals + stages.refusals),
    )


def lowers(candidate: Candidate, opset: int) -> None:
    """Raises ProgramError for a program that makes no graph, ModelError for one that has no form at the opset of the
    exported file."""
    proto = to_model(candidate.program, candidate.bindings[0], None)
    if opset < default_opset(proto):
        to_opset(proto, opset, proto.ir_version)


def spread(front: Sequence[Individual], count: int) -> tuple[Individual, ...]:
    """At most ``count`` of the front: its ends, and between them evenly by latency."""
    if len(front) <= count:
        return tuple(front)
    low, high = front[0].scores.latency_s, front[-1].scores.latency_s
    wanted = [low + (high - low) * i / max(count - 1, 1) for i in range(count)]
    left = list(front)
    chosen = []
    for aim in wanted:
        nearest = min(left, key=lambda i: abs(i.scores.latency_s - aim))
        left.remove(nearest)
        chosen.append(nearest)
    return tuple(sorted(chosen, key=lambda i: i.scores.latency_s))


def _journal(
    context: Context,
    model: Model,
    group: Group,
    asked: Sequence[Candidate],
    results: Sequence[Scores | Refused],
) -> None:
    """One row per candidate for a group of this model: its program and what became of it."""
    for candidate, result in zip(asked, results, strict=True):
        key = content_key(model.digest, group.key, group.members[0].region.name, candidate.digest)
        row = {
            "group": group.members[0].region.name,
            "origin": candidate.origin,
            "program": print_program(candidate.program),
            "parameters": count_params(candidate.program),
        }
        if isinstance(result, Refused):
            row |= {"refused_by": result.stage, "reason": result.reason}
        else:
            row |= {"latency_s": result.latency_s, "damage": result.damage, "rungs": result.rungs}
        context.journal.once("candidate", key, lambda row=row: row)  # type: ignore[misc]

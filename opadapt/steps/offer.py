"""What the search offers to the joint selection: programs trained for every member, with their damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.journal import content_key
from opadapt.model.graph import Model
from opadapt.model.regions import Member
from opadapt.model.splice import splice
from opadapt.search.candidate import Candidate
from opadapt.search.select import Option
from opadapt.steps.activations import Activations
from opadapt.steps.context import Context
from opadapt.steps.explore import Explored
from opadapt.steps.inputs import sample
from opadapt.steps.paid import Item, known, paid_once
from opadapt.steps.training import GroupTraining, Trained
from opadapt.steps.workers import DamageTask, run_damage
from opadapt.train.damage import damage, output_kind
from opadapt.train.data import Dataset
from opadapt.train.evaluate import run_batched

CLASS_METRICS = frozenset({"top1", "topk", "f1", "agreement"})


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
    dataset: Dataset,
    model: Model,
    explored: Sequence[Explored],
    activations: Activations,
) -> dict[str, Offer]:
    """Every finalist trained for every member, with its damage inside the whole model; by option key."""
    damage_of = _Damage(context, dataset, model, activations.folder.name)
    found: dict[str, Offer] = {}
    for one in explored:
        group = one.ranked.group
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
        harms = damage_of([(group.members[m], candidates[c], t) for (c, m), t in trained.items()])
        for ((c, m), weights), harm in zip(trained.items(), harms, strict=True):
            region = group.members[m].region
            latency_s = one.finalists[c].scores.latency_s
            key = content_key(region.name, candidates[c].digest)
            option = Option(region.name, region.nodes, one.ranked.member_s - latency_s, harm, key)
            found[key] = Offer(option, name, group.members[m], candidates[c], weights, one.ranked.member_s)
    return found


def _is_classes(context: Context, outputs: NDArray[Any]) -> bool:
    """Whether the metric reads the outputs as class scores."""
    return context.experiment.metric.name in CLASS_METRICS and outputs.shape[-1] > 1


class _Damage:
    """Damage of single replacements inside the whole model, on inputs that no distillation has seen."""

    def __init__(self, context: Context, dataset: Dataset, model: Model, tag: str) -> None:
        self.context, self.model, self.tag = context, model, tag
        inputs = sample(dataset, context.samples, 1, context.rng("samples"))
        self.inputs = {}
        for name, array in inputs.items():
            self.inputs[name] = context.cache / f"probe-{content_key(name)}.npy"
            np.save(self.inputs[name], array)
        reference = next(iter(run_batched(context.original.proto, inputs).values()))
        self.reference = context.cache / "probe-outputs.npy"
        np.save(self.reference, reference)
        self.kind = output_kind(reference, _is_classes(context, reference))
        now = next(iter(run_batched(model.proto, inputs).values()))
        self.before = max(damage(reference, now, self.kind), 0.0)  # of earlier rounds

    def __call__(self, items: Sequence[tuple[Member, Candidate, Trained]]) -> list[float]:
        work = [self._item(*item) for item in items]
        rows = paid_once(self.context, "damage", run_damage, work)
        rows = self.context.counted(rows, "compared", known(self.context, "damage", work))
        return [float("inf") if row["damage"] is None else row["damage"] - self.before for row in rows]

    def _item(self, member: Member, candidate: Candidate, trained: Trained) -> Item:
        return Item(
            content_key(self.tag, member.region.name, candidate.digest, trained.nmse),
            lambda: self._task(member, candidate, trained),
            lambda harm: {"damage": harm.value if np.isfinite(harm.value) else None},
        )

    def _task(self, member: Member, candidate: Candidate, trained: Trained) -> DamageTask:
        changed = splice(self.model, {member.region: (candidate.program, trained.binding)})
        return DamageTask(changed.proto.SerializeToString(), self.inputs, self.reference, self.kind)

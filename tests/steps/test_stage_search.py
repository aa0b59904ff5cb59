"""A whole stage goes through the steps of any region: latency, distillation and damage of fewer blocks."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

import numpy as np

from opadapt.journal import content_key
from opadapt.measure.profile import profile
from opadapt.search.stages import stream
from opadapt.search.vary import seeds
from opadapt.steps.activations import record
from opadapt.steps.ahead import run
from opadapt.steps.explore import original_candidate, rank_groups
from opadapt.steps.harm import Harm
from opadapt.steps.latency import GroupLatency
from opadapt.steps.training import GroupTraining


async def taken(results: AsyncIterable[Any]) -> list[Any]:
    return [result async for result in results]


def test_fewer_blocks_are_timed_trained_and_judged_in_the_whole_model(make_context) -> None:
    search = {"top_groups": 1, "activation_samples": 64, "probe_samples": 32}
    context = make_context(search=search, distil={"steps": 4, "batch": 16})
    model = context.original
    costs = profile(context.device, model, context.experiment.timing)
    whole = rank_groups(context, model, costs)[-1]
    assert whole.kind == "stage"
    (member,) = whole.group.members
    candidates = list(seeds(original_candidate(whole.group), context.space, 0, whole=True))
    assert [c.origin for c in candidates] == ["original > depth(keep=2)", "original > depth(keep=1)"]
    latency = GroupLatency(
        context, model, whole.group, costs.wall.value, whole.member_s, context.quick_timing
    )
    two, one = run(taken(latency(stream(candidates))))
    assert isinstance(one, float) and isinstance(two, float) and one < two < whole.member_s
    activations = record(context, context.dataset, model, [whole.group], "stage")
    training = GroupTraining(context, whole.group, activations)
    for rung in training.rungs:
        tried = run(taken(rung(stream(candidates))))
        assert all(isinstance(nmse, float) and np.isfinite(nmse) for nmse in tried)
    rungs = {candidate.digest: len(training.rungs) for candidate in candidates}
    trained = run(taken(training.finish(stream(candidates), rungs, 8)))
    parts = [{member.region: (candidate.program, found.binding)} for candidate, _, found in trained]
    keys = [content_key("stage", candidate.digest) for candidate, _, _ in trained]
    damages = run(Harm(context, context.dataset, model)(context, parts, keys))
    assert len(damages) == 2 and all(np.isfinite(d) and d > 0 for d in damages)

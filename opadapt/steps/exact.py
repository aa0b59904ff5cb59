"""Replacements that compute the same up to float rounding, each proved on random inputs: what every run begins with,
and all that is done without data."""

from __future__ import annotations

from opadapt.errors import OpadaptError, Refused
from opadapt.ir.cost import count_params
from opadapt.ir.program import Binding, Program
from opadapt.ir.text import print_program
from opadapt.measure.profile import Profile
from opadapt.model import validate
from opadapt.model.graph import Model
from opadapt.model.regions import Member, Region
from opadapt.model.splice import splice
from opadapt.report.data import Replacement
from opadapt.search.candidate import Candidate
from opadapt.search.space import Space
from opadapt.search.stages import Results
from opadapt.search.vary import reduced, seeds
from opadapt.steps.ahead import run
from opadapt.steps.baseline import measure
from opadapt.steps.context import Context
from opadapt.steps.explore import Ranked, all_groups, original_candidate
from opadapt.steps.folding import folded
from opadapt.steps.history import History
from opadapt.steps.latency import GroupLatency, parts_of, spliced

TOLERANCE = 1e-4  # relative to the largest output; float32 kernels of other order differ by about 1e-6
NOTHING = "nothing exact and faster was found"
LEAST = 0.01  # of the model's latency: groups that take less of it are left alone
GAIN = 0.99  # a candidate must take at most this share of the original's latency to be worth measuring again


def without_data(context: Context, baseline: Profile, history: History) -> Model:
    """The model folded, with exact replacements where they pay."""
    context.warn(
        "no data: only replacements that are exact up to rounding are tried; give --data to allow others"
    )
    model = folded(context, context.original, "original model")
    history.folded = len(context.original.nodes) - len(model.nodes)
    model = exact(context, model, measure(context, model, "folded"), history)
    history.reason = f"{history.exactly}, {history.folded} nodes folded away" if history.changed else NOTHING
    return model


def exact(context: Context, model: Model, profile: Profile, history: History) -> Model:
    """The model with the fastest exact program where that pays, worst group first; of groups that overlap, what one
    has replaced is gone for the others."""
    space, begun, parts = context.space.exact(), model, dict[Region, tuple[Program, Binding]]()
    for ranked in all_groups(context, model, profile, overlapping=True):
        if ranked.latency_s < LEAST * profile.wall.value:
            continue
        original = original_candidate(ranked.group)
        seed = context.seed("exact", ranked.group.key)
        candidates = candidates_of(original, space, seed, whole=ranked.kind == "stage")
        found = _fastest(context, model, ranked, profile, candidates)
        if found is not None:
            model, latency_s, candidate = found
            parts |= parts_of(ranked.group, candidate)
            history.exact += [
                _replacement(m, candidate, ranked.member_s, latency_s) for m in ranked.group.members
            ]
            history.reason = history.exactly
    # all at once: parts are named in the order of the model then, not in that of their measured latency
    return splice(begun, parts) if parts else begun


def candidates_of(original: Candidate, space: Space, seed: int, *, whole: bool) -> list[Candidate]:
    """Every exact rule of the space applied once (to a ``whole`` stage none is), and what is left after all of them."""
    made = (*seeds(original, space, seed, whole=whole), reduced(original, space, seed))
    by_digest = {candidate.digest: candidate for candidate in made}
    by_digest.pop(original.digest, None)
    return list(by_digest.values())


def _replacement(member: Member, candidate: Candidate, before_s: float, after_s: float) -> Replacement:
    program = member.expanded.program
    return Replacement(
        region=member.region.name,
        kind=member.region.kind,
        nodes=member.region.nodes,
        rule=candidate.origin,
        before=print_program(program),
        after=print_program(candidate.program),
        latency_before_s=before_s,
        latency_after_s=after_s,
        parameters_before=count_params(program),
        parameters_after=count_params(candidate.program),
        damage=0.0,
    )


def _fastest(
    context: Context, model: Model, ranked: Ranked, profile: Profile, candidates: list[Candidate]
) -> tuple[Model, float, Candidate] | None:
    """The model with the fastest candidate that computes the same, its latency and itself; None where none is
    faster."""
    if not candidates or any(n not in model.nodes for m in ranked.group.members for n in m.region.nodes):
        return None
    latency = GroupLatency(
        context, model, ranked.group, profile.wall.value, ranked.member_s, context.experiment.timing
    )
    timed = [
        (value, candidate)
        for value, candidate in zip(run(_taken(latency.timed(candidates))), candidates, strict=True)
        if isinstance(value, float) and value < GAIN * ranked.member_s
    ]
    for latency_s, candidate in sorted(timed, key=lambda pair: pair[0]):
        try:
            changed = spliced(model, ranked.group, candidate)
            error = validate.compare_outputs(context.original.proto, changed.proto, rng=context.rng("exact"))
        except OpadaptError:
            continue
        if error <= TOLERANCE:
            return changed, latency_s, candidate
    return None


async def _taken(results: Results) -> list[float | Refused]:
    return [result async for result in results]

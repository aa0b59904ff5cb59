"""Damage in company: what a replacement harms where the others chosen with it stand too.

Damages of single replacements do not add up: on a ResNet-56 whose 26 chosen replacements cost 0.014 together one by
one, the whole lost half of its accuracy. So the choice is made again with the damages that show inside the first
choice, as long as that makes the whole better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opadapt.errors import Refused
from opadapt.journal import content_key
from opadapt.model.graph import Model
from opadapt.steps.context import Context
from opadapt.steps.harm import Harm, Parts
from opadapt.steps.offer import Offer
from opadapt.steps.students import Offers, Student, calibrated

BETTER = 0.97  # of the damage before: less is not worth another round


def settled(
    context: Context, harm: Harm, model: Model, wall_s: float, offers: Offers, goal: float
) -> Student:
    """The student of ``calibrated`` after its choice was corrected by damages in company, at most
    ``search.company_rounds`` times. Raises Refused("select") out of reach."""
    best = calibrated(context, model, wall_s, offers, goal)
    rounds = context.experiment.search.company_rounds
    if rounds == 0 or len(best.offers) < 2:
        return best
    least = _whole(harm, [best])[0]
    for number in range(1, rounds + 1):
        context.progress.stage(f"damage of replacements together, {number} of {rounds}", 2 * len(offers))
        try:
            student = calibrated(context, model, wall_s, _in_company(harm, offers, best), goal)
        except Refused:  # some became useless inside the others, and the rest does not save enough
            break
        now = _whole(harm, [student])[0]
        if not now < BETTER * least:
            break
        context.progress.note(f"chosen again with all in place: damage {now:.3f} instead of {least:.3f}")
        best, least = student, now
    return best


def _parts(chosen: Sequence[Offer]) -> Parts:
    return {o.member.region: (o.candidate.program, o.trained.binding) for o in chosen}


def _key(chosen: Sequence[Offer], harm: Harm) -> str:
    together = sorted((o.option.key, f"{o.trained.nmse:.9g}") for o in chosen)
    return content_key("company", harm.model.digest, together)


def _whole(harm: Harm, students: Sequence[Student]) -> list[float]:
    return _damages(harm, [s.offers for s in students])


def _damages(harm: Harm, sets: Sequence[Sequence[Offer]]) -> list[float]:
    """Each distinct set once."""
    keys = [_key(chosen, harm) for chosen in sets]
    unique = dict(zip(keys, sets, strict=True))
    found = dict(zip(unique, harm([_parts(s) for s in unique.values()], list(unique)), strict=True))
    return [found[key] for key in keys]


def _in_company(harm: Harm, offers: Offers, student: Student) -> dict[str, Offer]:
    """The offers, each with the damage it adds to the student's other replacements."""
    others: list[list[Offer]] = []
    for offer in offers.values():
        nodes = set(offer.option.nodes)
        others.append([o for o in student.offers if not nodes & set(o.option.nodes)])
    with_it = [[*rest, offer] for rest, offer in zip(others, offers.values(), strict=True)]
    found = _damages(harm, [*others, *with_it])
    without, full = found[: len(others)], found[len(others) :]
    return {
        key: replace(offer, option=replace(offer.option, damage=after - before))
        for (key, offer), before, after in zip(offers.items(), without, full, strict=True)
    }

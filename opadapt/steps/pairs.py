"""Damage that does not add up: pairs of selected replacements, compared inside the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from opadapt.errors import Refused
from opadapt.journal import content_key
from opadapt.steps.ahead import run
from opadapt.steps.context import Context
from opadapt.steps.harm import Harm
from opadapt.steps.offer import Offer
from opadapt.steps.students import Offers, chosen_for

ADDS_UP = 0.1  # of the sum of two damages: a difference below it is none

Pair = tuple[Offer, Offer]


def corrected(context: Context, harm: Harm, offers: Offers, needed_s: float) -> Offers:
    """The offers, those selected for so many seconds with what pairs of them harm beyond the sum of both.

    Pairs of the best selection are measured, the closest first and as many at a time as it has replacements, until
    ``search.pairs`` are: each time the best selection is another one, or knows more about itself.
    """
    left, known = context.experiment.search.pairs, set[frozenset[str]]()
    if left:
        context.progress.stage("damage of pairs of replacements", left)
    while left > 0:
        try:
            chosen = chosen_for(offers, needed_s)
        except Refused:  # out of reach: whoever selects says so
            break
        new = (pair for pair in closest(harm, chosen) if _key(pair) not in known)
        pairs = list(islice(new, min(left, len(chosen))))
        if not pairs:
            break
        offers = _measured(context, harm, offers, pairs)
        known.update(map(_key, pairs))
        left -= len(pairs)
    return offers


def closest(harm: Harm, chosen: Sequence[Offer]) -> Iterator[Pair]:
    """All pairs, those that follow one another in the model first."""
    place = {node: number for number, node in enumerate(harm.model.nodes)}
    inorder = sorted(chosen, key=lambda o: min(place[node] for node in o.option.nodes))
    for distance in range(1, len(inorder)):
        yield from zip(inorder, inorder[distance:], strict=False)


def _measured(context: Context, harm: Harm, offers: Offers, pairs: Sequence[Pair]) -> dict[str, Offer]:
    parts = [{o.member.region: (o.candidate.program, o.trained.binding) for o in pair} for pair in pairs]
    # an option's key tells the program and its region, the error which weights
    keys = [content_key(harm.model.digest, *((o.option.key, o.trained.nmse) for o in pair)) for pair in pairs]
    found = dict(offers)
    for (one, other), together in zip(pairs, run(harm(context, parts, keys)), strict=True):
        alone = max(one.option.damage, 0.0) + max(other.option.damage, 0.0)
        if abs(together - alone) > ADDS_UP * alone:
            kept = found[one.option.key]
            beside = {**kept.option.beside, other.option.key: together - alone}
            found[one.option.key] = replace(kept, option=replace(kept.option, beside=beside))
    return found


def _key(pair: Pair) -> frozenset[str]:
    return frozenset(o.option.key for o in pair)

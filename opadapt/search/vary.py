"""Variation: seeds, mutation (a rule, or a point mutation) and crossover, on candidates. Every rng is explicit.

What is made but does not type-check is told to ``refuse``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from opadapt.errors import ProgramError, Refused
from opadapt.search.candidate import Candidate, rebind, tidy
from opadapt.search.config import SearchConfig
from opadapt.search.crossover import crossover
from opadapt.search.depth import depths, evenly, parts, shortened
from opadapt.search.edit import DoesNotApply, pick
from opadapt.search.point import MUTATIONS
from opadapt.search.rewrite import Choice, Match, apply, variants
from opadapt.search.seen import Seen
from opadapt.search.space import Rule, Space

ATTEMPTS = 30  # tries before a variation gives up; most edits of a small program do not type-check

CROSSOVER = "crossover"

Refuse = Callable[[ProgramError | Refused], None]


def _uncounted(error: ProgramError | Refused) -> None:
    """Refusals that nobody counts."""


def rewrite(
    candidate: Candidate, rule: Rule, match: Match, choice: Choice, seed: int, seen: Seen | None = None
) -> Candidate:
    """The candidate with a rule applied once. Raises ProgramError or Refused where it does not apply.

    ``seen``: the candidate's values that were computed already, for those who apply several rules to it.
    """
    program, seen = candidate.program, seen or Seen(candidate)
    made = [
        apply(rule, program, match, choice, binding, np.random.default_rng(seed), partial(seen, member))
        for member, binding in enumerate(candidate.bindings)
    ]
    label = ", ".join(f"{name}={value}" for name, value in sorted(choice.items()))
    origin = f"{candidate.origin} > {rule.name}" + (f"({label})" if label else "")
    return tidy(made[0][0], tuple(binding for _, binding in made), origin, candidate.samples)


def seeds(
    original: Candidate, space: Space, seed: int, refuse: Refuse = _uncounted, *, whole: bool = False
) -> Iterator[Candidate]:
    """The original with fewer of its equal parts, by the depth choices of the space; then every seed rule applied once,
    at every match and with every choice. A ``whole`` stage has no rules among its seeds: they would be hundreds, each
    of which changes a small part of it. There they come by mutation."""
    count = len(parts(original.program))
    for keep in depths(count, space.choices.get("depth", ())):
        yield _shallower(original, count, keep)
    if not whole:
        yield from _rewritten(original, map(space.rule, space.seeds), seed, refuse)


def reduced(original: Candidate, space: Space, seed: int) -> Candidate:
    """The original after the rules of the space, one after the other, until none applies any more. No more of them than
    it has instructions: the shipped exact rules take something away each, those of a user need not."""
    candidate = original
    for _ in original.program.body:
        following = next(_rewritten(candidate, space.rules, seed, _uncounted), None)
        if following is None:
            break
        candidate = following
    return candidate


def _rewritten(candidate: Candidate, rules: Iterable[Rule], seed: int, refuse: Refuse) -> Iterator[Candidate]:
    """The candidate with each rule applied once, at every match and with every choice."""
    seen = Seen(candidate)
    for rule in rules:
        for match, choice in variants(rule, candidate.program):
            try:
                yield rewrite(candidate, rule, match, choice, seed, seen)
            except (ProgramError, Refused) as error:
                refuse(error)


def _shallower(original: Candidate, count: int, keep: int) -> Candidate:
    program = shortened(original.program, evenly(count, keep))
    origin = f"{original.origin} > depth(keep={keep})"
    return tidy(program, original.bindings, origin, original.samples)


def ways(space: Space, config: SearchConfig) -> dict[str, float]:
    """The ways of variation, each with its share of the trials: crossover, every rule of the space, every point
    mutation."""
    rules = config.rewrite if space.rules else 0.0
    shares = {CROSSOVER: config.crossover}
    for kind, names, share in (
        ("rule", [rule.name for rule in space.rules], rules),
        ("mutation", list(MUTATIONS), 1 - rules),
    ):
        shares |= {f"{kind} {name}": (1 - config.crossover) * share / len(names) for name in names}
    return shares


def mutate(
    candidate: Candidate,
    space: Space,
    config: SearchConfig,
    rng: np.random.Generator,
    refuse: Refuse = _uncounted,
) -> Candidate:
    """One mutation: a rule at a random match, or a point mutation. Raises DoesNotApply when all tries fail."""
    alone = config.model_copy(update={"crossover": 0.0})
    return vary((candidate, candidate), space, ways(space, alone), rng, refuse)


def _rewrite_somewhere(candidate: Candidate, rule: Rule, rng: np.random.Generator) -> Candidate:
    match, choice = pick(rng, list(variants(rule, candidate.program)), f"match of rule {rule.name}")
    return rewrite(candidate, rule, match, choice, int(rng.integers(2**31)))


def _point(candidate: Candidate, name: str, space: Space, rng: np.random.Generator) -> Candidate:
    program = MUTATIONS[name](candidate.program, rng, space)
    seed = int(rng.integers(2**31))
    bindings = tuple(rebind(program, b, np.random.default_rng(seed)) for b in candidate.bindings)
    return tidy(program, bindings, f"{candidate.origin} > {name}", candidate.samples)


def vary(
    parents: tuple[Candidate, Candidate],
    space: Space,
    shares: Mapping[str, float],
    rng: np.random.Generator,
    refuse: Refuse = _uncounted,
) -> Candidate:
    """A child of both parents by crossover, or of the first by a mutation: one of the ``ways``, as often as its share
    says. Raises DoesNotApply when all tries fail."""
    names, probabilities = list(shares), np.array(list(shares.values()))
    for _ in range(ATTEMPTS):
        way = names[int(rng.choice(len(names), p=probabilities / probabilities.sum()))]
        try:
            return replace(_varied(way, parents, space, rng), by=way)
        except DoesNotApply:
            continue
        except (ProgramError, Refused) as error:
            refuse(error)
    raise DoesNotApply(f"no variation fits after {ATTEMPTS} tries")


def _varied(
    way: str, parents: tuple[Candidate, Candidate], space: Space, rng: np.random.Generator
) -> Candidate:
    kind, _, name = way.partition(" ")
    if kind == CROSSOVER:
        return crossover(*parents, rng)
    if kind == "rule":
        return _rewrite_somewhere(parents[0], space.rule(name), rng)
    return _point(parents[0], name, space, rng)

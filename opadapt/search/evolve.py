"""Evolution of one group's programs: NSGA-II (Deb et al. 2002) from DEAP behind ask and tell.

The loop knows no boards and no training. Objectives, all minimised: latency of one member (s), damage (normalised
error of the region's output), parameters. A refused candidate never enters selection: in DEAP a NaN fitness would
win comparisons.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from deap import base, tools

from opadapt.errors import ProgramError, Refused
from opadapt.ir.cost import count_params
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.credit import Credit
from opadapt.search.edit import DoesNotApply
from opadapt.search.space import Space
from opadapt.search.vary import mutate, seeds, vary, ways

CHAIN = 4  # mutations of a candidate of the random search, at most


@dataclass(frozen=True)
class Scores:
    """What evaluation found of a candidate: latency of one member (s) and damage (NMSE, 0 is the original), left after
    so many rungs of distillation."""

    latency_s: float
    damage: float
    rungs: int = 1


class Fitness(base.Fitness):  # type: ignore[misc]
    """Latency, damage and parameters, all minimised."""

    weights = (-1.0, -1.0, -1.0)


@dataclass(eq=False)
class Individual:
    """A candidate with what NSGA-II needs beside it."""

    candidate: Candidate
    scores: Scores
    fitness: Fitness = field(default_factory=Fitness)

    def __post_init__(self) -> None:
        values = (self.scores.latency_s, self.scores.damage, float(count_params(self.candidate.program)))
        if not all(np.isfinite(values)):
            raise ValueError(f"a fitness must be finite, found {values}; refuse the candidate instead")
        self.fitness.values = values


@contextlib.contextmanager
def _global_random(rng: np.random.Generator) -> Iterator[None]:
    """DEAP's selectors draw from the global ``random``: seed it from ours and put it back."""
    before = random.getstate()
    random.seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        random.setstate(before)


def _winner(a: Individual, b: Individual) -> Individual:
    """A binary tournament: dominance, then crowding distance."""
    if a.fitness.dominates(b.fitness):
        return a
    if b.fitness.dominates(a.fitness):
        return b
    return a if a.fitness.crowding_dist >= b.fitness.crowding_dist else b


class Evolution:
    """Ask for candidates, tell their results, until ``done``. Deterministic given the rng and the results.

    ``whole``: the original is a whole stage, whose seeds are fewer of its blocks. ``refusals`` counts what was made but
    never asked for, by stage and reason.
    """

    def __init__(
        self,
        original: Candidate,
        scores: Scores,
        space: Space,
        config: SearchConfig,
        rng: np.random.Generator,
        *,
        whole: bool = False,
    ) -> None:
        self.space, self.config, self.rng = space, config, rng
        self.original, self.whole = original, whole
        self.population: list[Individual] = [Individual(original, scores)]
        self.archive: list[Individual] = []
        self.seen: set[str] = {original.digest}
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.generation = 0
        self.credit = Credit(ways(space, config))
        self._asked: list[Candidate] | None = None

    @property
    def done(self) -> bool:
        return self.generation > self.config.generations

    def ask(self) -> list[Candidate]:
        """The next generation, without anything seen before. Raises RuntimeError if the last was not told."""
        if self._asked is not None:
            raise RuntimeError("ask: the last generation has not been told")
        if self.config.method == "random":
            self._asked = self._made(self._chain)
        else:
            self._asked = self._seeds() if self.generation == 0 else self._made(self._child)
        return self._asked

    def tell(self, results: Sequence[Scores | Refused]) -> None:
        """The results of what ``ask`` gave, in its order. Raises RuntimeError out of order."""
        if self._asked is None or len(results) != len(self._asked):
            raise RuntimeError("tell: one result per candidate asked for, once")
        known = len(self.archive)
        for candidate, result in zip(self._asked, results, strict=True):
            if self.config.adaptive and candidate.by:
                self.credit.record(candidate.by, self._improves(result))
            if not isinstance(result, Refused):
                self.archive.append(Individual(candidate, result))
        self.population = tools.selNSGA2(self.population + self.archive[known:], self.config.population)
        self._asked = None
        self.generation += 1

    def front(self) -> list[Individual]:
        """The candidates that no other beats in both latency and damage, fastest first, the original left out."""
        best: list[Individual] = []
        for individual in sorted(self.archive, key=lambda i: (i.scores.latency_s, i.scores.damage)):
            if not best or individual.scores.damage < best[-1].scores.damage:
                best.append(individual)
        return best

    def _improves(self, result: Scores | Refused) -> bool:
        """Whether nothing found so far is as fast and as good."""
        return not isinstance(result, Refused) and not any(
            i.scores.latency_s <= result.latency_s and i.scores.damage <= result.damage for i in self.archive
        )

    def _fresh(self, candidate: Candidate) -> bool:
        name = candidate.digest
        if name in self.seen:
            self.refusals["seen", "the same program as an earlier candidate"] += 1
            return False
        self.seen.add(name)
        return True

    def _refuse(self, error: ProgramError | Refused) -> None:
        refused = error if isinstance(error, Refused) else Refused("verify", error.message)
        self.refusals[refused.stage, refused.reason] += 1

    def _seeds(self) -> list[Candidate]:
        seed = int(self.rng.integers(2**31))
        made = seeds(self.original, self.space, seed, self._refuse, whole=self.whole)
        return [candidate for candidate in made if self._fresh(candidate)]

    def _made(self, make: Callable[[], Candidate]) -> list[Candidate]:
        """As many new candidates as the population has places, fewer where ``make`` finds no more."""
        found: list[Candidate] = []
        for _ in range(self.config.population * 20):
            if len(found) == self.config.population:
                break
            try:
                made = make()
            except DoesNotApply:
                continue
            if self._fresh(made):
                found.append(made)
        return found

    def _child(self) -> Candidate:
        return vary(self._parents(), self.space, self.credit.shares(), self.rng, self._refuse)

    def _chain(self) -> Candidate:
        """The original after one to CHAIN mutations."""
        made = self.original
        for _ in range(int(self.rng.integers(1, CHAIN + 1))):
            made = mutate(made, self.space, self.config, self.rng, self._refuse)
        return made

    def _parents(self) -> tuple[Candidate, Candidate]:
        """Winners of two binary tournaments, by the crowding distances of selection, which are per front."""
        with _global_random(self.rng):
            pool = tools.selRandom(self.population, 4)
        return _winner(*pool[:2]).candidate, _winner(*pool[2:]).candidate

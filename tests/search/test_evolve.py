"""Ask and tell: order enforced, refusals outside selection, deterministic, DEAP's global random left alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from programs import block_candidate

from opadapt.errors import ProgramError, Refused
from opadapt.ir.cost import count_macs, count_params
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.edit import DoesNotApply
from opadapt.search.evolve import Evolution, Individual, Scores
from opadapt.search.space import load_space

CONFIG = SearchConfig(population=6, generations=3)
ORIGINAL = block_candidate()
SPACE = load_space()


def evaluate(candidates: Sequence[Candidate]) -> list[Scores | Refused]:
    """A made-up landscape: latency from MACs, damage from what is missing of the parameters."""
    results: list[Scores | Refused] = []
    for c in candidates:
        macs, params = count_macs(c.program), count_params(c.program)
        if macs > count_macs(ORIGINAL.program):
            results.append(Refused("static", "too many MACs"))
        else:
            results.append(Scores(1e-9 * (macs + 1e4 * len(c.program.body)), 1.0 / (1 + params)))
    return results


def search(seed: int) -> Evolution:
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, CONFIG, np.random.default_rng(seed))
    while not evolution.done:
        evolution.tell(evaluate(evolution.ask()))
    return evolution


def test_same_seed_same_search() -> None:
    names = [[i.candidate.digest for i in search(seed).archive] for seed in (3, 3, 4)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_nothing_is_asked_twice() -> None:
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, CONFIG, np.random.default_rng(0))
    asked: list[str] = []
    while not evolution.done:
        batch = evolution.ask()
        asked += [c.digest for c in batch]
        evolution.tell(evaluate(batch))
    assert len(asked) == len(set(asked)) and ORIGINAL.digest not in asked


def test_tell_out_of_order_raises() -> None:
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, CONFIG, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="tell"):
        evolution.tell([])
    batch = evolution.ask()
    with pytest.raises(RuntimeError, match="ask"):
        evolution.ask()
    with pytest.raises(RuntimeError, match="one result per candidate"):
        evolution.tell(evaluate(batch)[:-1])


def test_refused_candidates_never_enter_selection() -> None:
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, CONFIG, np.random.default_rng(0))
    batch = evolution.ask()
    evolution.tell([Refused("latency", "no faster") for _ in batch])
    assert [i.candidate for i in evolution.population] == [ORIGINAL] and not evolution.archive


def beats(one: Individual, other: Individual) -> bool:
    """Whether one is nowhere worse than the other, and somewhere better."""
    pairs = list(zip(one.fitness.values, other.fitness.values, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def random_scores(candidates: Sequence[Candidate], rng: np.random.Generator) -> list[Scores | Refused]:
    """Latency and damage mostly go together, so that few candidates are on the front."""
    return [Scores(v, v + rng.uniform(0, 0.1)) for v in rng.uniform(0.1, 1, len(candidates))]


def test_those_that_no_other_beats_survive() -> None:
    rng = np.random.default_rng(0)
    config = SearchConfig(population=12, generations=3)
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, config, rng)
    while not evolution.done:
        before = list(evolution.population)
        asked = evolution.ask()
        evolution.tell(random_scores(asked, rng))
        found = evolution.archive[len(evolution.archive) - len(asked) :]
        best = [i for i in before + found if not any(beats(o, i) for o in before + found)]
        assert len(evolution.population) == config.population
        kept = set(evolution.population)
        assert kept >= set(best) if len(best) <= config.population else kept <= set(best)


def test_parents_are_drawn_by_the_crowding_within_their_front() -> None:
    rng = np.random.default_rng(1)
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, SearchConfig(population=12), rng)
    evolution.tell(random_scores(evolution.ask(), rng))
    population = evolution.population
    assert any(beats(one, other) for one in population for other in population)  # several fronts
    crowding = [i.fitness.crowding_dist for i in population]
    evolution.ask()
    assert [i.fitness.crowding_dist for i in population] == crowding


def kernels_tried(adaptive: bool) -> int:
    """How many trials are mutations of a kernel in a search where nothing else improves the front."""
    config = SearchConfig(population=12, generations=30, crossover=0.3, adaptive=adaptive)
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, config, np.random.default_rng(0))
    evolution.tell([Refused("latency", "no faster") for _ in evolution.ask()])
    best, made = 1.0, 0
    while not evolution.done:
        asked = evolution.ask()
        results: list[Scores | Refused] = []
        for candidate in asked:
            if candidate.by == "mutation kernel":
                best, made = best * 0.99, made + 1
            results.append(Scores(best, 1.0))
        evolution.tell(results)
    return made


def test_what_improves_the_front_is_tried_more_often() -> None:
    assert kernels_tried(adaptive=True) > 2 * kernels_tried(adaptive=False)


def test_what_is_never_asked_for_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = CONFIG.population * 20
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, CONFIG, np.random.default_rng(0))
    evolution.tell(evaluate(evolution.ask()))
    evolution.refusals.clear()

    def repeats(*args: Any) -> Candidate:
        return ORIGINAL

    monkeypatch.setattr("opadapt.search.evolve.vary", repeats)
    assert evolution.ask() == []
    assert evolution.refusals == {("seen", "the same program as an earlier candidate"): tries}
    evolution.tell([])
    evolution.refusals.clear()

    def fails(*args: Any) -> Candidate:
        args[-1](ProgramError("sizes differ"))
        raise DoesNotApply("no mutation fits")

    monkeypatch.setattr("opadapt.search.evolve.vary", fails)
    assert evolution.ask() == []
    assert evolution.refusals == {("verify", "sizes differ"): tries}


def test_a_search_tells_of_both() -> None:
    found = [search(seed).refusals for seed in (0, 1, 2, 3)]
    assert {stage for refusals in found for stage, _ in refusals} == {"seen", "verify"}


def test_fitness_must_be_finite() -> None:
    with pytest.raises(ValueError, match="refuse the candidate"):
        Individual(ORIGINAL, Scores(1.0, float("nan")))


def test_front_is_not_dominated() -> None:
    evolution = search(0)
    front = evolution.front()
    assert front
    for one in front:
        assert not any(
            o.scores.latency_s <= one.scores.latency_s and o.scores.damage < one.scores.damage
            for o in evolution.archive
        )


def test_global_random_is_left_as_it_was() -> None:
    random.seed(42)
    before = random.getstate()
    search(1)
    assert random.getstate() == before


def test_random_search_never_selects() -> None:
    """Chains of mutations of the original, whatever was found before."""
    config = CONFIG.model_copy(update={"method": "random"})
    evolution = Evolution(ORIGINAL, Scores(1.0, 0.0), SPACE, config, np.random.default_rng(0))
    lengths: set[int] = set()
    while not evolution.done:
        asked = evolution.ask()
        assert len(asked) == config.population
        for candidate in asked:
            first, *steps = candidate.origin.split(" > ")
            assert first == "original" and " x " not in candidate.origin
            lengths.add(len(steps))
        evolution.tell(evaluate(asked))
    assert lengths == {1, 2, 3, 4}

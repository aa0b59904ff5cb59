"""Cheapest check first: what an earlier stage refuses costs a later one nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from programs import block_candidate

from opadapt.errors import ProgramError, Refused
from opadapt.ir.cost import count_macs
from opadapt.ir.program import make
from opadapt.search.bound import ENOUGH
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.evolve import Scores
from opadapt.search.space import load_space
from opadapt.search.stages import Results, Stages
from opadapt.search.vary import seeds

ORIGINAL = block_candidate()
SEEDS = list(seeds(ORIGINAL, load_space(), 0))
BATCH = SEEDS[:6]


class Counting:
    """A stage that remembers what it was asked and answers from a list."""

    def __init__(self, answers: Sequence[float | Refused]) -> None:
        self.answers, self.asked = answers, 0

    async def __call__(self, candidates: AsyncGenerator[Candidate, None]) -> Results:
        async for _ in candidates:
            self.asked += 1
            yield self.answers[self.asked - 1]


def stages(latency: Counting, damage: Counting, config: SearchConfig | None = None) -> Stages:
    return Stages(ORIGINAL, 1.0, config or SearchConfig(), lambda candidate: None, latency, [damage])


def test_slow_and_crashed_candidates_are_not_trained() -> None:
    latency = Counting([0.5, 1.5, Refused("latency", "SIGILL"), 0.7, 1.0, 0.1])
    damage = Counting([0.1, 0.2, float("nan")])
    made = stages(latency, damage)
    results = asyncio.run(made.evaluate(BATCH))
    assert damage.asked == 3
    assert results[0] == Scores(0.5, 0.1) and results[3] == Scores(0.7, 0.2)
    refused = {i: r.stage for i, r in enumerate(results) if isinstance(r, Refused)}
    assert refused == {1: "latency", 2: "latency", 4: "latency", 5: "distil"}
    assert made.refusals["latency", "SIGILL"] == 1 and made.refusals["distil", "training diverged"] == 1


def test_what_saves_too_little_is_not_worth_training() -> None:
    damage = Counting([0.1])
    made = stages(Counting([0.9, 0.79]), damage, SearchConfig(min_gain=0.2))
    results = asyncio.run(made.evaluate(BATCH[:2]))
    assert damage.asked == 1 and results[1] == Scores(0.79, 0.1)
    assert isinstance(results[0], Refused) and results[0].reason == "saves less than 20% of the original"


def test_static_bounds_cost_no_measurement() -> None:
    limit = len(ORIGINAL.program.body) + 4
    within, longer = (
        [c for c in SEEDS if (len(c.program.body) > limit) == long][:3] for long in (False, True)
    )
    latency = Counting([0.5] * 3)
    made = stages(latency, Counting([0.1] * 3), SearchConfig(max_instructions=8))
    results = asyncio.run(made.evaluate([*longer, *within]))
    assert [isinstance(r, Refused) and r.stage == "static" for r in results] == [True] * 3 + [False] * 3
    assert latency.asked == 3


@pytest.mark.parametrize(("limit", "spare"), [(8, 4), (16, 8), (40, 23)])
def test_a_long_original_leaves_room_for_rules_that_lengthen_it(limit: int, spare: int) -> None:
    """Half of the limit beyond the original's 17 instructions, or the limit where that is more."""
    program = ORIGINAL.program
    assert len(program.body) == 17
    for more, fits in ((0, True), (spare, True), (spare + 1, False)):
        longer = tuple(make("tanh", (len(program.types) - 1 + i,)) for i in range(more))
        candidate = Candidate(
            replace(program, body=program.body + longer, output=program.output + more),
            ORIGINAL.bindings,
            "tanh",
        )
        config = SearchConfig(max_instructions=limit, max_bytes_ratio=100)
        made = stages(Counting([0.5]), Counting([0.1]), config)
        (result,) = asyncio.run(made.evaluate([candidate]))
        assert (result == Scores(0.5, 0.1)) == fits
        assert fits or (isinstance(result, Refused) and result.stage == "static")


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("max_macs_ratio", "MACs"),
        ("max_bytes_ratio", "bytes moved"),
        ("max_parameters_ratio", "parameters"),
    ],
)
def test_every_static_bound_is_relative_to_the_original(field: str, reason: str) -> None:
    config = SearchConfig(**{field: 1e-6})
    result = asyncio.run(stages(Counting([0.5]), Counting([0.1]), config).evaluate(BATCH[:1]))[0]
    assert isinstance(result, Refused) and result.stage == "static" and reason in result.reason
    wide = SearchConfig(**{field: 100.0})
    assert asyncio.run(stages(Counting([0.5]), Counting([0.1]), wide).evaluate(BATCH[:1])) == [
        Scores(0.5, 0.1)
    ]


def test_the_same_function_at_the_same_cost_is_seen_once() -> None:
    latency = Counting([0.5, 0.5])
    made = stages(latency, Counting([0.1, 0.1]))
    renamed = Candidate(BATCH[0].program, BATCH[0].bindings, "another way to the same place")
    first, second = asyncio.run(made.evaluate([BATCH[0], renamed]))
    assert first == Scores(0.5, 0.1) and latency.asked == 1
    assert isinstance(second, Refused) and second.stage == "seen"


def relu_twice(first: str, second: str) -> Candidate:
    """The original with two instructions behind it."""
    program = ORIGINAL.program
    number = len(program.types)
    body = (*program.body, make(first, (program.output,)), make(second, (number,)))
    return Candidate(replace(program, body=body, output=number + 1), ORIGINAL.bindings, f"{first} {second}")


def test_what_is_equal_up_to_rounding_is_seen_and_what_is_not_is_not() -> None:
    """The original ends in a ReLU, whose root squared is itself, but for rounding."""
    latency = Counting([0.5] * 3)
    made = stages(latency, Counting([0.1] * 3), SearchConfig(max_bytes_ratio=100))
    batch = [relu_twice("sqrt", "square"), relu_twice("square", "sqrt"), relu_twice("square", "square")]
    one, same, other = asyncio.run(made.evaluate(batch))
    assert isinstance(one, Scores) and isinstance(other, Scores)
    assert isinstance(same, Refused) and same.stage == "seen"


def test_new_kernels_that_are_the_identity_yet_are_not_the_same() -> None:
    zeros = {n: w * (np.arange(w.size).reshape(w.shape) > 0) for n, w in ORIGINAL.bindings[0].items()}
    candidate = Candidate(ORIGINAL.program, (zeros,), "with zeros")
    made = stages(Counting([0.5] * 2), Counting([0.1] * 2))
    results = asyncio.run(made.evaluate([candidate, replace(candidate, origin="again")]))
    assert all(isinstance(result, Scores) for result in results)


def test_what_is_not_finite_where_the_original_is_costs_no_measurement() -> None:
    program = ORIGINAL.program
    body = (*program.body[:-1], make("log", program.body[-1].args))
    logarithm = Candidate(replace(program, body=body), ORIGINAL.bindings, "relu -> log")
    latency, damage = Counting([0.5]), Counting([0.1])
    (result,) = asyncio.run(stages(latency, damage).evaluate([logarithm]))
    assert isinstance(result, Refused) and result.stage == "verify" and latency.asked == 0
    made = Stages(logarithm, 1.0, SearchConfig(), lambda candidate: None, latency, [damage])
    assert asyncio.run(made.evaluate([logarithm])) == [Scores(0.5, 0.1)]


def test_what_does_not_lower_is_refused_by_name() -> None:
    def lower(candidate: Candidate) -> None:
        raise ProgramError("no kernel for that")

    made = Stages(ORIGINAL, 1.0, SearchConfig(), lower, Counting([]), [Counting([])])
    (result,) = asyncio.run(made.evaluate(BATCH[:1]))
    assert isinstance(result, Refused) and (result.stage, result.reason) == ("lower", "no kernel for that")


def test_results_keep_the_order_of_the_batch() -> None:
    latency = Counting([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    results = asyncio.run(stages(latency, Counting([0.1] * 6)).evaluate(BATCH))
    assert [r.latency_s for r in results if isinstance(r, Scores)] == pytest.approx(
        [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )


# rungs of distillation


class Answers:
    """A stage with an answer for each candidate by its place in ``BATCH``; remembers whom it was asked about."""

    def __init__(self, answers: dict[int, float | Refused], log: list[str] | None = None) -> None:
        self.answers, self.asked = answers, list[int]()
        self.log = [] if log is None else log

    async def __call__(self, candidates: AsyncGenerator[Candidate, None]) -> Results:
        async for candidate in candidates:
            place = next(i for i, other in enumerate(BATCH) if other is candidate)
            self.asked.append(place)
            self.log.append(f"{id(self)} {place}")
            yield self.answers[place]


def halved(latency: Answers, *rungs: Answers, overlap: bool = False) -> tuple[Stages, list[Scores | Refused]]:
    made = Stages(ORIGINAL, 1.0, SearchConfig(), lambda candidate: None, latency, rungs, overlap=overlap)
    return made, asyncio.run(made.evaluate(BATCH))


def by_place(values: Sequence[float | Refused]) -> dict[int, float | Refused]:
    return dict(enumerate(values))


FAST = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # each faster than the next and, with the errors below, worse than it
ERRORS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_better_half_is_trained_on_and_the_others_keep_their_error(overlap: bool) -> None:
    log: list[str] = []
    first, second = Answers(by_place(ERRORS), log), Answers({0: 0.03, 3: 0.02, 5: 0.01}, log)
    _, results = halved(Answers(by_place(FAST)), first, second, overlap=overlap)
    assert results == [
        Scores(0.1, 0.03, 2),
        Scores(0.2, 0.8),
        Scores(0.3, 0.7),
        Scores(0.4, 0.02, 2),
        Scores(0.5, 0.5),
        Scores(0.6, 0.01, 2),
    ]
    assert second.asked == [0, 3, 5]
    assert log == [f"{id(first)} {i}" for i in range(6)] + [f"{id(second)} {i}" for i in (0, 3, 5)]


def test_every_rung_halves_what_the_one_before_trained() -> None:
    rungs = Answers(by_place(ERRORS)), Answers({0: 0.01, 3: 0.02, 5: 0.03}), Answers({0: 0.001, 3: 0.002})
    _, results = halved(Answers(by_place(FAST)), *rungs)
    assert [rung.asked for rung in rungs] == [[0, 1, 2, 3, 4, 5], [0, 3, 5], [0, 3]]
    assert [r.rungs for r in results if isinstance(r, Scores)] == [3, 1, 1, 3, 1, 2]
    assert results[5] == Scores(0.6, 0.03, 2)


def test_only_what_was_trained_counts_as_the_generation() -> None:
    """Half of the four that were trained, not of the six that were asked for; what fails later is refused."""
    first = Answers({0: 0.4, 2: Refused("distil", "torch"), 3: 0.3, 4: 0.2, 5: 0.1})
    second = Answers({0: 0.02, 5: float("nan")})
    latency = Answers(by_place([0.1, 1.5, 0.3, 0.4, 0.5, 0.6]))
    made, results = halved(latency, first, second)
    assert first.asked == [0, 2, 3, 4, 5] and second.asked == [0, 5]
    assert results[0] == Scores(0.1, 0.02, 2) and results[3] == Scores(0.4, 0.3)
    refused = {i: r.reason for i, r in enumerate(results) if isinstance(r, Refused)}
    assert refused == {1: "no faster than the original", 2: "torch", 5: "training diverged"}
    assert sum(made.refusals.values()) == 3


# bounds learned during the search

SEEDS = list(seeds(ORIGINAL, load_space(), 0))


class ByMacs:
    """A device on which latency is the share of the original's MACs; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Candidate] = []

    async def __call__(self, candidates: AsyncGenerator[Candidate, None]) -> Results:
        async for candidate in candidates:
            self.asked.append(candidate)
            yield share(candidate)


def share(candidate: Candidate) -> float:
    return count_macs(candidate.program) / count_macs(ORIGINAL.program)


async def always(candidates: AsyncGenerator[Candidate, None]) -> Results:
    async for _ in candidates:
        yield 0.1


def two_generations(config: SearchConfig) -> tuple[int, list[Scores | Refused], list[Scores | Refused]]:
    """The same candidates twice; how many were measured the first time."""
    device = ByMacs()
    made = Stages(ORIGINAL, 1.0, config, lambda candidate: None, device, [always])
    first = asyncio.run(made.evaluate(SEEDS))
    return len(device.asked), first, asyncio.run(made.evaluate(SEEDS))


def refused_by(results: Sequence[Scores | Refused], stage: str) -> list[int]:
    return [i for i, r in enumerate(results) if isinstance(r, Refused) and r.stage == stage]


def test_what_was_measured_refuses_what_cannot_be_fast_in_a_later_generation_alone() -> None:
    config = SearchConfig(max_macs_ratio=9.0)
    measured, first, second = two_generations(config)
    assert measured >= ENOUGH
    assert not refused_by(first, "bound")
    hopeless = refused_by(second, "bound")
    slow = [i for i in range(len(SEEDS)) if share(SEEDS[i]) >= 1 - config.min_gain]
    assert hopeless and set(hopeless) <= set(slow)
    reason = second[hopeless[0]]
    assert isinstance(reason, Refused)
    assert f"by {measured} measured programs; less than 85% is wanted" in reason.reason
    assert 85 <= int(reason.reason.split("%")[0].split()[-1]) <= 100 * share(SEEDS[hopeless[0]])


def test_learned_bounds_can_be_left_out() -> None:
    _, first, second = two_generations(SearchConfig(max_macs_ratio=9.0, learned_bounds=False))
    assert not refused_by(first, "bound") and not refused_by(second, "bound")
    assert len(refused_by(second, "seen")) >= len(refused_by(first, "latency"))


def test_a_few_measured_programs_bound_nothing() -> None:
    device = ByMacs()
    made = Stages(ORIGINAL, 1.0, SearchConfig(), lambda candidate: None, device, [always])
    for _ in range(2):
        results = asyncio.run(made.evaluate(BATCH))
    assert device.asked and not refused_by(results, "bound")

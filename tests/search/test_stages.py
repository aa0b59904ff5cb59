"""Cheapest check first: what an earlier stage refuses costs a later one nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import pytest
from programs import block_candidate

from opadapt.errors import ProgramError, Refused
from opadapt.ir.program import make
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
    return Stages(ORIGINAL, 1.0, config or SearchConfig(), lambda candidate: None, latency, damage)


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


def test_what_is_not_finite_where_the_original_is_costs_no_measurement() -> None:
    program = ORIGINAL.program
    body = (*program.body[:-1], make("log", program.body[-1].args))
    logarithm = Candidate(replace(program, body=body), ORIGINAL.bindings, "relu -> log")
    latency, damage = Counting([0.5]), Counting([0.1])
    (result,) = asyncio.run(stages(latency, damage).evaluate([logarithm]))
    assert isinstance(result, Refused) and result.stage == "verify" and latency.asked == 0
    made = Stages(logarithm, 1.0, SearchConfig(), lambda candidate: None, latency, damage)
    assert asyncio.run(made.evaluate([logarithm])) == [Scores(0.5, 0.1)]


def test_what_does_not_lower_is_refused_by_name() -> None:
    def lower(candidate: Candidate) -> None:
        raise ProgramError("no kernel for that")

    made = Stages(ORIGINAL, 1.0, SearchConfig(), lower, Counting([]), Counting([]))
    (result,) = asyncio.run(made.evaluate(BATCH[:1]))
    assert isinstance(result, Refused) and (result.stage, result.reason) == ("lower", "no kernel for that")


def test_results_keep_the_order_of_the_batch() -> None:
    latency = Counting([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    results = asyncio.run(stages(latency, Counting([0.1] * 6)).evaluate(BATCH))
    assert [r.latency_s for r in results if isinstance(r, Scores)] == pytest.approx(
        [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )

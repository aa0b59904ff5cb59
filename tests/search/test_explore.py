"""The search of one group as a step, with a device and a trainer that answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from programs import block_candidate

from opadapt.errors import ProgramError
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.space import load_space
from opadapt.steps import explore as step

ORIGINAL = block_candidate()
ORIGINAL_S, SLOW_S = 1.0, 2.0


class Slow:
    """Every candidate is slower than the original."""

    def __init__(self, *args: Any) -> None: ...

    async def __call__(self, candidates: AsyncIterable[Candidate]) -> AsyncGenerator[float, None]:
        async for _ in candidates:
            yield SLOW_S


class Untrained:
    """Nothing is ever fast enough to be trained."""

    def __init__(self, *args: Any) -> None:
        self.rungs = (self.probe,)

    async def probe(self, candidates: AsyncIterable[Candidate]) -> AsyncGenerator[float, None]:
        async for candidate in candidates:
            raise AssertionError(candidate.origin)
            yield


def context() -> Any:
    def ignore(*args: Any) -> None: ...

    config = SearchConfig(population=4, generations=1)
    return SimpleNamespace(
        experiment=SimpleNamespace(search=config, timing=None),
        opset=20,
        quick_timing=None,
        apart=False,
        progress=SimpleNamespace(advance=ignore, note=ignore, stage=ignore),
        space=load_space("quick"),
        rng=lambda *args: np.random.default_rng(0),
        stop_search=lambda *args: False,
        journal=SimpleNamespace(once=ignore),
    )


def repeats(*args: Any) -> Candidate:
    """A variation that fails to type-check once, and then gives what is known."""
    args[-1](ProgramError("sizes differ"))
    return ORIGINAL


@pytest.fixture
def explored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], step.Explored]:
    """The search of a region of a kind, in which all is slow and nothing new is bred."""
    monkeypatch.setattr("opadapt.search.evolve.vary", repeats)
    monkeypatch.setattr(step, "GroupLatency", Slow)
    monkeypatch.setattr(step, "GroupTraining", Untrained)
    profile: Any = SimpleNamespace(wall=SimpleNamespace(value=ORIGINAL_S))
    activations: Any = SimpleNamespace(folder=tmp_path, samples=lambda group: ())
    model: Any = SimpleNamespace(digest="model")

    def search(kind: str) -> step.Explored:
        member: Any = SimpleNamespace(
            expanded=SimpleNamespace(binding=ORIGINAL.bindings[0]),
            region=SimpleNamespace(name="region", kind=kind),
        )
        group: Any = SimpleNamespace(program=ORIGINAL.program, members=[member], key="region")
        ranked = step.Ranked(group, ORIGINAL_S, 0, 1.0)
        return asyncio.run(step.explore(context(), model, profile, ranked, activations))

    return search


def test_refusals_before_and_in_the_evaluation_are_counted_together(
    explored: Callable[[str], step.Explored],
) -> None:
    found = explored("block")
    assert not found.archive
    assert found.refusals["latency", "no faster than the original"] > 0
    assert found.refusals["seen", "the same program as an earlier candidate"] > 0
    assert found.refusals["verify", "sizes differ"] > 0


def test_rules_are_no_seeds_of_a_stage(explored: Callable[[str], step.Explored]) -> None:
    assert {stage for stage, _ in explored("stage").refusals} == {"seen", "verify"}  # of what was bred

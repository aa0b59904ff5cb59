"""Evaluation of candidates, cheapest check first; every refusal names its stage and its reason.

Latency and damage are streams: each takes candidates as they come and gives their results in that order, working
ahead of what is taken from it. Chained, the host trains what has been measured while the next is being measured. Who is
trained further is decided when the whole generation has been trained shortly.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from opadapt.errors import OpadaptError, ProgramError, Refused
from opadapt.ir.cost import count_bytes, count_macs, count_params
from opadapt.ir.interpret import run
from opadapt.ir.spec import Array
from opadapt.search.bound import Bound, Work, learn, work_of
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.evolve import Scores
from opadapt.search.halving import better_half

T = TypeVar("T")

PROBE_DECIMALS = 4  # of the original's size; equal functions differ by float rounding, about 1e-6
PROJECTIONS = (
    8  # of an output, on which programs are compared: of few numbers hardly one is rounded either way
)

Results = AsyncGenerator[
    float | Refused, None
]  # in the order of the candidates; closed when not all are taken

Stage = Callable[[AsyncGenerator[Candidate, None]], Results]


async def stream(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """The items, for those who take a stream."""
    for item in items:
        yield item


def _unseen(done: int, detail: str) -> None:
    """Progress that nobody looks at."""


def _probe(candidate: Candidate) -> Array:
    """A candidate's output on normal inputs at batch 1, the same ones for all of a signature."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(t.at_batch(1)).astype(np.float32) for t in candidate.program.inputs]
    return run(candidate.program, inputs, candidate.bindings[0])


@dataclass
class Stages:
    """The staged evaluation of one group's candidates.

    ``latency`` measures the latency of one member in seconds; each of ``rungs`` trains on from where the one before
    it ended, longer than that, and returns the normalised error. ``lower`` makes the nodes and raises where it cannot.
    With ``overlap`` candidates are trained while others are measured; without, where the same machine does both, all
    are measured first. The results are the same. ``advance`` is told how many candidates are settled, and what was
    done. ``measured`` are the latencies (s) of earlier batches and what was measured: what is bounded by them does not
    depend on which candidate of a batch is measured first.
    """

    original: Candidate
    original_latency_s: float
    config: SearchConfig
    lower: Callable[[Candidate], None]
    latency: Stage
    rungs: Sequence[Stage]
    overlap: bool = False
    advance: Callable[[int, str], None] = _unseen
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    probed: set[tuple[bytes, Work, int]] = field(default_factory=set)
    measured: list[tuple[Work, float]] = field(default_factory=list)

    async def evaluate(self, batch: Sequence[Candidate]) -> list[Scores | Refused]:
        """Scores or a refusal for each candidate, in order."""
        results: dict[int, Scores | Refused] = {}
        alive: list[int] = []
        bound = self._learned()
        for i, candidate in enumerate(batch):
            try:
                self._static(candidate)
                self._hopeless(candidate, bound)
                self._lower(candidate)
                self._repeated(candidate)
                alive.append(i)
            except Refused as refused:
                results[i] = refused
        latencies_s = await self._measure_and_train(batch, alive, results)
        await self._train_on(batch, results)
        self.measured += [(work_of(batch[i].program), value) for i, value in latencies_s.items()]
        for i in range(len(batch)):
            result = results[i]
            if isinstance(result, Refused):
                self.refusals[result.stage, result.reason] += 1
        return [results[i] for i in range(len(batch))]

    async def _measure_and_train(
        self, batch: Sequence[Candidate], alive: Sequence[int], results: dict[int, Scores | Refused]
    ) -> dict[int, float]:
        """Fill in the results of those that lower, trained on the first rung. Returns the latencies (s) of all that
        could be timed."""
        latencies_s: dict[int, float] = {}
        passed: list[int] = []
        timed = trained = 0

        def advance() -> None:
            self.advance(len(results), f"{timed} timed, {trained} trained")

        async def fast_enough(latencies: Results) -> AsyncGenerator[Candidate, None]:
            nonlocal timed
            async for latency in latencies:
                i = alive[timed]
                timed += 1
                if not isinstance(latency, Refused):
                    latencies_s[i] = latency
                found = self._worth_training(latency)
                if isinstance(found, Refused):
                    results[i] = found
                else:
                    passed.append(i)
                advance()
                if i not in results:
                    yield batch[i]

        async with contextlib.aclosing(self.latency(stream([batch[i] for i in alive]))) as latencies:
            fast = fast_enough(latencies)
            if not self.overlap:
                fast = stream([candidate async for candidate in fast])
            async with contextlib.aclosing(self.rungs[0](fast)) as damages:
                async for damage in damages:
                    i = passed[trained]
                    trained += 1
                    results[i] = self._scores(latencies_s[i], damage, 1)
                    advance()
        if timed != len(alive) or trained != len(passed):
            raise RuntimeError(f"{timed} of {len(alive)} timed, {trained} of {len(passed)} trained")
        return latencies_s

    async def _train_on(self, batch: Sequence[Candidate], results: dict[int, Scores | Refused]) -> None:
        """Train the better half of those with scores on the second rung, the better half of these on the third."""
        going = {i: result for i, result in results.items() if isinstance(result, Scores)}
        for number, rung in enumerate(self.rungs[1:], start=2):
            chosen = better_half(going)
            trained: dict[int, Scores | Refused] = {}
            async with contextlib.aclosing(rung(stream([batch[i] for i in chosen]))) as damages:
                async for damage in damages:
                    i = chosen[len(trained)]
                    trained[i] = self._scores(going[i].latency_s, damage, number)
                    self.advance(len(batch), f"{len(trained)} of {len(chosen)} trained further")
            if len(trained) != len(chosen):
                raise RuntimeError(f"{len(trained)} of {len(chosen)} trained further")
            results.update(trained)
            going = {i: result for i, result in trained.items() if isinstance(result, Scores)}

    @property
    def _needed_s(self) -> float:
        """What is no faster is not worth training."""
        return (1 - self.config.min_gain) * self.original_latency_s

    def _worth_training(self, latency: float | Refused) -> float | Refused:
        if isinstance(latency, Refused) or latency < self._needed_s:
            return latency
        if latency < self.original_latency_s:
            return Refused("latency", f"saves less than {self.config.min_gain:.0%} of the original")
        return Refused("latency", "no faster than the original")

    @staticmethod
    def _scores(latency_s: float, damage: float | Refused, rungs: int) -> Scores | Refused:
        if isinstance(damage, Refused):
            return damage
        if not math.isfinite(damage):
            return Refused("distil", "training diverged")
        return Scores(latency_s, damage, rungs)

    def _static(self, candidate: Candidate) -> None:
        limit = self.config.max_instructions
        longest = max(limit, len(self.original.program.body) + limit // 2)
        if len(candidate.program.body) > longest:
            raise Refused("static", f"more than {longest} instructions")
        bounds = (
            ("MACs", count_macs, self.config.max_macs_ratio),
            ("bytes moved", count_bytes, self.config.max_bytes_ratio),
            ("parameters", count_params, self.config.max_parameters_ratio),
        )
        for what, count, most in bounds:
            allowed = most * count(self.original.program)
            if allowed and count(candidate.program) > allowed:
                raise Refused("static", f"more than {most:g} times the original's {what}")
        if 0 not in {a for step in candidate.program.body for a in step.args} | {candidate.program.output}:
            raise Refused("static", "the input is not used")

    def _learned(self) -> Bound:
        """What the original and the earlier batches tell about latencies."""
        original = work_of(self.original.program), self.original_latency_s
        return learn([original, *self.measured] if self.config.learned_bounds else [])

    def _hopeless(self, candidate: Candidate, bound: Bound) -> None:
        """What would be too slow at best is not measured."""
        least_s = bound(work_of(candidate.program))
        if least_s > self._needed_s:
            share, most = math.floor(100 * least_s / self.original_latency_s), 1 - self.config.min_gain
            reason = f"at least {share}% of the original's latency, by {len(self.measured)} measured programs"
            raise Refused("bound", f"{reason}; less than {most:.0%} is wanted")

    @cached_property
    def _original_size(self) -> float:
        """The Euclidean norm of its output on the probe, NaN where that is not finite."""
        return float(np.linalg.norm(_probe(self.original).astype(np.float64))) or 1.0

    def _repeated(self, candidate: Candidate) -> None:
        """Another way to write a function that was tried at the same cost: nothing is measured or trained twice.

        Weights of zeros show nothing: a new kernel begins as the identity, whatever it may learn.
        """
        try:
            output = _probe(candidate)
        except ProgramError as error:
            raise Refused("verify", error.message) from error
        if not np.isfinite(output).all():
            if math.isfinite(self._original_size):
                raise Refused("verify", "not finite on random inputs, on which the original is")
            return
        if any(w.ndim > 1 and not w.all() for w in candidate.bindings[0].values()):
            return
        flat = output.ravel().astype(np.float64)
        directions = np.random.default_rng(flat.size).standard_normal((PROJECTIONS, flat.size))
        size = self._original_size if math.isfinite(self._original_size) else 1.0
        rounded = np.round(directions @ flat / size, PROBE_DECIMALS) + 0.0  # + 0.0: there is one zero
        program = candidate.program
        key = (hashlib.sha256(rounded.tobytes()).digest(), work_of(program), count_params(program))
        if key in self.probed:
            raise Refused("seen", "computes the same as an earlier candidate, at the same cost")
        self.probed.add(key)

    def _lower(self, candidate: Candidate) -> None:
        try:
            self.lower(candidate)
        except Refused:
            raise
        except OpadaptError as error:
            raise Refused("lower", error.message) from error

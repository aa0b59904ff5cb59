"""Evaluation of candidates, cheapest check first; every refusal names its stage and its reason."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from opadapt.errors import OpadaptError, ProgramError, Refused
from opadapt.ir.cost import count_bytes, count_macs, count_params
from opadapt.ir.interpret import run
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.evolve import Scores

PROBE_DECIMALS = 4  # of the largest output; equal functions differ by float rounding, about 1e-6

Results = list[float | Refused]
Stage = Callable[[Sequence[Candidate]], Results]


@dataclass
class Stages:
    """The staged evaluation of one group's candidates.

    ``latency`` measures the latency of one member in seconds; ``damage`` trains shortly and returns the normalised
    error. Both take a batch, so that a device and worker processes can be kept busy, and answer in its order.
    ``lower`` makes the nodes and raises where it cannot.
    """

    original: Candidate
    original_latency_s: float
    config: SearchConfig
    lower: Callable[[Candidate], None]
    latency: Stage
    damage: Stage
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    probed: set[tuple[bytes, int, int, int]] = field(default_factory=set)

    def evaluate(self, batch: Sequence[Candidate]) -> list[Scores | Refused]:
        """Scores or a refusal for each candidate, in order."""
        results: dict[int, Scores | Refused] = {}
        alive: list[int] = []
        for i, candidate in enumerate(batch):
            try:
                self._static(candidate)
                self._repeated(candidate)
                self._lower(candidate)
                alive.append(i)
            except Refused as refused:
                results[i] = refused
        latencies = self._stage(batch, alive, self.latency, results)
        alive = []
        for i, latency_s in latencies.items():
            if latency_s < (1 - self.config.min_gain) * self.original_latency_s:
                alive.append(i)
            elif latency_s < self.original_latency_s:
                results[i] = Refused("latency", f"saves less than {self.config.min_gain:.0%} of the original")
            else:
                results[i] = Refused("latency", "no faster than the original")
        for i, damage in self._stage(batch, alive, self.damage, results).items():
            if math.isfinite(damage):
                results[i] = Scores(latencies[i], damage)
            else:
                results[i] = Refused("distil", "training diverged")
        for result in results.values():
            if isinstance(result, Refused):
                self.refusals[result.stage, result.reason] += 1
        return [results[i] for i in range(len(batch))]

    @staticmethod
    def _stage(
        batch: Sequence[Candidate], alive: Sequence[int], stage: Stage, results: dict[int, Scores | Refused]
    ) -> dict[int, float]:
        found: dict[int, float] = {}
        if alive:
            for i, value in zip(alive, stage([batch[i] for i in alive]), strict=True):
                if isinstance(value, Refused):
                    results[i] = value
                else:
                    found[i] = value
        return found

    def _static(self, candidate: Candidate) -> None:
        if len(candidate.program.body) > self.config.max_instructions:
            raise Refused("static", f"more than {self.config.max_instructions} instructions")
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

    def _repeated(self, candidate: Candidate) -> None:
        """Another way to write a function that was tried at the same cost: nothing is measured or trained twice."""
        program = candidate.program
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal(t.at_batch(1)).astype(np.float32) for t in program.inputs]
        try:
            output = run(program, inputs, candidate.bindings[0])
        except ProgramError as error:
            raise Refused("verify", error.message) from error
        scale = float(np.abs(output).max()) or 1.0
        rounded = np.round(output / scale, PROBE_DECIMALS) + 0.0  # + 0.0: there is one zero
        function = hashlib.sha256(rounded.tobytes()).digest()
        key = (function, count_macs(program), count_bytes(program), count_params(program))
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

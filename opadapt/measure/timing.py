"""Block times and what may be concluded from them: medians, paired ratios, the noise floor, the verdict.

Blocks of the compared models alternate (ABBA), so that block i of one and block i of another were run close
in time: ratios are taken per pair, and drift cancels. Intervals are order statistics of the pairs: exact for
any distribution, and without random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.stats import binom

CONFIDENCE = 0.95
_OVERALL: Mapping[str, Callable[[list[Any]], Any]] = {  # conditions that all processes make together
    "discarded_blocks": sum,
    "waited_s": sum,
    "too_hot": any,
}
MIN_BLOCKS = 6  # with fewer, not even the range of the pairs covers the median with 95 %


class Timing(BaseModel):
    """How long and how often a latency is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=1, ge=1, description="threads within an operator (intra_op_num_threads)")
    blocks: int = Field(
        default=12, ge=MIN_BLOCKS, description="blocks per model; blocks of the models alternate"
    )
    processes: int = Field(
        default=1,
        ge=1,
        description="processes that measure the same models anew, one after the other: where a process lies in "
        "memory can make a small model a tenth faster or slower. With several, 6 at least, the median of each "
        "counts as one block, so that intervals cover this, too. Comparisons of models only: one process profiles",
    )
    min_block_s: float = Field(default=0.05, gt=0, description="least duration of a block, in seconds")
    min_runs: int = Field(default=5, ge=1, description="least number of runs in a block")
    warmup_s: float = Field(
        default=0.2, ge=0, description="runs before the first block, in seconds per model"
    )
    profile_s: float = Field(default=0.5, gt=0, description="duration of the profiled runs, in seconds")
    seed: int = Field(default=0, ge=0, description="seed of the made-up inputs")
    timeout_s: float = Field(
        default=600.0, gt=0, description="longest wait for the measurement of one model, in seconds"
    )

    @model_validator(mode="after")
    def _enough_processes(self) -> Self:
        if 1 < self.processes < MIN_BLOCKS:
            raise ValueError(
                f"processes: 1, or {MIN_BLOCKS} and more, found {self.processes}: fewer give no interval"
            )
        return self

    def key(self) -> dict[str, Any]:
        """What the samples depend on, for the keys that they are recorded under. The time limit is none of that: it
        stands at its default there, as in the keys of runs that never changed it. One process has no entry, as in
        journals of versions that knew of one only."""
        key = self.model_dump() | {"timeout_s": type(self).model_fields["timeout_s"].default}
        if self.processes == 1:
            del key["processes"]
        return key


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True, eq=False)
class BlockTimes:
    """Medians of the blocks of one interleaved measurement, or of the processes that took part in it.

    ``latency_s``: float64 ``[models, blocks]``, seconds per run. ``order``: the model of each block as run, by one
    process after the other.
    ``conditions``: versions, provider, threads, CPU, heat, clocks and load, before and after; how long the device
    cooled down, how many blocks were thrown away. ``energy_j``: joules per run of each model, None where it was not
    asked for or nothing measures it.
    """

    latency_s: NDArray[np.float64]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    energy_j: tuple[float, ...] | None = None


class Clock(Protocol):
    """What times models: a device, as far as this module needs it."""

    def time(self, models: Sequence[bytes], timing: Timing) -> BlockTimes: ...


def in_processes(timing: Timing, least: int) -> Timing:
    """The same in so many processes at least."""
    return timing.model_copy(update={"processes": max(timing.processes, least)})


def of_processes(found: Sequence[BlockTimes]) -> BlockTimes:
    """Measurements of the same models by several processes as one, whose blocks are their medians.

    Blocks of one process are alike in what sets processes apart: taken as so many samples they would pretend to a
    precision that the next process does not confirm. Energy is their median, too; conditions are those of the last
    process, but for what adds up and for the state before the first.
    """
    if len(found) == 1:
        return found[0]
    first, last = found[0].conditions, found[-1].conditions
    overall = {
        name: of([one.conditions[name] for one in found]) for name, of in _OVERALL.items() if name in last
    }
    before = {"before": first["before"]} if "before" in first else {}
    return BlockTimes(
        np.stack([np.median(one.latency_s, axis=1) for one in found], axis=1),
        {**last, **before, **overall, "processes": len(found)},
        tuple(model for one in found for model in one.order),
        _median_energy([one.energy_j for one in found]),
    )


def _median_energy(found: Sequence[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    known = [energy_j for energy_j in found if energy_j is not None]
    return tuple(np.median(known, axis=0).tolist()) if len(known) == len(found) else None


def median_estimate(samples: NDArray[np.float64]) -> Estimate:
    """The median and its interval between order statistics (Conover, Practical Nonparametric Statistics).

    The interval's ends are the k-th smallest and k-th largest sample, with the largest k that still covers
    the true median with 95 %. Raises ValueError for fewer than 6 samples.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    count = len(ordered)
    if count < MIN_BLOCKS:
        raise ValueError(f"a 95 % interval of the median needs {MIN_BLOCKS} blocks or more, found {count}")
    # P(fewer than k samples on one side of the median) = binom.cdf(k - 1) must be at most 2.5 %
    k = int(binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))
    while k > 1 and binom.cdf(k - 1, count, 0.5) > (1 - CONFIDENCE) / 2:
        k -= 1
    k = max(k, 1)
    return Estimate(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[-k]))


def median_latency(times: BlockTimes, model: int) -> Estimate:
    """Latency of one model in seconds: the median of its blocks."""
    return median_estimate(times.latency_s[model])


def ratio(times: BlockTimes, a: int, b: int) -> Estimate:
    """latency(a) / latency(b), from the paired blocks: above 1 means that b is the faster one."""
    logs = median_estimate(np.log(times.latency_s[a]) - np.log(times.latency_s[b]))
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))


def compare_many(times: BlockTimes, base: int = 0) -> list[Estimate]:
    """Speed-up of every model over the base one: ``ratio(times, base, i)`` for each i."""
    return [ratio(times, base, i) for i in range(len(times.latency_s))]


def floor_of(times: BlockTimes, a: int = 0, b: int = 1) -> float:
    """The noise floor shown by two sessions of one model: max(|ratio - 1|, half the interval's width)."""
    found = ratio(times, a, b)
    return max(abs(found.value - 1), found.half_width)


def noise_floor(device: Clock, model: bytes, timing: Timing | None = None) -> float:
    """Relative difference that an A/A run shows: the same model in two sessions, blocks alternating."""
    return floor_of(device.time([model, model], timing or Timing()))


def faster(speedup: Estimate, floor: float) -> bool:
    """Whether a speed-up (old / new) is real: its whole interval above 1 plus the noise floor."""
    return speedup.low > 1 + floor

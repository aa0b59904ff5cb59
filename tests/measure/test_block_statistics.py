"""Medians, ratios, the noise floor and the verdict, on numbers made up for the purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from opadapt.measure.timing import (
    BlockTimes,
    Estimate,
    Timing,
    compare_many,
    faster,
    floor_of,
    in_processes,
    median_estimate,
    median_latency,
    noise_floor,
    of_processes,
    ratio,
)


def test_interval_is_the_widest_order_statistics_that_still_cover() -> None:
    assert median_estimate(np.arange(6.0)) == Estimate(2.5, 0, 5)  # P(outside) = 2 / 64
    assert median_estimate(np.arange(8.0)) == Estimate(3.5, 0, 7)  # 2 * 9 / 256 would be 7 %
    assert median_estimate(np.arange(9.0)) == Estimate(4, 1, 7)  # 2 * 10 / 512 = 3.9 %
    assert median_estimate(np.arange(12.0)) == Estimate(5.5, 2, 9)  # 2 * 79 / 4096 = 3.9 %
    assert median_estimate(np.arange(12.0)[::-1]) == Estimate(5.5, 2, 9)


@pytest.mark.parametrize("count", [6, 7, 12, 25])
def test_interval_covers_the_true_median_95_times_of_100(count: int) -> None:
    rng = np.random.default_rng(3)
    trials = 2000
    found = [median_estimate(rng.lognormal(0, 1, count)) for _ in range(trials)]  # true median: 1
    covered = sum(e.low <= 1 <= e.high for e in found) / trials
    assert covered >= 0.94  # 0.95 less two standard errors


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="6 blocks"):
        median_estimate(np.arange(5.0))
    with pytest.raises(ValidationError):
        Timing(blocks=5)


def test_timing_refuses_unknown_keys_and_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Timing.model_validate({"block": 12})
    with pytest.raises(ValidationError):
        Timing().blocks = 20  # type: ignore[misc]


def test_drift_cancels_in_the_ratio_of_pairs() -> None:
    drift = np.linspace(1, 3, 12)  # a clock that falls to a third
    times = BlockTimes(np.stack([2e-3 * drift, 1e-3 * drift]))
    found = ratio(times, 0, 1)
    assert found.value == pytest.approx(2) and found.half_width < 1e-12
    assert ratio(times, 1, 0).value == pytest.approx(0.5)
    assert median_latency(times, 0).half_width > 1e-3  # while the medians themselves spread widely
    assert median_latency(times, 1).value == pytest.approx(2e-3)


def test_one_disturbed_block_does_not_matter() -> None:
    latency_s = np.full((2, 12), 1e-3)
    latency_s[1, 4] = 1.0
    assert ratio(BlockTimes(latency_s), 0, 1) == Estimate(1, 1, 1)


def test_compare_many_against_the_base() -> None:
    times = BlockTimes(np.array([4.0, 2.0, 8.0])[:, None] * np.ones(6))
    assert [e.value for e in compare_many(times)] == pytest.approx([1, 2, 0.5])
    assert [e.value for e in compare_many(times, base=1)] == pytest.approx([0.5, 1, 0.25])


def test_floor_is_the_larger_of_bias_and_spread() -> None:
    blocks = np.ones(6)
    biased = BlockTimes(np.stack([1.03 * blocks, blocks]))
    assert floor_of(biased) == pytest.approx(0.03)
    spread = BlockTimes(np.stack([blocks * [0.9, 1.1, 0.9, 1.1, 0.9, 1.1], blocks]))
    assert floor_of(spread) == pytest.approx(0.1)


def test_noise_floor_times_the_same_model_twice() -> None:
    class Clock:
        def time(self, models: Sequence[bytes], timing: Timing) -> BlockTimes:
            assert list(models) == [b"m", b"m"] and timing.blocks == 8
            return BlockTimes(np.stack([np.full(8, 1.0), np.full(8, 1.25)]))

    assert noise_floor(Clock(), b"m", Timing(blocks=8)) == pytest.approx(0.2)


def test_a_gain_under_the_floor_is_no_gain() -> None:
    assert faster(Estimate(1.10, 1.06, 1.14), floor=0.05)
    assert not faster(Estimate(1.10, 1.04, 1.16), floor=0.05)
    assert not faster(Estimate(1.0, 1.0, 1.0), floor=0.0)
    assert not faster(Estimate(0.5, 0.4, 0.6), floor=0.05)


def test_a_process_counts_as_one_block() -> None:
    """Two hundred blocks of one process say nothing about the next one, which lies elsewhere in memory."""
    base = np.full(25, 2e-3)
    processes = [
        BlockTimes(np.stack([base, base / speed]), order=(0, 1) * 25)
        for speed in (2.2, 2.6, 2.3, 2.5, 2.1, 2.4, 2.7, 2.2)
    ]
    found = of_processes(processes)
    assert found.latency_s.shape == (2, 8) and found.order == (0, 1) * 200
    assert ratio(processes[0], 0, 1).half_width < 1e-9  # each by itself is sure of its own figure
    assert ratio(found, 0, 1).value == pytest.approx(2.35, rel=1e-3)
    assert (ratio(found, 0, 1).low, ratio(found, 0, 1).high) == pytest.approx((2.1, 2.7))


def test_the_median_of_a_process_is_taken_before_processes_are_compared() -> None:
    disturbed = np.array([1.0, 1.0, 1.0, 9.0, 9.0])
    found = of_processes([BlockTimes(np.stack([disturbed, disturbed / 2]))] * 6)
    assert found.latency_s.tolist() == [[1.0] * 6, [0.5] * 6]


def test_conditions_of_several_processes_are_those_around_all_of_them() -> None:
    def one(before: int, after: int, waited_s: float, too_hot: bool, joules: float) -> BlockTimes:
        conditions = {"before": before, "after": after, "waited_s": waited_s, "too_hot": too_hot}
        return BlockTimes(np.ones((1, 6)), conditions, energy_j=(joules,))

    found = of_processes([one(1, 2, 5.0, True, 0.1), one(2, 3, 2.5, False, 0.2)])
    assert found.conditions == {"before": 1, "after": 3, "waited_s": 7.5, "too_hot": True, "processes": 2}
    assert found.energy_j == pytest.approx((0.15,))
    assert of_processes([one(1, 2, 0.0, False, 0.1), BlockTimes(np.ones((1, 6)))]).energy_j is None
    alone = one(1, 2, 5.0, True, 0.1)
    assert of_processes([alone]) is alone


def test_one_process_or_enough_for_an_interval() -> None:
    for processes in (2, 5):
        with pytest.raises(ValidationError, match="6 and more"):
            Timing(processes=processes)
    assert in_processes(Timing(), 8).processes == 8
    assert in_processes(Timing(processes=12), 8).processes == 12


def test_what_one_process_measured_is_found_under_its_earlier_key() -> None:
    assert "processes" not in Timing().key()
    assert Timing(processes=6).key() == Timing().key() | {"processes": 6}

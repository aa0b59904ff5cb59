"""The learned bound is a bound: it never lies above what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import block_candidate, residual_block

from opadapt.ir.cost import count_bytes, count_macs
from opadapt.search.bound import CAUTION, ENOUGH, Bound, Work, learn, work_of
from opadapt.search.space import load_space
from opadapt.search.vary import seeds

amounts = st.one_of(st.integers(0, 3), st.integers(0, 10**8))
works = st.builds(Work, amounts, amounts, amounts, st.integers(0, 90), st.integers(0, 90), st.just(1))
latencies = st.one_of(st.just(0.0), st.floats(1e-7, 1e-2))
measurements = st.lists(st.tuples(works, latencies), min_size=ENOUGH, max_size=ENOUGH + 12)


def rated(count: int, noise: float = 0.0, seed: int = 0) -> list[tuple[Work, float]]:
    """Works of real sizes on a machine with a rate for each kind of work."""
    rng = np.random.default_rng(seed)
    rates = (1e-11, 8e-11, 2e-11, 1e-6, 2e-7, 3e-6)
    made = []
    for _ in range(count):
        work = Work(*(int(rng.integers(most)) for most in (4_000_000, 300_000, 800_000, 12, 9)))
        exact_s = sum(rate * amount for rate, amount in zip(rates, work, strict=True))
        made.append((work, exact_s * (1 + noise * float(rng.uniform(-1, 1)))))
    return made


@settings(max_examples=30, deadline=None)
@given(measurements)
def test_no_work_is_bounded_above_a_latency_that_it_was_measured_with(
    seen: list[tuple[Work, float]],
) -> None:
    bound = learn(seen)
    for work, latency_s in seen:
        assert bound(work) <= latency_s


@settings(max_examples=30, deadline=None)
@given(measurements, st.data())
def test_a_fast_twin_of_a_slow_program_is_believed(
    seen: list[tuple[Work, float]], data: st.DataObject
) -> None:
    """However many others say that such programs are slow."""
    work, latency_s = data.draw(st.sampled_from(seen))
    assert learn([*seen, (work, latency_s / 10)])(work) <= latency_s / 10


@settings(max_examples=30, deadline=None)
@given(measurements)
def test_more_work_of_any_kind_is_never_bounded_lower(seen: list[tuple[Work, float]]) -> None:
    bound = learn(seen)
    work = seen[0][0]
    for field in Work._fields:
        more = work._replace(**{field: 2 * getattr(work, field) + 1})
        assert bound(more) >= bound(work)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(works, latencies), max_size=ENOUGH - 1), works)
def test_with_few_measurements_nothing_is_bounded(seen: list[tuple[Work, float]], work: Work) -> None:
    assert learn(seen)(work) == 0.0


def test_on_an_exact_machine_the_bound_is_the_latency() -> None:
    bound = learn(rated(ENOUGH))
    for work, latency_s in rated(50, seed=1):
        assert bound(work) == pytest.approx(latency_s, rel=1e-6)


def test_on_a_noisy_machine_it_is_below_the_latency_and_still_of_use() -> None:
    bound = learn(rated(60, noise=0.1))
    fresh = rated(400, noise=0.1, seed=1)
    assert all(bound(work) <= latency_s for work, latency_s in fresh)
    high = [bound(work) / latency_s for work, latency_s in fresh if latency_s > 4e-5]
    assert len(high) > 50 and min(high) > 0.5


def test_the_slack_is_what_one_program_shows_of_the_others() -> None:
    """One of the programs is twice as fast as its work says."""
    seen = rated(40)
    work, latency_s = seen[7]
    seen[7] = work, latency_s / 2
    assert learn(seen).slack_s >= CAUTION * 0.9 * latency_s / 2


def test_the_work_of_a_program_is_counted_and_not_measured() -> None:
    program = residual_block()
    work = work_of(program)
    assert (work.dense_macs, work.batched_macs, work.call) == (count_macs(program), 0, 1)
    assert work.bytes == count_bytes(program)
    assert (work.computing, work.moving) == (
        7,
        6,
    )  # 2 x (contract, add, relu), add; 2 x (pad, window, reshape)
    depthwise = [c for c in seeds(block_candidate(), load_space(), 0) if "depthwise_pointwise" in c.origin]
    assert work_of(depthwise[0].program).batched_macs > 0


def test_a_bound_is_a_sum_less_its_slack() -> None:
    assert Bound((1.0, 0.0, 0.0, 2.0, 0.0, 0.5), 0.25)(Work(3, 9, 9, 2, 9)) == 7.25

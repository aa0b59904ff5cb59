from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from opadapt.train.accept import Tolerance, judge, resample
from opadapt.train.metrics import MetricConfig, make_metric

TOP1, F1, MAE = (make_metric(MetricConfig(name=n)) for n in ("top1", "f1", "mae"))
COUNT = 1000


def outputs_with_errors(labels: np.ndarray, errors: np.ndarray) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[np.where(errors, (labels + 1) % 4, labels)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


LABELS = np.arange(COUNT) % 4
FIRST = np.arange(COUNT)
ORIGINAL = outputs_with_errors(LABELS, FIRST < 100)  # 90 %
WORSE = outputs_with_errors(LABELS, FIRST < 120)  # 88 %, wrong wherever the original is


def test_equal_outputs_lose_nothing_for_certain(rng):
    verdict = judge(TOP1, ORIGINAL, ORIGINAL, LABELS, Tolerance(points=0.0), rng)
    assert verdict.accepted
    assert (verdict.loss, verdict.low, verdict.high) == (0, 0, 0)
    assert verdict.original == verdict.candidate == pytest.approx(90)


@pytest.mark.parametrize(("points", "accepted"), [(2.0, True), (2.5, True), (1.9, False)])
def test_the_estimate_decides_by_default(rng, points, accepted):
    verdict = judge(TOP1, WORSE, ORIGINAL, LABELS, Tolerance(points=points), rng)
    assert verdict.accepted is accepted
    assert verdict.loss == pytest.approx(2.0, abs=1e-4)
    assert ("within" if accepted else "over") in verdict.reason


def test_the_interval_is_that_of_paired_differences(rng):
    """20 of 1,000 differ, so the standard error is that of a proportion of 2 %, not of two of 90 %."""
    verdict = judge(TOP1, WORSE, ORIGINAL, LABELS, Tolerance(points=2.0), rng)
    error = 100 * np.sqrt(0.02 * 0.98 / COUNT)
    assert verdict.low == pytest.approx(2.0 - 1.96 * error, abs=0.15)
    assert verdict.high == pytest.approx(2.0 + 1.96 * error, abs=0.15)


def test_more_confidence_widens_the_interval_and_may_refuse(rng):
    error = 100 * np.sqrt(0.02 * 0.98 / COUNT)
    accepted = {}
    for confidence, deviations in ((0.5, 0.674), (0.9, 1.645), (0.99, 2.576)):
        tolerance = Tolerance(points=2.6, decide_on="interval", confidence=confidence)
        verdict = judge(TOP1, WORSE, ORIGINAL, LABELS, tolerance, rng)
        assert verdict.high - verdict.low == pytest.approx(2 * deviations * error, rel=0.2)
        assert f"{confidence:.0%} interval" in verdict.reason
        accepted[confidence] = verdict.accepted
    assert accepted == {0.5: True, 0.9: False, 0.99: False}


def test_the_interval_may_decide(rng):
    for points, accepted in ((2.5, False), (3.5, True)):
        tolerance = Tolerance(points=points, decide_on="interval")
        assert judge(TOP1, WORSE, ORIGINAL, LABELS, tolerance, rng).accepted is accepted


def test_relative_and_absolute_limits(rng):
    assert Tolerance(relative_percent=2.0).allowed(90.0) == pytest.approx(1.8)
    assert Tolerance(points=1.0, relative_percent=2.0).allowed(90.0) == 1.0
    assert Tolerance(points=3.0, relative_percent=2.0).allowed(-90.0) == pytest.approx(1.8)
    with pytest.raises(ValidationError, match="give points"):
        Tolerance()


def test_lower_is_better_counts_a_larger_error_as_loss(rng):
    target = np.zeros(COUNT, np.float32)
    original, worse = np.full(COUNT, 1.0, np.float32), np.full(COUNT, 1.5, np.float32)
    verdict = judge(MAE, worse, original, target, Tolerance(points=0.4), rng)
    assert not verdict.accepted
    assert verdict.loss == pytest.approx(0.5)
    assert judge(MAE, original, worse, target, Tolerance(points=0.0), rng).accepted


def test_a_metric_without_sample_scores_is_resampled_whole(rng):
    tolerance = Tolerance(points=5.0, resamples=100)
    verdict = judge(F1, WORSE, ORIGINAL, LABELS, tolerance, rng)
    assert verdict.low < verdict.loss < verdict.high
    assert 0 < verdict.loss < 5


def test_outputs_that_are_not_finite_are_rejected(rng):
    broken = ORIGINAL.copy()
    broken[3, 1] = np.nan
    verdict = judge(TOP1, broken, ORIGINAL, LABELS, Tolerance(points=50.0), rng)
    assert not verdict.accepted
    assert "not finite" in verdict.reason


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        labels = rng.integers(0, 4, 400)
        a, b = (outputs_with_errors(labels, rng.random(400) < p) for p in (0.10, 0.15))
        drawn = resample(TOP1, a, b, labels, 300, rng)
        low, high = np.quantile(drawn, (0.025, 0.975))
        covered += low <= 0.05 <= high
    assert 0.90 * 200 <= covered <= 0.99 * 200


@pytest.mark.parametrize("name", ["top1", "f1"])
def test_samples_of_a_group_are_drawn_together(name):
    """Twenty subjects of twenty equal samples say as much as twenty samples."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 20)
    better, worse = (outputs_with_errors(labels, rng.random(20) < p) for p in (0.1, 0.5))
    many = [np.repeat(array, 20, axis=0) for array in (worse, better, labels)]
    metric, tolerance = make_metric(MetricConfig(name=name)), Tolerance(points=1.0, resamples=400)
    widths = []
    for outputs, groups in (
        ((worse, better, labels), None),
        (many, np.repeat(np.arange(20), 20)),
        (many, None),
    ):
        verdict = judge(metric, *outputs, tolerance, np.random.default_rng(1), groups=groups)
        widths.append(verdict.high - verdict.low)
    alone, grouped, apart = widths
    assert grouped == pytest.approx(alone, rel=0.2)
    assert apart < 0.5 * alone


def test_the_same_rng_gives_the_same_interval():
    verdicts = [
        judge(TOP1, WORSE, ORIGINAL, LABELS, Tolerance(points=2.0), np.random.default_rng(5))
        for _ in range(2)
    ]
    assert verdicts[0] == verdicts[1]


def test_against_a_reference_the_candidate_alone_is_resampled(rng):
    """A reference of 89 where the original shows 90 (it knows these samples): the loss is counted from 89."""
    verdict = judge(TOP1, WORSE, ORIGINAL, LABELS, Tolerance(points=1.0), rng, reference_points=89.0)
    assert verdict.accepted
    assert verdict.original == 89.0
    assert verdict.loss == pytest.approx(1.0, abs=1e-4)
    error = 100 * np.sqrt(0.88 * 0.12 / COUNT)
    assert verdict.high - verdict.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert "reference" in verdict.reason

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from opadapt.errors import ConfigError, DataError
from opadapt.train.metrics import BinsConfig, MetricConfig, make_metric

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(200, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 200)
VALUES = RNG.normal(size=(200, 2)).astype(np.float32)
WANTED = RNG.normal(size=(200, 2)).astype(np.float32)


def f1_by_hand(predicted, labels):
    scores = []
    for c in range(5):
        hit = np.sum((predicted == c) & (labels == c))
        scores.append(2 * hit / (np.sum(predicted == c) + np.sum(labels == c)))
    return np.mean(scores)


ORDER = SCORES.argsort(axis=1)
EXPECTED = {
    "top1": (SCORES, LABELS, np.mean(ORDER[:, -1] == LABELS), True, 100),
    "topk": (SCORES, LABELS, np.mean((ORDER[:, -2:] == LABELS[:, None]).any(axis=1)), True, 100),
    "f1": (SCORES, LABELS, f1_by_hand(ORDER[:, -1], LABELS), True, 100),
    "mae": (VALUES, WANTED, np.abs(VALUES - WANTED).mean(), False, 1),
    "mse": (VALUES, WANTED, np.square(VALUES - WANTED).mean(), False, 1),
    "agreement": (SCORES, SCORES[:, ::-1], np.mean(ORDER[:, -1] == 4 - ORDER[:, -1]), True, 100),
    "deviation": (VALUES, WANTED, np.square(VALUES - WANTED).mean() / WANTED.var(), False, 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_values_match_the_definition(name):
    outputs, target, expected, higher, points = EXPECTED[name]
    metric = make_metric(MetricConfig(name=name, k=2))
    assert metric(outputs, target) == pytest.approx(expected, rel=1e-5)
    assert metric.higher_is_better is higher
    assert metric.in_points(0.5) == 0.5 * points


@pytest.mark.parametrize("name", [n for n in EXPECTED if n != "f1"])
def test_the_mean_of_the_sample_scores_is_the_value(name):
    outputs, target, _, _, _ = EXPECTED[name]
    metric = make_metric(MetricConfig(name=name, k=2))
    scores = metric.per_sample(outputs, target)
    assert scores.shape == (200,)
    assert scores.mean() == pytest.approx(metric(outputs, target), rel=1e-5)


def test_bins_read_the_highest_score_as_a_value():
    metric = make_metric(MetricConfig(name="mae", bins=BinsConfig(first=30.0, step=2.5)))
    outputs = np.eye(4, dtype=np.float32)
    target = np.array([30.0, 33.0, 35.0, 36.5], dtype=np.float32)  # read as 30, 32.5, 35, 37.5
    assert metric(outputs, target) == pytest.approx((0 + 0.5 + 0 + 1.0) / 4)
    np.testing.assert_allclose(metric.per_sample(outputs, target), [0, 0.5, 0, 1.0])


def test_only_label_metrics_need_labels():
    original = SCORES
    assert make_metric(MetricConfig(name="agreement")).target(None, original) is original
    with pytest.raises(DataError, match="needs labels"):
        make_metric(MetricConfig(name="top1")).target(None, original)


def test_outputs_that_do_not_fit_are_refused():
    top1, mae = make_metric(MetricConfig()), make_metric(MetricConfig(name="mae"))
    with pytest.raises(DataError, match="counts differ"):
        top1(SCORES[:10], LABELS)
    with pytest.raises(DataError, match="class scores"):
        top1(SCORES[:, 0], LABELS)
    with pytest.raises(DataError, match="different shapes"):
        mae(SCORES, LABELS)
    with pytest.raises(ConfigError, match="too large"):
        make_metric(MetricConfig(name="topk", k=6))(SCORES, LABELS)


@pytest.mark.parametrize("name", ["top1", "topk", "f1"])
@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (LABELS + 0.5, "mae"),
        (LABELS.astype(np.float32), "label_kind: classes"),
        (np.eye(5)[LABELS], "one class number per sample"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(name, labels, remedy):
    with pytest.raises(DataError, match="class numbers") as refused:
        make_metric(MetricConfig(name=name, k=2))(SCORES, labels)
    assert remedy in str(refused.value)


def test_entry_points(tmp_path, monkeypatch):
    code = (
        "import numpy as np\n"
        "def whole(outputs, labels): return float(np.abs(outputs.argmax(1) - labels).max())\n"
        "def each(outputs, labels): return np.abs(outputs.argmax(1) - labels)\n"
        "def wrong(outputs, labels): return np.zeros(3)\n"
    )
    (tmp_path / "own_metric.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    distance = np.abs(ORDER[:, -1] - LABELS)
    whole = make_metric(MetricConfig(name="own_metric:whole", higher_is_better=False))
    assert whole(SCORES, LABELS) == distance.max()
    assert not whole.higher_is_better
    each = make_metric(MetricConfig(name=f"{tmp_path}/own_metric.py:each"))
    assert each(SCORES, LABELS) == pytest.approx(distance.mean())
    np.testing.assert_array_equal(each.per_sample(SCORES, LABELS), distance)
    with pytest.raises(ConfigError, match="something else"):
        make_metric(MetricConfig(name="own_metric:wrong"))(SCORES, LABELS)
    with pytest.raises(ValidationError, match="name must be one of"):
        MetricConfig(name="accuracy")

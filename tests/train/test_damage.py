"""Damage: zero for the same outputs, KL in nats for class scores, variance-normalised error for values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from opadapt.train.damage import damage, output_kind

RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((50, 10)) * 3).astype(np.float32)
OTHER = LOGITS + RNG.standard_normal((50, 10)).astype(np.float32)


def test_same_outputs_do_no_damage() -> None:
    assert damage(LOGITS, LOGITS, "logits") == 0.0
    assert damage(LOGITS, LOGITS + 5, "logits") == pytest.approx(
        0.0, abs=1e-6
    )  # softmax does not see a shift
    assert damage(LOGITS, LOGITS, "values") == 0.0


def test_kl_of_logits_and_of_their_probabilities_agree_with_scipy() -> None:
    p, q = softmax(LOGITS.astype(np.float64), axis=1), softmax(OTHER.astype(np.float64), axis=1)
    expected = rel_entr(p, q).sum(axis=1).mean()
    assert damage(LOGITS, OTHER, "logits") == pytest.approx(expected, rel=1e-6)
    found = damage(p.astype(np.float32), q.astype(np.float32), "probabilities")
    assert found == pytest.approx(expected, rel=1e-3)


def test_values_count_in_the_originals_variance() -> None:
    mean = np.full_like(LOGITS, LOGITS.mean())
    assert damage(LOGITS, mean, "values") == pytest.approx(1.0, rel=1e-6)


def test_outputs_that_are_not_finite_are_infinitely_bad() -> None:
    broken = OTHER.copy()
    broken[3, 4] = np.nan
    assert damage(LOGITS, broken, "logits") == np.inf


def test_output_kind() -> None:
    assert output_kind(LOGITS, classes=True) == "logits"
    assert output_kind(softmax(LOGITS, axis=1), classes=True) == "probabilities"
    assert output_kind(softmax(LOGITS, axis=1), classes=False) == "values"

"""Damage: how far a changed model's outputs are from the original's, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
OutputKind = Literal["logits", "probabilities", "values"]
_TINY = 1e-8


def _log_softmax(x: Floats) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _log_scores(x: Floats, kind: OutputKind) -> NDArray[np.float64]:
    return _log_softmax(x) if kind == "logits" else np.log(np.maximum(x.astype(np.float64), _TINY))


def damage(original: Floats, changed: Floats, kind: OutputKind) -> float:
    """Mean KL(original || changed) in nats over the last axis for class scores; the squared error over the
    original's variance for other outputs. 0 means no change; inf where an output is not finite."""
    if not np.isfinite(changed).all():
        return float("inf")
    if kind == "values":
        error = np.mean((original.astype(np.float64) - changed) ** 2)
        return float(error / max(float(np.var(original.astype(np.float64))), _TINY))
    p, q = _log_scores(original, kind), _log_scores(changed, kind)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def total_damage(
    original: Mapping[str, Floats], changed: Mapping[str, Floats], kinds: Mapping[str, OutputKind]
) -> float:
    """The sum of ``damage`` over the outputs that ``kinds`` names."""
    return sum(damage(original[name], changed[name], kind) for name, kind in kinds.items())


def output_kind(outputs: Floats, classes: bool) -> OutputKind:
    """What a model's output is: ``classes`` says whether the metric reads it as class scores."""
    if not classes:
        return "values"
    rows_sum_to_one = np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-3)
    return "probabilities" if rows_sum_to_one and (outputs >= 0).all() else "logits"

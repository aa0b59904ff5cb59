"""Preprocessed inputs of some samples of the data, ready to feed to a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.train.data import Dataset

BATCH = 128


def sample_batches(
    dataset: Dataset, shares: tuple[int, int], part: int, rng: np.random.Generator
) -> Iterator[dict[str, NDArray[Any]]]:
    """Feeds for one of two disjoint draws of training samples, without augmentation.

    ``shares`` are the sizes wanted of both; where the data is too small for them, both shrink alike. The same rng
    gives the same two draws.
    """
    total = len(dataset.train)
    scale = min(1.0, total / sum(shares))
    first, second = (max(1, int(share * scale)) for share in shares)
    order = rng.permutation(total)
    chosen = np.sort(order[:first] if part == 0 else order[first : first + second])
    for start in range(0, len(chosen), BATCH):
        split = dataset.train.take(chosen[start : start + BATCH])
        yield dataset.preprocess.numpy(split.inputs)


def sample(
    dataset: Dataset, shares: tuple[int, int], part: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """The same as one array per input."""
    batches = list(sample_batches(dataset, shares, part, rng))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}

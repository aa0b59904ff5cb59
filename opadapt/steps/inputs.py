"""Preprocessed inputs of some samples of the data, ready to feed to a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.train.data import Dataset

BATCH = 128


def sample_batches(
    dataset: Dataset, count: int, rng: np.random.Generator
) -> Iterator[dict[str, NDArray[Any]]]:
    """Feeds for up to ``count`` training samples drawn without replacement, without augmentation."""
    chosen = np.sort(rng.permutation(len(dataset.train))[:count])
    for start in range(0, len(chosen), BATCH):
        split = dataset.train.take(chosen[start : start + BATCH])
        yield dataset.preprocess.numpy(split.inputs)


def sample(dataset: Dataset, count: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """The same as one array per input."""
    batches = list(sample_batches(dataset, count, rng))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}

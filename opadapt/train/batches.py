"""Training batches: which samples, in which order, and how they are augmented; a function of the seed and the step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opadapt.train.data import Dataset
from opadapt.train.preprocess import augment

_APART = 1_000_003  # seeds of steps and views of neighbouring trainings do not meet


@dataclass(frozen=True)
class Batch:
    """Some training samples: inputs [batch, ...] as the model reads them, labels [batch, ...], the rows of the training
    data they are [batch], and which augmented view of them this is."""

    inputs: list[Tensor]
    labels: Tensor | None
    rows: Tensor
    view: int

    def take(self, positions: Tensor) -> Batch:
        """Some of its samples."""
        labels = None if self.labels is None else self.labels[positions]
        return Batch([x[positions] for x in self.inputs], labels, self.rows[positions], self.view)

    def split(self, parts: int) -> list[Batch]:
        """Equal parts, the first ones larger by a sample where that does not come out even."""
        inputs = [x.tensor_split(parts) for x in self.inputs]
        labels = None if self.labels is None else self.labels.tensor_split(parts)
        return [
            Batch([x[i] for x in inputs], None if labels is None else labels[i], rows, self.view)
            for i, rows in enumerate(self.rows.tensor_split(parts))
        ]


class Batches:
    """The batches of a training: every epoch all samples in another order, and, as long as there are more of them than
    ``views``, in the augmented view of an earlier epoch; ``views`` None: always in a new one."""

    def __init__(self, data: Dataset, names: Sequence[str], size: int, views: int | None, seed: int) -> None:
        self.data, self.names, self.size, self.views, self.seed = data, names, size, views, seed
        self.per_epoch = len(data.train) // size
        self._epoch = self._view = -1  # whose order, and whose augmentation, is known
        self._draws: list[Tensor] = []

    def __call__(self, step: int, size: int | None = None) -> Batch:
        """The batch of a step; of another ``size`` for a try."""
        size = self.size if size is None else size
        epoch, within = divmod(step, self.per_epoch)
        if self._epoch != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._order, self._epoch = rng.permutation(len(self.data.train)), epoch
        rows = torch.from_numpy(np.sort(self._order[within * size : (within + 1) * size]))
        torch.manual_seed((self.seed * _APART + step) % 2**63)  # dropout
        view = epoch if self.views is None else epoch % self.views
        made = self.data.preprocess(self._augmented(rows, view))
        labels = self.data.train.labels
        return Batch(
            [made[n] for n in self.names],
            None if labels is None else torch.from_numpy(labels[rows.numpy()]),
            rows,
            view,
        )

    def _augmented(self, rows: Tensor, view: int) -> dict[str, Tensor]:
        """Raw samples by input. What is drawn for a sample depends on the view alone, not on its batch."""
        if self._view != view:
            self._view, self._draws = view, []
            self._generator = torch.Generator().manual_seed((self.seed * _APART + view) % 2**63)
        numbers = itertools.count()

        def draw(high: int) -> Tensor:
            """Always asked in the same order, so drawn for all samples once in a view."""
            number = next(numbers)
            if number == len(self._draws):
                drawn = torch.randint(0, high, (len(self.data.train), 1), generator=self._generator)
                self._draws.append(drawn)
            return self._draws[number][rows]

        found = {}
        for name in self.names:
            raw = torch.from_numpy(self.data.train.inputs[name][rows.numpy()])
            layout = self.data.preprocess.inputs[name].layout
            found[name] = augment(raw, layout, self.data.augment, draw)
        return found

"""Recorded activations of the original: what each region reads and what it should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opadapt.ir.program import Program
from opadapt.ir.spec import Array
from opadapt.journal import content_key
from opadapt.measure.lock import measuring_lock
from opadapt.model.graph import Model
from opadapt.model.regions import Group
from opadapt.steps.context import Context
from opadapt.steps.inputs import sample_batches
from opadapt.train.capture import capture
from opadapt.train.data import Dataset

ELEMENTS = 4_000_000  # of a program's largest value on its samples: 27 rows of 3x3 windows of 16x32x32
ROWS = 128  # at most


@dataclass(frozen=True)
class Activations:
    """Tensors of a model on some training inputs, one .npy file each (rows first)."""

    folder: Path

    def path(self, tensor: str) -> Path:
        return self.folder / f"{content_key(tensor)}.npy"

    def samples(self, group: Group) -> tuple[tuple[Array, ...], ...]:
        """For each member some recorded rows of what its region reads, from all over the data, which may be sorted by
        class, and enough to judge channels by; empty for a program that does not take any number of rows."""
        inputs = group.program.inputs
        if any(t.batch_axis != 0 for t in inputs):
            return ()
        rows = sample_rows(group.program)

        def some(name: str) -> Array:
            recorded: Array = np.load(self.path(name), mmap_mode="r")
            return np.array(recorded[np.linspace(0, len(recorded) - 1, rows).round().astype(int)])

        return tuple(tuple(some(name) for name in member.region.inputs) for member in group.members)


def sample_rows(program: Program) -> int:
    """How many rows of its inputs a program is run on to see its values: one at least."""
    largest = max(t.elements for t in program.types if t.batch_axis is not None)
    return max(1, min(ELEMENTS // largest, ROWS))


def record(
    context: Context, dataset: Dataset, model: Model, groups: Sequence[Group], tag: str
) -> Activations:
    """Run the model on some training inputs and keep what the groups' regions read and write."""
    found = Activations(context.cache / tag)
    wanted = {name for group in groups for m in group.members for name in (*m.region.inputs, m.region.output)}
    if all(found.path(name).exists() for name in wanted):
        return found
    context.progress.stage(f"record activations of {context.samples[0]} samples")
    found.folder.mkdir(parents=True, exist_ok=True)
    names = sorted(wanted)
    batches = sample_batches(dataset, context.samples, 0, context.rng("samples"))
    with measuring_lock().busy():
        capture(model.proto, names, batches, folder=found.folder)
    for number, name in enumerate(names):
        (found.folder / f"{number}.npy").rename(found.path(name))
    return found

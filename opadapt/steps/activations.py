"""Recorded activations of the original: what each region reads and what it should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opadapt.journal import content_key
from opadapt.measure.lock import measuring_lock
from opadapt.model.graph import Model
from opadapt.model.regions import Group
from opadapt.steps.context import Context
from opadapt.steps.inputs import sample_batches
from opadapt.train.capture import capture
from opadapt.train.data import Dataset


@dataclass(frozen=True)
class Activations:
    """Tensors of a model on some training inputs, one .npy file each (rows first)."""

    folder: Path

    def path(self, tensor: str) -> Path:
        return self.folder / f"{content_key(tensor)}.npy"


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

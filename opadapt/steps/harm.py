"""Damage of replacements inside the whole model, on inputs that no distillation has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.ir.program import Binding, Program
from opadapt.journal import content_key
from opadapt.measure.lock import measuring_lock
from opadapt.model.graph import Model
from opadapt.model.regions import Region
from opadapt.model.splice import splice
from opadapt.search.stages import stream
from opadapt.steps.context import Context
from opadapt.steps.inputs import sample
from opadapt.steps.paid import Item, known, paid_once
from opadapt.steps.workers import DamageTask, run_damage
from opadapt.train.damage import output_kind, total_damage
from opadapt.train.data import Dataset
from opadapt.train.evaluate import run_batched
from opadapt.train.signature import float_outputs

CLASS_METRICS = frozenset({"top1", "topk", "f1", "agreement"})

Parts = Mapping[Region, tuple[Program, Binding]]


class Harm:
    """Distance of a changed model's float outputs to the original's, summed over them (KL divergence where the metric
    reads class scores, squared error over variance otherwise), less what earlier rounds had done already."""

    def __init__(self, context: Context, dataset: Dataset, model: Model) -> None:
        self.model = model
        inputs = sample(dataset, context.samples, 1, context.rng("samples"))
        self.inputs = {}
        for name, array in inputs.items():
            self.inputs[name] = context.cache / f"probe-{content_key(name)}.npy"
            np.save(self.inputs[name], array)
        names = float_outputs(context.original.proto)
        with measuring_lock().busy():
            reference, now = (run_batched(m.proto, inputs, outputs=names) for m in (context.original, model))
        self.references = {}
        for name, array in reference.items():
            self.references[name] = context.cache / f"probe-output-{content_key(name)}.npy"
            np.save(self.references[name], array)
        first = context.original.outputs[0]  # the one that the metric sees
        self.kinds = {
            name: output_kind(array, name == first and _is_classes(context, array))
            for name, array in reference.items()
        }
        self.before = max(total_damage(reference, now, self.kinds), 0.0)

    async def __call__(self, context: Context, changes: Sequence[Parts], keys: Sequence[str]) -> list[float]:
        """The damage of each set of replacements; infinite where the model does not run. Shown by this context's
        progress."""
        work = [self._item(parts, key) for parts, key in zip(changes, keys, strict=True)]
        found = paid_once(context, "damage", run_damage, stream(work))
        rows = context.counted(found, "compared", known(context, "damage", work))
        return [float("inf") if row["damage"] is None else row["damage"] - self.before async for row in rows]

    def _item(self, parts: Parts, key: str) -> Item:
        return Item(
            key,
            lambda: self._task(parts),
            lambda harm: {"damage": harm.value if np.isfinite(harm.value) else None},
        )

    def _task(self, parts: Parts) -> DamageTask:
        changed = splice(self.model, parts)
        return DamageTask(changed.proto.SerializeToString(), self.inputs, self.references, self.kinds)


def _is_classes(context: Context, outputs: NDArray[Any]) -> bool:
    """Whether the metric reads the outputs as class scores."""
    return context.experiment.metric.name in CLASS_METRICS and outputs.shape[-1] > 1

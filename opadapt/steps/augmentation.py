"""How training images are augmented where the experiment does not say."""

from __future__ import annotations

from dataclasses import replace

from opadapt.measure.lock import measuring_lock
from opadapt.steps.context import Context
from opadapt.steps.tuning import metric_of
from opadapt.train.augmentation import borne
from opadapt.train.data import Dataset
from opadapt.train.preprocess import AugmentConfig


def augmented(context: Context, dataset: Dataset) -> Dataset:
    """The data with the augmentation of the experiment, or the one that the original bears; through the journal."""
    data = context.experiment.data
    if data is None or data.augment is not None:
        return dataset
    context.progress.stage("try out augmentations on the original")

    def find() -> dict[str, object]:
        tolerance, seed = context.experiment.tolerance, context.seed("augmentation")
        with measuring_lock().busy():
            found = borne(context.original.proto, dataset, metric_of(context), tolerance, seed)
        return found.model_dump()

    config = AugmentConfig(**context.journal.once("augmentation", "found", find))
    said = [f"{name}: {str(value).lower()}" for name, value in config.model_dump().items() if value]
    context.progress.note(f"data.augment, by what the original bears: {', '.join(said) or 'nothing'}")
    return replace(dataset, augment=config)

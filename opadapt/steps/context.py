"""What every step of a run shares: experiment, device, data, journal, workers and progress."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from opadapt.errors import RunError
from opadapt.experiment import Experiment
from opadapt.journal import Journal, content_key
from opadapt.measure.device import Device, open_device
from opadapt.model.graph import Model
from opadapt.model.load import load
from opadapt.report.progress import Progress
from opadapt.search.space import Space, load_space
from opadapt.steps.workers import Workers
from opadapt.train.data import Dataset, load_data


@dataclass
class Context:
    """One run. ``cache`` holds what can be made again (activations); the journal holds what cannot."""

    experiment: Experiment
    folder: Path
    journal: Journal
    device: Device
    progress: Progress
    workers: Workers
    original: Model
    space: Space
    dataset: Dataset | None
    cache: Path
    warnings: list[str] = field(default_factory=list)

    def rng(self, *names: object) -> np.random.Generator:
        """A generator of its own for each purpose, fixed by the experiment's seed."""
        return np.random.default_rng(self.seed(*names))

    def seed(self, *names: object) -> int:
        return int(content_key(self.experiment.seed, *names), 16) % 2**31

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.note(text)


@contextlib.contextmanager
def open_context(experiment: Experiment, folder: Path, progress: Progress) -> Iterator[Context]:
    """Everything a run needs, checked before anything is paid for, and closed at its end."""
    progress.stage("load the model, the data and the device")
    original = load(experiment.model, experiment.shapes)
    dataset = None if experiment.data is None else load_data(experiment.data, original)
    space = load_space(experiment.search.space)
    journal = Journal(folder)
    cache = folder / "cache"
    try:
        cache.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {cache}", found=str(error)) from error
    with (
        contextlib.closing(journal),
        Workers(experiment.search.workers) as workers,
        open_device(experiment.device, experiment.timing.threads or 1) as device,
    ):
        yield Context(experiment, folder, journal, device, progress, workers, original, space, dataset, cache)
    shutil.rmtree(cache, ignore_errors=True)

"""What every step of a run shares: experiment, device, data, journal, workers and progress."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from opadapt.errors import ModelError, RunError
from opadapt.experiment import Experiment
from opadapt.journal import Journal, content_key
from opadapt.measure.device import Device
from opadapt.measure.opening import open_device
from opadapt.model.graph import Model
from opadapt.model.load import load
from opadapt.model.save import write_atomic
from opadapt.report.progress import Progress
from opadapt.search.space import Space, load_space
from opadapt.steps.workers import Workers
from opadapt.train.data import Dataset, load_data
from opadapt.train.evaluate import predict
from opadapt.train.metrics import make_metric


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
    measured_on: str
    warnings: list[str] = field(default_factory=list)

    def rng(self, *names: object) -> np.random.Generator:
        """A generator of its own for each purpose, fixed by the experiment's seed."""
        return np.random.default_rng(self.seed(*names))

    def seed(self, *names: object) -> int:
        return int(content_key(self.experiment.seed, *names), 16) % 2**31

    def left_minutes(self) -> float | None:
        """What is left of the budget; None without one."""
        budget = self.experiment.budget_minutes
        return None if budget is None else budget - self.journal.spent_s() / 60

    @property
    def over_budget(self) -> bool:
        left = self.left_minutes()
        return left is not None and left <= 0

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.note(text)


def _check_usable(experiment: Experiment, original: Model, dataset: Dataset) -> None:
    """What would otherwise show only after hours: that the model can be trained and the metric be computed."""
    if not original.has_batch:
        raise ModelError(
            "the model's batch is fixed, so it cannot be trained",
            expected="a model that computes any batch",
            do="export it with a free batch, or run without data: exact replacements only",
        )
    metric = make_metric(experiment.metric)
    for split in (dataset.validation, dataset.test):
        few = split.take(slice(0, 8))
        outputs = predict(original.proto, few, dataset.preprocess)
        metric(outputs, metric.target(few.labels, outputs))


@contextlib.contextmanager
def open_context(experiment: Experiment, folder: Path, progress: Progress) -> Iterator[Context]:
    """Everything a run needs, checked before anything is paid for, and closed at its end."""
    progress.stage("load the model, the data and the device")
    original = load(experiment.model, experiment.shapes)
    dataset = None if experiment.data is None else load_data(experiment.data, original)
    if dataset is not None:
        _check_usable(experiment, original, dataset)
    space = load_space(experiment.search.space)
    lock = FileLock(folder / "run.lock", timeout=0)
    cache = folder / "cache"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{folder} is in use", found="another opadapt works on it", do="wait for it, or stop it first"
        ) from error
    except OSError as error:
        raise RunError(f"cannot write {cache}", found=str(error)) from error
    with (
        lock,
        contextlib.closing(Journal(folder)) as journal,
        Workers(experiment.search.workers) as workers,
        open_device(experiment.device, experiment.timing.threads or 1) as device,
    ):
        assert original.source.original is not None
        write_atomic(folder / "original.onnx", original.source.original.SerializeToString())
        # samples of other versions are never mixed: a run resumed on other software measures again
        state = device.conditions()
        measured_on = content_key(
            *(state.get(k) for k in ("machine", "cpu", "onnxruntime", "provider", "threads"))
        )
        yield Context(
            experiment,
            folder,
            journal,
            device,
            progress,
            workers,
            original,
            space,
            dataset,
            cache,
            measured_on,
        )
    shutil.rmtree(cache, ignore_errors=True)

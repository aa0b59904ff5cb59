"""What every step of a run shares: experiment, device, data, journal, workers and progress."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from opadapt.errors import ModelError, Refused, RunError, first_line
from opadapt.experiment import Experiment
from opadapt.journal import Journal, content_key
from opadapt.measure.address import split_device
from opadapt.measure.device import Device
from opadapt.measure.fleet import FleetDevice
from opadapt.measure.lock import measuring_lock
from opadapt.measure.opening import open_device
from opadapt.measure.timing import Timing
from opadapt.model.graph import Model
from opadapt.model.load import load
from opadapt.model.save import write_atomic
from opadapt.report.progress import Progress, duration
from opadapt.search.space import Space, load_space
from opadapt.steps.earlier import borrow
from opadapt.steps.workers import Workers
from opadapt.torchgraph import build
from opadapt.train.data import Dataset, load_data
from opadapt.train.evaluate import predict
from opadapt.train.metrics import make_metric
from opadapt.train.signature import fixed_ports, float_outputs

T = TypeVar("T")


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
    lost: dict[str, str] = field(default_factory=dict)  # boards of a fleet: host, and why
    original_outputs: dict[str, NDArray[Any]] = field(default_factory=dict)  # by split, once predicted
    side_by_side: int = 1  # groups that are searched at a time, and share the device and the workers

    def rng(self, *names: object) -> np.random.Generator:
        """A generator of its own for each purpose, fixed by the experiment's seed."""
        return np.random.default_rng(self.seed(*names))

    def seed(self, *names: object) -> int:
        return int(content_key(self.experiment.seed, *names), 16) % 2**31

    def left_minutes(self) -> float | None:
        """What is left of the budget; None without one."""
        budget = self.experiment.budget_minutes
        return None if budget is None else budget - self.journal.spent_s() / 60

    def stop(self, *where: object, share: float = 1.0) -> bool:
        """Whether this share of the budget is used up at this point of the story. Decided once: a resumed run stops
        where the first one did, not earlier because the clock has gone on."""
        left, budget = self.left_minutes(), self.experiment.budget_minutes
        if left is None or budget is None:
            return False
        over = left <= (1 - share) * budget
        return bool(self.journal.once("budget", content_key(*where), lambda: {"stop": over})["stop"])

    def stop_search(self, *where: object) -> bool:
        """Whether what the search may take of the budget is used up; the rest is fine-tuning's."""
        return self.stop("search", *where, share=self.experiment.search.budget_share)

    @property
    def samples(self) -> tuple[int, int]:
        """Sizes of the two disjoint draws from the training data: for distillation, and for damage."""
        search = self.experiment.search
        return search.activation_samples, search.probe_samples

    @property
    def quick_timing(self) -> Timing:
        """How candidates are timed, with as many threads as everything else."""
        threads = self.experiment.timing.threads
        return self.experiment.quick_timing.model_copy(update={"threads": threads})

    async def counted(
        self, results: AsyncGenerator[T, None], doing: str, known: int = 0
    ) -> AsyncGenerator[T, None]:
        """The results as they come, shown as progress; ``known`` of them cost no time."""
        done = 0
        async with contextlib.aclosing(results):
            async for result in results:
                done += 1
                if done >= known:
                    self.progress.advance(done, doing)
                yield result

    @property
    def apart(self) -> bool:
        """Whether the device measures undisturbed while this machine trains."""
        return self.device.facts.transport != "local"

    def tell_losses(self) -> None:
        """Warn of boards that were lost since the last time."""
        losses = self.device.losses if isinstance(self.device, FleetDevice) else ()
        for host, reason in losses:
            if host not in self.lost:
                self.lost[host] = reason
                self.warn(f"board {host} is gone and was left out: {reason}")

    def tell_unjudged(self) -> None:
        """Warn of outputs that the metric does not see."""
        seen, *unseen = self.original.outputs
        if unseen:
            self.warn(
                f"the metric sees the output '{seen}' alone: what replacements do to "
                f"{', '.join(map(repr, unseen))} is no part of the acceptance"
            )

    @property
    def opset(self) -> int:
        """Of the file that is exported."""
        return self.experiment.opset or self.original.source.opset

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.note(text)


def _check_usable(experiment: Experiment, original: Model, dataset: Dataset) -> None:
    """What would otherwise show only after hours: that the model can be trained and the metric be computed."""
    fixed = fixed_ports(original.proto)
    if fixed or not original.has_batch:
        raise ModelError(
            "the model's batch is fixed, so it cannot be trained",
            expected="a model that computes any batch: N at the front of every input and output",
            found=", ".join(f"{port.batch} in '{port.name}'" for port in fixed) or "no input of floats",
            do="export it with batch N at every input, or run without data: exact replacements only",
        )
    if not float_outputs(original.proto):
        raise ModelError(
            "the model has no output of floats, so it cannot be trained",
            do="export it with its scores as an output, or run without data: exact replacements only",
        )
    try:
        build(original.proto)
    except Refused as refused:
        raise ModelError(
            "the model cannot be trained",
            found=refused.reason,
            do="run without data: exact replacements only",
        ) from refused
    metric = make_metric(experiment.metric)
    for split in (dataset.validation, dataset.test):
        few = split.take(slice(0, 8))
        with measuring_lock().busy():
            outputs = predict(original.proto, few, dataset.preprocess)
        metric(outputs, metric.target(few.labels, outputs))


def settings_of(experiment: Experiment) -> dict[str, object]:
    """What a run's recorded results stand for, beside the model and the data. Not the folder, the paths and the
    hosts: those may move; nor the number of workers, which changes no result, nor the time limits of measurements,
    which may be raised when one was too short."""
    settings = experiment.model_dump(mode="json", exclude={"name", "runs", "model", "host"})
    settings["search"]["workers"] = 0
    settings |= {"timing": experiment.timing.key(), "quick_timing": experiment.quick_timing.key()}
    settings["device"] = split_device(experiment.device)[0]
    if settings["data"] is not None:
        settings["data"] |= {"path": None, "x": None, "y": None}
    return settings


def _contents(original: Model, dataset: Dataset | None) -> str:
    """A digest of the model and of a sample of the data, which may be large."""
    digest = hashlib.sha256(original.proto.SerializeToString(deterministic=True))
    for split in () if dataset is None else (dataset.train, dataset.validation, dataset.test):
        for name, array in sorted(split.inputs.items()):
            digest.update(f"{name}{array.shape}{array.dtype}".encode())
            digest.update(array[:: max(1, len(array) // 256)].tobytes())
        if split.labels is not None:
            digest.update(split.labels.tobytes())
    return digest.hexdigest()


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
        raise RunError(f"cannot write into {folder}", found=first_line(error)) from error
    with (
        lock,
        contextlib.closing(Journal(folder)) as journal,
        Workers(experiment.search.workers) as workers,
        open_device(experiment.device, experiment.timing.threads or 1, experiment.host) as device,
    ):
        contents = _contents(original, dataset)
        journal.fix("experiment", content_key(settings_of(experiment), contents))
        journal.fix("search space", space.digest)
        if known := sum(finished for finished, _, _ in journal.counts().values()):
            results = "1 result" if known == 1 else f"{known} results"
            progress.note(f"going on after {duration(journal.spent_s())}, with {results} in the journal")
        assert original.source.original is not None
        write_atomic(folder / "original.onnx", original.source.original.SerializeToString())
        # samples of other versions are never mixed: a run resumed on other software measures again
        state = device.conditions()
        measured_on = content_key(
            *(state.get(k) for k in ("machine", "cpu", "onnxruntime", "provider", "threads"))
        )
        context = Context(
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
        context.tell_losses()
        if dataset is not None:
            context.tell_unjudged()
        if taken := borrow(journal, experiment, contents):
            progress.note(f"{taken} results of earlier runs are taken over (reuse: false measures anew)")
        yield context
    shutil.rmtree(cache, ignore_errors=True)

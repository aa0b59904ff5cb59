"""Steps of a run without the run: a context on the null device, with workers in this very thread."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "story"))

from tiny import write_data, write_model

from opadapt.experiment import Experiment
from opadapt.journal import Journal
from opadapt.measure.lock import MeasuringLock, measuring_lock
from opadapt.measure.opening import open_device
from opadapt.model.load import load
from opadapt.report.progress import Silent
from opadapt.search.space import load_space
from opadapt.steps.context import Context
from opadapt.train.data import DataConfig, load_data

MakeContext = Callable[..., Context]


class Here:
    """Workers in this thread, which remember their tasks."""

    chunk = 4

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        self.tasks.append(task)
        done: Future[Any] = Future()
        done.set_result(function(task))
        return done

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        yield


@pytest.fixture
def make_context(tmp_path: Path) -> Iterator[MakeContext]:
    """Begin a run, or go on with it: every context has the same folder. Settings are those of an experiment."""
    journals: list[Journal] = []
    data = write_data(tmp_path / "tiny.npz")

    def make(model: Path | None = None, device: str = "null", **settings: Any) -> Context:
        path = model or write_model(tmp_path / "tiny.onnx")
        experiment = Experiment(
            model=path,
            device=device,
            data={"path": str(data)},
            **{"metric": {"name": "agreement"}, **settings},
        )
        journals.append(Journal(tmp_path))
        original = load(path, {})
        dataset = load_data(DataConfig(path=str(data)), original) if model is None else None
        context = Context(
            experiment, tmp_path, journals[-1], open_device(device), Silent(), Here(), original, load_space(),
            dataset, tmp_path / "cache", "here",
        )  # fmt: skip
        context.cache.mkdir(exist_ok=True)
        return context

    yield make
    for journal in journals:
        journal.close()


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MeasuringLock]:
    """A measuring lock of the test's own: it neither waits for others on this machine nor holds them up."""
    monkeypatch.setattr("opadapt.measure.lock._user_folder", lambda: tmp_path / "lock")
    measuring_lock.cache_clear()
    yield measuring_lock()
    measuring_lock.cache_clear()


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

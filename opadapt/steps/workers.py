"""Worker processes: pure functions of their arguments, so that a journal can stand for their results."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx

from opadapt.errors import OpadaptError, Refused, RunError
from opadapt.measure.lock import measuring_lock
from opadapt.train.damage import OutputKind, damage
from opadapt.train.distil import DistilConfig, distil
from opadapt.train.evaluate import run_batched
from opadapt.train.speed import cores


@dataclass(frozen=True)
class DistilTask:
    """Train one region's program on recorded activations. Arrays are .npy files, mapped and not copied."""

    student: bytes
    inputs: tuple[Path, ...]
    target: Path
    config: DistilConfig
    seed: int


@dataclass(frozen=True)
class DistilResult:
    """The trained region and its error on held-back rows (NMSE), or the reason why there is none."""

    student: bytes | None
    nmse: float
    seconds: float
    refused: str = ""


@dataclass(frozen=True)
class DamageTask:
    """Compare the outputs of a whole model with one region replaced to the original's."""

    model: bytes
    inputs: dict[str, Path]
    reference: Path
    kind: OutputKind


def run_distil(task: DistilTask) -> DistilResult:
    """Distil one region; a refusal is a result."""
    began = time.monotonic()
    try:
        with measuring_lock().busy():
            result = distil(
                onnx.load_from_string(task.student),
                [np.load(path, mmap_mode="r") for path in task.inputs],
                np.load(task.target, mmap_mode="r"),
                task.config,
                seed=task.seed,
                threads=1,
            )
    except (OpadaptError, RuntimeError) as error:  # RuntimeError: torch's, such as out of memory
        reason = error.reason if isinstance(error, Refused) else str(error).splitlines()[0]
        return DistilResult(None, math.inf, time.monotonic() - began, reason)
    return DistilResult(result.proto.SerializeToString(), result.nmse, time.monotonic() - began)


@dataclass(frozen=True)
class DamageResult:
    """Damage of the whole model's outputs (KL divergence for class scores, squared error otherwise)."""

    value: float
    seconds: float


def run_damage(task: DamageTask) -> DamageResult:
    """Run the changed model on the probe inputs and compare."""
    began = time.monotonic()
    inputs = {name: np.load(path, mmap_mode="r") for name, path in task.inputs.items()}
    try:
        with measuring_lock().busy():
            outputs = run_batched(onnx.load_from_string(task.model), inputs, threads=1)
    except OpadaptError:  # does not run as a whole: as damaged as can be
        return DamageResult(math.inf, time.monotonic() - began)
    value = damage(np.load(task.reference), next(iter(outputs.values())), task.kind)
    return DamageResult(value, time.monotonic() - began)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C from their first instruction on: the parent decides what it means."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _start() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


class Workers:
    """A pool of spawned processes, started at first use."""

    def __init__(self, count: int) -> None:
        self.count = count or cores()
        self.chunk = 4 * self.count  # tasks handed over at once: their models are held in memory
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        """Begin a task; to be used, and its result awaited, under ``watched``."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start)
        with _interrupts_ignored():  # a worker may be started here
            return self._pool.submit(function, task)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Raises RunError when a worker dies."""
        try:
            yield
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died",
                expected=f"{self.count} workers",
                found=str(error),
                do="likely out of memory: set search.workers to 1, then `opadapt resume` the run",
            ) from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

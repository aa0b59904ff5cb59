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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from opadapt.errors import DataError, ModelError, Refused, RunError, first_line
from opadapt.measure.lock import measuring_lock
from opadapt.train.damage import OutputKind, total_damage
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
    """Compare outputs of a whole model with one region replaced to the original's: ``references`` by output name."""

    model: bytes
    inputs: dict[str, Path]
    references: dict[str, Path]
    kinds: dict[str, OutputKind]


def _stored(path: Path) -> NDArray[Any]:
    """A recorded array, mapped. Raises RunError: that it cannot be read is no fault of a candidate."""
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise RunError(
            f"cannot read what was recorded in {path}",
            found=first_line(error),
            do="`opadapt resume` the run: it is recorded again where it is missing",
        ) from error
    return found


def run_distil(task: DistilTask) -> DistilResult:
    """Distil one region; that it cannot be trained is a result. Raises DeviceError and RunError for faults of the
    machine: the lock, memory, files."""
    began = time.monotonic()
    inputs, target = [_stored(path) for path in task.inputs], _stored(task.target)
    try:
        with measuring_lock().busy():
            student = onnx.load_from_string(task.student)
            result = distil(student, inputs, target, task.config, seed=task.seed, threads=1)
    except (Refused, ModelError) as error:
        reason = error.reason if isinstance(error, Refused) else error.message
        return DistilResult(None, math.inf, time.monotonic() - began, reason)
    return DistilResult(result.proto.SerializeToString(), result.nmse, time.monotonic() - began)


@dataclass(frozen=True)
class DamageResult:
    """Damage of the whole model's outputs, summed over them (KL divergence for class scores, squared error over
    variance otherwise)."""

    value: float
    seconds: float


def run_damage(task: DamageTask) -> DamageResult:
    """Run the changed model on the probe inputs and compare; where it does not run it is as damaged as can be. Raises
    DeviceError and RunError for faults of the machine: the lock, memory, files."""
    began = time.monotonic()
    inputs = {name: _stored(path) for name, path in task.inputs.items()}
    references = {name: _stored(path) for name, path in task.references.items()}
    try:
        with measuring_lock().busy():
            outputs = run_batched(onnx.load_from_string(task.model), inputs, threads=1, outputs=references)
    except (ModelError, DataError):
        return DamageResult(math.inf, time.monotonic() - began)
    return DamageResult(total_damage(references, outputs, task.kinds), time.monotonic() - began)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and processes started inside never see it: they inherit which signals
    are blocked. The parent decides what it means."""
    resource_tracker.ensure_running()  # to start it inside would unblock the signal
    came: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # which runs the handler even where another thread is given the signal
        handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
            if came:
                signal.raise_signal(signal.SIGINT)


_BETWEEN_TASKS = threading.Lock()  # in a worker: held but while it works on a task


def _end_when_told(told: Connection) -> None:
    """A worker whose parent was killed would wait for work for ever; one that is told to end leaves its task as it is.
    It is not ended while it hands over a result: the parent would wait for the rest of it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel, told])
        while not multiprocessing.connection.wait([parent.sentinel], timeout=0):
            if _BETWEEN_TASKS.acquire(timeout=0.1):
                break
        os._exit(1)


def _start(told: Connection) -> None:
    _BETWEEN_TASKS.acquire()
    threading.Thread(target=_end_when_told, args=(told,), daemon=True).start()


def _work(function: Callable[[Any], Any], task: Any) -> Any:
    _BETWEEN_TASKS.release()
    try:
        return function(task)
    finally:
        _BETWEEN_TASKS.acquire()


class Workers:
    """A pool of spawned processes, started at first use. Left by an error, Ctrl-C included, it ends at once: nobody
    would take what is in hand."""

    def __init__(self, count: int) -> None:
        self.count = count or cores()
        self.chunk = 4 * self.count  # tasks handed over at once: their models are held in memory
        self._pool: ProcessPoolExecutor | None = None
        self._end: Connection | None = None  # closed, it tells the processes to end

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        """Begin a task; to be used, and its result awaited, under ``watched``."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            told, self._end = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=context, initializer=_start, initargs=(told,)
            )
        with _interrupts_held_back():  # a worker may be started here
            return self._pool.submit(_work, function, task)

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
        """Wait for what is in hand, and end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._pool is None or self._end is None:
            self.close()
            return
        # said first: no worker that ends now breaks the pool
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._end.close()

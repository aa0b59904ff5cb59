"""Candidates timed beside the model they change, on one board. Runs in a thread; touches neither journal nor screen."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from textwrap import shorten
from types import TracebackType
from typing import Self

from opadapt.errors import DeviceError, LostDevice, OpadaptError
from opadapt.measure.device import Device
from opadapt.measure.fleet import on_one_board
from opadapt.measure.timing import BlockTimes, Timing, median_latency, ratio

REASON_LENGTH = 160


@dataclass(frozen=True)
class Readings:
    """Of each candidate its latency over the base's, or why there is none; of each request (board or None, latency of
    the base there in seconds); and how long it took."""

    found: tuple[float | str, ...]
    base: tuple[tuple[str | None, float], ...]
    seconds: float


class Hands:
    """Keep a device busy, ``device.parallel`` requests at a time, while the calling thread does other things.

    Where measuring and training exclude each other (``apart`` false) there are no threads: a request is worked on at
    once, in the calling thread. Left early, what has not begun is given up, and what runs makes no further request:
    it ends when the device is closed.
    """

    def __init__(self, device: Device, timing: Timing, apart: bool) -> None:
        self.device, self.timing = device, timing
        self.ahead = device.parallel if apart else 0
        self._pool = ThreadPoolExecutor(device.parallel, "measure") if apart else None
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def begin(self, base: bytes, candidates: Sequence[Callable[[], bytes]]) -> Future[Readings]:
        """Time models, made only when their turn has come, beside the base."""
        if self._pool is not None:
            return self._pool.submit(self._timed, base, candidates)
        done: Future[Readings] = Future()
        done.set_result(self._timed(base, candidates))
        return done

    def _timed(self, base: bytes, candidates: Sequence[Callable[[], bytes]]) -> Readings:
        refused: dict[int, str] = {}
        models: list[bytes] = []
        for number, make in enumerate(candidates):
            try:
                models.append(make())
            except OpadaptError as error:
                refused[number] = error.message
        if not models:
            return Readings(tuple(refused.values()), (), 0.0)
        timed = on_one_board(self.device, lambda board: self._on(board, base, models))
        left = iter(timed.found)
        found = tuple(refused[i] if i in refused else next(left) for i in range(len(candidates)))
        return dataclasses.replace(timed, found=found)

    def _on(self, board: Device, base: bytes, models: Sequence[bytes]) -> Readings:
        began = time.monotonic()
        bases: list[tuple[str | None, float]] = []
        found = self._ratios(board, base, models, bases)
        return Readings(tuple(found), tuple(bases), time.monotonic() - began)

    def _ratios(
        self, board: Device, base: bytes, models: Sequence[bytes], bases: list[tuple[str | None, float]]
    ) -> list[float | str]:
        try:
            times = self._time(board, [base, *models])
        except LostDevice:
            raise
        except DeviceError as error:
            if len(models) > 1:  # one of them broke the measuring process: find out which
                return [r for model in models for r in self._ratios(board, base, [model], bases)]
            # is it the candidate, or the board? what fails with the base alone is no candidate's fault
            self._check(board, base)
            return [_reason(error)]
        bases.append((times.conditions.get("board"), median_latency(times, 0).value))
        return [ratio(times, i, 0).value for i in range(1, len(times.latency_s))]

    def _check(self, board: Device, base: bytes) -> None:
        """Raises LostDevice for a board that cannot time the base either."""
        try:
            self._time(board, [base])
        except LostDevice:
            raise
        except DeviceError as error:
            raise LostDevice(
                error.message, expected=error.expected, found=error.found, do=error.do
            ) from error

    def _time(self, board: Device, models: Sequence[bytes]) -> BlockTimes:
        if self._stopped.is_set():  # asked now, a device that was just closed would start again
            raise CancelledError
        return board.time(models, self.timing)


def _reason(error: DeviceError) -> str:
    """Why a candidate cannot be timed, in the words of the measuring process: the same on every board."""
    lines = (error.found or error.message).strip().splitlines()
    return shorten(lines[0], REASON_LENGTH, placeholder=" ...") if lines else error.message

"""Candidates timed beside the model they change, on one board. Runs in a thread; touches neither journal nor screen."""

from __future__ import annotations

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
# kinds of errors that a model may cause; everything else is the board's own trouble, or the way's to it
BLAMED = ("signal", "exit", "exception", "memory", "timeout")


@dataclass(frozen=True)
class Readings:
    """Of each candidate its latency over the base's, why there is none, or None where the device was ``lost`` before
    its turn; of each request (board or None, latency of the base there in seconds); and how long it took."""

    found: tuple[float | str | None, ...]
    base: tuple[tuple[str | None, float], ...]
    seconds: float
    lost: LostDevice | None = None


class _Unit:
    """Models that are timed together, or one by one where one of them breaks the measuring process. What is known of
    them stays known when the board is lost."""

    def __init__(self) -> None:
        self.models: dict[int, bytes] = {}
        self.found: dict[int, float | str] = {}
        self.base: list[tuple[str | None, float]] = []
        self.seconds = 0.0
        self.singly = False

    @property
    def left(self) -> list[int]:
        return [number for number in self.models if number not in self.found]


class Hands:
    """Keep a device busy, ``device.parallel`` requests at a time, while the calling thread does other things.

    Where measuring and training exclude each other (``apart`` false) there are no threads: a request is worked on at
    once, in the calling thread. Left early, what has not begun is given up, and what runs makes no further request:
    it ends when the device is closed.
    """

    def __init__(self, device: Device, timing: Timing, apart: bool, side_by_side: int = 1) -> None:
        self.device, self.timing = device, timing
        # as many of them as there are groups side by side keep all boards busy, and hold a request more than those
        hands = -(-(device.parallel + side_by_side - 1) // side_by_side)
        self.ahead = hands if apart else 0
        self._pool = ThreadPoolExecutor(hands, "measure") if apart else None
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
        """Time models, made only when a thread takes them up, beside the base."""
        if self._pool is not None:
            return self._pool.submit(self._timed, base, candidates)
        done: Future[Readings] = Future()
        done.set_result(self._timed(base, candidates))
        return done

    def _timed(self, base: bytes, candidates: Sequence[Callable[[], bytes]]) -> Readings:
        unit, lost = _Unit(), None
        for number, make in enumerate(candidates):
            try:
                unit.models[number] = make()
            except OpadaptError as error:
                unit.found[number] = error.message
        if unit.models:
            try:
                on_one_board(self.device, lambda board: self._on(board, base, unit))
            except LostDevice as error:
                if len(unit.left) == len(unit.models):
                    raise
                lost = error
        found = tuple(unit.found.get(number) for number in range(len(candidates)))
        return Readings(found, tuple(unit.base), unit.seconds, lost)

    def _on(self, board: Device, base: bytes, unit: _Unit) -> None:
        """Time what is left of the unit. Raises LostDevice."""
        began = time.monotonic()
        try:
            for numbers in [[number] for number in unit.left] if unit.singly else [unit.left]:
                self._ratios(board, base, unit, numbers)
        finally:
            unit.seconds += time.monotonic() - began

    def _ratios(self, board: Device, base: bytes, unit: _Unit, numbers: Sequence[int]) -> None:
        try:
            times = self._time(board, [base, *(unit.models[number] for number in numbers)])
        except LostDevice:
            raise
        except DeviceError as error:
            if error.kind not in BLAMED:
                raise _lost(error) from error
            if len(numbers) > 1:  # one of them broke the measuring process: find out which
                unit.singly = True
                for number in numbers:
                    self._ratios(board, base, unit, [number])
                return
            # is it the candidate, or the board? what fails with the base alone is no candidate's fault
            self._check(board, base)
            unit.found[numbers[0]] = _reason(error)
            return
        unit.base.append((times.conditions.get("board"), median_latency(times, 0).value))
        for place, number in enumerate(numbers, start=1):
            unit.found[number] = ratio(times, place, 0).value

    def _check(self, board: Device, base: bytes) -> None:
        """Raises LostDevice for a board that cannot time the base either."""
        try:
            self._time(board, [base])
        except LostDevice:
            raise
        except DeviceError as error:
            raise _lost(error) from error

    def _time(self, board: Device, models: Sequence[bytes]) -> BlockTimes:
        if self._stopped.is_set():  # asked now, a device that was just closed would start again
            raise CancelledError
        return board.time(models, self.timing)


def _lost(error: DeviceError) -> LostDevice:
    return LostDevice(error.message, expected=error.expected, found=error.found, do=error.do, kind=error.kind)


def _reason(error: DeviceError) -> str:
    """Why a candidate cannot be timed, in the words of the measuring process: the same on every board."""
    lines = (error.found or error.message).strip().splitlines()
    return shorten(lines[0], REASON_LENGTH, placeholder=" ...") if lines else error.message

"""Several boards of one type as one device: every piece of work runs whole on one free board.

Nothing is compared across boards: a request never spans two. A board that is gone (LostDevice) is dropped until the
device is opened again, and its work begins anew on another. The boards must agree in processor and onnxruntime,
since their samples are filed together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.device import SAME, Device, NDArrayAny, OnProcess, RawProfile
from opadapt.measure.facts import Facts
from opadapt.measure.timing import BlockTimes, Timing

T = TypeVar("T")


class Board:
    """One board of a fleet. What it measures says so: ``conditions["board"]`` is its host."""

    parallel = 1

    def __init__(self, host: str, device: Device) -> None:
        self.host, self.device = host, device
        self.facts, self.threads = device.facts, device.threads
        self.busy = False
        self.lost: LostDevice | None = None

    def __enter__(self) -> Self:
        self.device.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.device.__exit__(*exception)

    def hello(self) -> Mapping[str, Any]:
        return {**self.device.hello(), "board": self.host}

    def conditions(self) -> dict[str, Any]:
        return {**self.device.conditions(), "board": self.host}

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        return self._marked(self.device.time(models, timing, energy, on_process))

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        found = self.device.profile(model, timing)
        return dataclasses.replace(found, times=self._marked(found.times))

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        return self.device.run(model, feeds)

    def _marked(self, times: BlockTimes) -> BlockTimes:
        return dataclasses.replace(times, conditions={**times.conditions, "board": self.host})


class FleetDevice:
    """Device over boards of one type; ``hosts`` names them, in the order in which free ones are chosen.

    Requests may come from several threads, ``parallel`` at a time; more of them wait for a free board. Without
    company a request goes to the first board, so that what is measured one after the other is measured on one.
    """

    def __init__(self, facts: Facts, hosts: Sequence[str], devices: Sequence[Device]) -> None:
        self.facts, self.threads = facts, devices[0].threads
        self.boards = tuple(Board(host, device) for host, device in zip(hosts, devices, strict=True))
        self._changed = threading.Condition()  # guards busy, lost and closed
        self._closed = False

    @property
    def parallel(self) -> int:
        """Boards that are left."""
        return max(1, len(self._left()))

    @property
    def losses(self) -> tuple[tuple[str, str], ...]:
        """Host and reason of every board that was dropped."""
        return tuple((b.host, _reason(b.lost)) for b in self.boards if b.lost is not None)

    def __enter__(self) -> Self:
        """Open all boards at once. One that is not there is dropped; raises LostDevice where none is, and
        DeviceError for boards that are there and do not do."""
        with self._changed:
            self._closed = False
            for board in self.boards:
                board.lost = None
        try:
            with ThreadPoolExecutor(len(self.boards)) as pool:
                found = list(pool.map(_opened, self.boards))
            for board, error in zip(self.boards, found, strict=True):
                if isinstance(error, LostDevice):
                    self._drop(board, error)
                elif error is not None:
                    raise _named(board.host, error)
            self._check_alike()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with ThreadPoolExecutor(len(self.boards)) as pool:
            list(pool.map(_ended, self.boards))

    def hello(self) -> Mapping[str, Any]:
        return self.on_one(lambda board: board.hello())

    def conditions(self) -> dict[str, Any]:
        return self.on_one(lambda board: board.conditions())

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        return self.on_one(lambda board: board.time(models, timing, energy, on_process))

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        return self.on_one(lambda board: board.profile(model, timing))

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        return self.on_one(lambda board: board.run(model, feeds))

    def on_one(self, work: Callable[[Device], T]) -> T:
        """The result of several requests that belong together, on one board. Where that is lost, all of ``work``
        begins anew on another. Raises LostDevice when none is left."""
        while True:
            board = self._taken()
            try:
                return work(board)
            except LostDevice as error:
                self._drop(board, error)
            finally:
                self._freed(board)

    def _left(self) -> list[Board]:
        return [board for board in self.boards if board.lost is None]

    def _taken(self) -> Board:
        with self._changed:
            while True:
                left = self._left()
                if self._closed:
                    raise LostDevice(f"{self.facts.name}: the fleet is closed")
                if not left:
                    raise self._all_lost()
                for board in left:
                    if not board.busy:
                        board.busy = True
                        return board
                self._changed.wait()

    def _freed(self, board: Board) -> None:
        with self._changed:
            board.busy = False
            self._changed.notify_all()

    def _drop(self, board: Board, error: LostDevice) -> None:
        with self._changed:
            if not self._closed:  # a board that was closed in the middle of its work is not lost
                board.lost = error

    def _all_lost(self) -> LostDevice:
        return LostDevice(
            f"{self.facts.name}: every board of the fleet is gone",
            expected="one of " + ", ".join(board.host for board in self.boards),
            found="\n".join(f"{host}: {reason}" for host, reason in self.losses),
            do="see that one of them has power and network and answers to ssh",
        )

    def _check_alike(self) -> None:
        """Raises DeviceError for boards whose samples must not be mixed."""
        hellos = {board.host: board.hello() for board in self._left()}
        if not hellos:
            raise self._all_lost()
        differing = [key for key in SAME if len({str(hello[key]) for hello in hellos.values()}) > 1]
        if differing:
            raise DeviceError(
                f"{self.facts.name}: the boards of the fleet differ",
                expected=f"the same {', '.join(SAME)} on all of them",
                found="\n".join(
                    f"{host}: " + ", ".join(f"{key} {hello[key]}" for key in differing)
                    for host, hello in hellos.items()
                ),
                do="bring them to one state, or leave out those that differ",
            )


def on_one_board(device: Device, work: Callable[[Device], T]) -> T:
    """The result of requests that belong together: all of them on the same board of a fleet."""
    return device.on_one(work) if isinstance(device, FleetDevice) else work(device)


def _opened(board: Board) -> DeviceError | None:
    try:
        board.__enter__()
    except DeviceError as error:
        return error
    return None


def _named(host: str, error: DeviceError) -> DeviceError:
    if host in error.message:
        return error
    return DeviceError(f"{host}: {error.message}", expected=error.expected, found=error.found, do=error.do)


def _ended(board: Board) -> None:
    with contextlib.suppress(DeviceError):  # it was lost, or is just being lost: there is nothing left to end
        board.__exit__(None, None, None)


def _reason(error: LostDevice | None) -> str:
    if error is None:
        return ""
    return error.message + (f" ({' '.join(error.found.split())})" if error.found else "")

"""Work that is begun ahead of its results: taken in order, recorded by the calling thread alone."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")  # what the work returns
T = TypeVar("T")  # what is made of it


@dataclass(frozen=True)
class Begun(Generic[R, T]):
    """Work under way (None: known before), how to record what it returns, and what to make of the record."""

    future: Future[R] | None
    record: Callable[[R], None]
    results: Callable[[], Iterable[T]]

    @property
    def done(self) -> bool:
        return self.future is None or self.future.done()

    def settled(self) -> Iterable[T]:
        """Waits for the work and records it. Raises what the work raised."""
        if self.future is not None:
            self.record(self.future.result())
        return self.results()

    def abandon(self) -> None:
        """Record it if it is done; else it need not begin any more."""
        if self.future is not None and not self.future.cancel() and self.future.done():
            with contextlib.suppress(Exception):  # the error that is on its way says what went wrong
                self.record(self.future.result())


def in_order(begun: Iterable[Begun[R, T]], ahead: int) -> Generator[T, None, None]:
    """The results of all work in its order, with at most ``ahead`` pieces begun beyond the one that is awaited.

    ``begun`` begins a piece of work whenever it is asked for the next. Whatever ends the generator early, what was
    finished by then is recorded.
    """
    waiting: deque[Begun[R, T]] = deque()
    try:
        for one in begun:
            waiting.append(one)
            while waiting and (len(waiting) > ahead or waiting[0].done):
                yield from waiting.popleft().settled()
        while waiting:
            yield from waiting.popleft().settled()
    except BaseException:
        for one in waiting:
            one.abandon()
        raise

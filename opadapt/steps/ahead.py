"""Work that is begun ahead of its results: taken in order, recorded by the calling thread alone.

What waits for a device or a worker is asynchronous, so that other work goes on meanwhile: all of it in one thread,
which alone decides, writes the journal and tells the reader. Devices and workers are busy in threads and processes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

R = TypeVar("R")  # what the work returns
T = TypeVar("T")  # what is made of it


@dataclass
class Begun(Generic[R, T]):
    """Work under way (None: known before), how to record what it returns, and what to make of the record.

    Once ``watch`` is called it is recorded when it is done, whatever is waited for then: a kill must not cost it.
    """

    future: Future[R] | None
    record: Callable[[R], None]
    results: Callable[[], Iterable[T]]
    _recording: asyncio.Task[None] | None = field(default=None, init=False)
    _recorded: bool = field(default=False, init=False)

    @property
    def done(self) -> bool:
        return self.future is None or self.future.done()

    def watch(self) -> None:
        """Begin to wait for the work."""
        if self.future is not None and self._recording is None:
            self._recording = asyncio.create_task(self._when_done(self.future))

    async def settled(self) -> Iterable[T]:
        """Waits for the work and its record. Raises what the work raised, or recording it."""
        self.watch()
        if self._recording is not None:
            try:
                await self._recording
            except asyncio.CancelledError:
                self.abandon()
                raise
        return self.results()

    def abandon(self) -> None:
        """Record it if it is done; else it need not begin any more."""
        if self.future is not None and not self.future.cancel() and self.future.done():
            with contextlib.suppress(Exception):  # the error that is on its way says what went wrong
                self._record(self.future.result())
        if self._recording is not None and not self._recording.cancel() and not self._recording.cancelled():
            self._recording.exception()  # looked at: nobody else will

    async def _when_done(self, future: Future[R]) -> None:
        self._record(await asyncio.wrap_future(future))

    def _record(self, result: R) -> None:
        if not self._recorded:
            self.record(result)
            self._recorded = True


async def in_order(begun: AsyncIterable[Begun[R, T]], ahead: int) -> AsyncGenerator[T, None]:
    """The results of all work in its order, with at most ``ahead`` pieces begun beyond the one that is awaited.

    ``begun`` begins a piece of work whenever it is asked for the next. Each is recorded when it is done, even before
    its turn comes; whatever ends the generator early, what was finished by then is recorded.
    """
    waiting: deque[Begun[R, T]] = deque()
    try:
        async for one in begun:
            one.watch()
            waiting.append(one)
            while waiting and (len(waiting) > ahead or waiting[0].done):
                for result in await waiting.popleft().settled():
                    yield result
        while waiting:
            for result in await waiting.popleft().settled():
                yield result
    except BaseException:
        for one in waiting:
            one.abandon()
        raise


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of it side by side. What fails is raised once the rest is cancelled and has had its say."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run to the end. Ctrl-C strikes at once, wherever it is; what else is under way is cancelled and has its say."""
    with asyncio.Runner() as runner:  # whose own ``run`` would hold Ctrl-C back until something is awaited
        return runner.get_loop().run_until_complete(work)

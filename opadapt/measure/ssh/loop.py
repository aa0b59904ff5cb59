"""One asyncio loop in a thread of its own: asyncssh needs one, everything else in opadapt is synchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")

logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every write to a connection that broke

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0  # the process that started it: a forked one has the loop, but not its thread


def call(work: Coroutine[object, object, T], timeout_s: float) -> T:
    """The result of a coroutine, from any thread but the loop's own. Raises TimeoutError; the work is cancelled
    then, as it is when the waiting thread is interrupted."""
    return awaited(begun(work), timeout_s)


def begun(work: Coroutine[object, object, T]) -> concurrent.futures.Future[T]:
    """A coroutine that runs; another thread may cancel it."""
    return asyncio.run_coroutine_threadsafe(work, _running())


def awaited(future: concurrent.futures.Future[T], timeout_s: float) -> T:
    """The result of what was begun. Raises TimeoutError, also when it was cancelled."""
    try:
        return future.result(timeout_s)
    except concurrent.futures.CancelledError:
        raise TimeoutError from None
    finally:
        future.cancel()


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _owner
    with _lock:
        if _loop is None or _owner != os.getpid():
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="opadapt-ssh", daemon=True).start()
        return _loop

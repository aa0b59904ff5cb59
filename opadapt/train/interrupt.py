"""Ctrl-C taken between two optimiser steps, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C until the block ends; yields a function that says whether one has come.

    The second Ctrl-C interrupts at once. Outside the main thread, which alone receives signals, nothing
    changes; neither does it where somebody else has replaced Python's own handler.
    """
    previous = signal.getsignal(signal.SIGINT)
    if (
        threading.current_thread() is not threading.main_thread()
        or previous is not signal.default_int_handler
    ):
        yield lambda: False
        return
    pressed = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    signal.signal(signal.SIGINT, handler)
    failed: Exception | None = None
    try:
        yield pressed.is_set
    except Exception as error:
        failed = error
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed.is_set():  # too late for the block to ask
        raise KeyboardInterrupt from failed
    if failed is not None:
        raise failed

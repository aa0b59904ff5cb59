"""Ctrl-C is for the parent: none is lost while work is handed over, and workers never see it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from opadapt.steps import workers
from opadapt.steps.workers import Workers


class _Interrupted(ProcessPoolExecutor):
    """Ctrl-C comes while a task is handed over, as each task is."""

    def submit(self, /, *arguments: Any, **named: Any) -> Future[Any]:
        signal.raise_signal(signal.SIGINT)
        return super().submit(*arguments, **named)


@pytest.fixture
def pool() -> Iterator[Workers]:
    with Workers(1) as made:
        yield made


def test_ctrl_c_while_a_worker_starts_is_not_lost(pool: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ProcessPoolExecutor", _Interrupted)
    for _ in range(2):  # the second time the worker is there
        with pytest.raises(KeyboardInterrupt):
            pool.submit(abs, -1)
    monkeypatch.setattr(_Interrupted, "submit", ProcessPoolExecutor.submit)
    assert pool.submit(abs, -3).result(timeout=60) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_that_another_thread_is_given_waits_too(
    pool: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives a signal to any thread that does not block it, and Python's handler runs in the main one."""

    class ByAnother(ProcessPoolExecutor):
        handed_over = False

        def submit(self, /, *arguments: Any, **named: Any) -> Future[Any]:
            other = threading.Thread(
                target=lambda: (
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT}),
                    signal.raise_signal(signal.SIGINT),
                )
            )
            other.start()
            other.join()
            future = super().submit(*arguments, **named)
            ByAnother.handed_over = True
            return future

    monkeypatch.setattr(workers, "ProcessPoolExecutor", ByAnother)
    with pytest.raises(KeyboardInterrupt):
        pool.submit(abs, -1)
    assert ByAnother.handed_over


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_workers_do_not_see_ctrl_c(pool: Workers, in_main_thread: bool) -> None:
    found: list[Future[Any]] = []

    def begin() -> None:
        found.append(pool.submit(signal.raise_signal, signal.SIGINT))  # in the worker, to itself

    if in_main_thread:
        begin()
    else:
        other = threading.Thread(target=begin)
        other.start()
        other.join()
    assert found[0].result(timeout=60) is None
    assert pool.submit(abs, -3).result(timeout=60) == 3


def test_after_an_error_nobody_waits_for_the_work_in_hand() -> None:
    with pytest.raises(KeyboardInterrupt), Workers(1) as pool:
        pool.submit(abs, -1).result(timeout=60)
        in_hand = pool.submit(time.sleep, 60)
        while not in_hand.running():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert isinstance(in_hand.exception(timeout=30), BrokenProcessPool)


def test_without_an_error_the_work_in_hand_is_finished() -> None:
    with Workers(1) as pool:
        in_hand = pool.submit(abs, -1)
    assert in_hand.result(timeout=0) == 1

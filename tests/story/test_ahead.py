"""Work begun ahead: results in order, a bounded window, and nothing finished is forgotten when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from opadapt.steps.ahead import Begun, in_order


class Desk:
    """Pieces of work whose ends the test decides on."""

    def __init__(self, count: int) -> None:
        self.futures: list[Future[int]] = [Future() for _ in range(count)]
        self.begun: list[int] = []
        self.recorded: list[int] = []

    def work(self, *known: int) -> Iterator[Begun[int, str]]:
        for i, future in enumerate(self.futures):
            self.begun.append(i)
            yield Begun(None if i in known else future, self.recorded.append, lambda i=i: [f"r{i}"])


def test_results_come_in_order_whatever_ends_first() -> None:
    desk = Desk(3)
    for i in (2, 0, 1):
        desk.futures[i].set_result(i)
    assert list(in_order(desk.work(), 2)) == ["r0", "r1", "r2"]
    assert desk.recorded == [0, 1, 2]


def test_no_more_is_begun_ahead_than_allowed() -> None:
    desk = Desk(5)
    results = in_order(desk.work(), 2)
    desk.futures[0].set_result(0)
    assert next(results) == "r0" and desk.begun == [0]  # done at once: nothing need wait for it
    desk.futures[1].set_running_or_notify_cancel()

    class Watched(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            assert desk.begun == [0, 1, 2, 3]  # the awaited one and two more
            return 1

    desk.futures[1] = Watched()
    assert next(results) == "r1"


def test_known_work_is_read_and_not_recorded() -> None:
    desk = Desk(2)
    desk.futures[1].set_result(1)
    assert list(in_order(desk.work(0), 0)) == ["r0", "r1"]
    assert desk.recorded == [1]


def test_what_is_finished_behind_a_failure_is_recorded_and_the_rest_not_begun() -> None:
    desk = Desk(4)
    desk.futures[1].set_result(1)
    desk.futures[2].set_running_or_notify_cancel()
    results = in_order(desk.work(), 3)

    class Fails(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            raise ConnectionError("gone")

    desk.futures[0] = Fails()
    with pytest.raises(ConnectionError):
        list(results)
    assert desk.recorded == [1]
    assert desk.futures[3].cancelled() and not desk.futures[2].cancelled()


def test_results_that_are_not_taken_are_recorded_all_the_same() -> None:
    desk = Desk(3)
    desk.futures[0].set_result(0)
    results = in_order(desk.work(), 2)
    assert next(results) == "r0"
    desk.futures[1].set_running_or_notify_cancel()

    class Late(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            return 1

    desk.futures[1] = Late()
    assert next(results) == "r1"
    results.close()
    assert desk.recorded == [0, 1] and desk.futures[2].cancelled()

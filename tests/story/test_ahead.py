"""Work begun ahead: results in order, a bounded window, and nothing finished is forgotten when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from concurrent.futures import Future
from functools import partial

import pytest

from opadapt.steps.ahead import Begun, in_order, run, together


class Desk:
    """Pieces of work whose ends the test decides on."""

    def __init__(self, count: int) -> None:
        self.futures: list[Future[int]] = [Future() for _ in range(count)]
        self.begun: list[int] = []
        self.recorded: list[int] = []

    async def work(self, *known: int) -> AsyncGenerator[Begun[int, str], None]:
        for i, future in enumerate(self.futures):
            self.begun.append(i)
            yield Begun(None if i in known else future, self.recorded.append, partial(named, i))


def named(number: int) -> list[str]:
    return [f"r{number}"]


async def taken(results: AsyncIterable[str]) -> list[str]:
    return [result async for result in results]


def test_results_come_in_order_whatever_ends_first() -> None:
    desk = Desk(3)
    for i in (2, 0, 1):
        desk.futures[i].set_result(i)
    assert run(taken(in_order(desk.work(), 2))) == ["r0", "r1", "r2"]
    assert desk.recorded == [0, 1, 2]


def test_no_more_is_begun_ahead_than_allowed() -> None:
    desk = Desk(5)
    desk.futures[0].set_result(0)

    async def story() -> None:
        results = in_order(desk.work(), 2)
        assert await anext(results) == "r0" and desk.begun == [0]  # done at once: nothing need wait for it
        second = asyncio.create_task(anext(results))
        while desk.begun != [0, 1, 2, 3]:  # the awaited one and two more
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert desk.begun == [0, 1, 2, 3] and not second.done()
        desk.futures[1].set_result(1)
        assert await second == "r1"
        await results.aclose()

    run(story())


def test_what_is_done_before_its_turn_is_recorded_at_once() -> None:
    """A kill that comes while the first is awaited must not cost the second."""
    desk = Desk(3)

    async def story() -> None:
        results = asyncio.create_task(taken(in_order(desk.work(), 2)))
        while len(desk.begun) < 3:
            await asyncio.sleep(0)
        desk.futures[1].set_result(1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert desk.recorded == [1] and not results.done()
        desk.futures[0].set_result(0)
        desk.futures[2].set_result(2)
        assert await results == ["r0", "r1", "r2"]

    run(story())
    assert sorted(desk.recorded) == [0, 1, 2]  # each once


def test_an_error_of_work_is_raised_when_its_turn_comes() -> None:
    desk = Desk(2)

    async def story() -> None:
        results = in_order(desk.work(), 1)
        first = asyncio.create_task(anext(results))
        while len(desk.begun) < 2:
            await asyncio.sleep(0)
        desk.futures[1].set_exception(ConnectionError("gone"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not first.done()
        desk.futures[0].set_result(0)
        assert await first == "r0"
        with pytest.raises(ConnectionError, match="gone"):
            await anext(results)

    run(story())


def test_known_work_is_read_and_not_recorded() -> None:
    desk = Desk(2)
    desk.futures[1].set_result(1)
    assert run(taken(in_order(desk.work(0), 0))) == ["r0", "r1"]
    assert desk.recorded == [1]


def test_what_is_finished_behind_a_failure_is_recorded_and_the_rest_not_begun() -> None:
    desk = Desk(4)
    desk.futures[1].set_result(1)
    desk.futures[2].set_running_or_notify_cancel()
    with pytest.raises(ConnectionError):
        run(failing(desk, ConnectionError("gone")))
    assert desk.recorded == [1]
    assert desk.futures[3].cancelled() and not desk.futures[2].cancelled()


async def failing(desk: Desk, error: Exception) -> None:
    """The first piece of work fails while it is awaited."""
    task = asyncio.create_task(taken(in_order(desk.work(), 3)))
    while len(desk.begun) < 4:
        await asyncio.sleep(0)
    desk.futures[0].set_exception(error)
    await task


async def awaited(desk: Desk) -> AsyncGenerator[str, None]:
    """The results, of which the first was taken."""
    results = in_order(desk.work(), 2)
    first = asyncio.create_task(anext(results))
    while len(desk.begun) < 3:
        await asyncio.sleep(0)
    desk.futures[0].set_result(0)
    assert await first == "r0"
    return results


def test_results_that_are_not_taken_are_recorded_all_the_same() -> None:
    desk = Desk(3)

    async def story() -> None:
        results = await awaited(desk)
        desk.futures[1].set_result(1)
        await results.aclose()

    run(story())
    assert desk.recorded == [0, 1] and desk.futures[2].cancelled()


def test_what_ends_while_its_result_is_given_up_is_recorded() -> None:
    desk = Desk(3)

    async def story() -> None:
        rest = asyncio.create_task(taken(await awaited(desk)))
        await asyncio.sleep(0)
        desk.futures[1].set_result(1)
        rest.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rest

    run(story())
    assert desk.recorded == [0, 1] and desk.futures[2].cancelled()


def test_an_interrupt_strikes_at_once_and_the_rest_is_recorded_and_cancelled() -> None:
    desk = Desk(3)
    desk.futures[1].set_running_or_notify_cancel()

    async def interrupted() -> None:
        while len(desk.begun) < 3:
            await asyncio.sleep(0)
        desk.futures[1].set_result(1)
        raise KeyboardInterrupt

    async def patient() -> None:
        await taken(in_order(desk.work(), 2))

    with pytest.raises(KeyboardInterrupt):
        run(together([patient(), interrupted()]))
    assert desk.recorded == [1] and desk.futures[0].cancelled() and desk.futures[2].cancelled()


def test_what_fails_beside_other_work_is_raised_when_that_has_had_its_say() -> None:
    said: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            said.append("cancelled")
            raise

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        run(together([waits(), fails(), waits()]))
    assert said == ["cancelled", "cancelled"]

"""A fleet: whole requests on free boards, lost boards dropped, nothing mixed. The boards are scripted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import pytest

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.device import Device, NDArrayAny, OnProcess, RawProfile
from opadapt.measure.facts import load_facts
from opadapt.measure.fleet import FleetDevice, on_one_board
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import BlockTimes, Timing

WAIT_S = 60.0  # for another thread; long, since it is only reached by a fleet that is wrong
TIMING = Timing(blocks=6)
FACTS = load_facts("null").model_copy(update={"name": "rpi4"})


class Scripted:
    """A board whose every latency is its number; ``before`` is called at each request and may raise or wait."""

    parallel = 1
    facts, threads = FACTS, 1

    def __init__(self, number: int, before: Callable[[], None] = lambda: None, **hello: str) -> None:
        self.number, self.before = number, before
        self.requests: list[Sequence[bytes]] = []
        self.opened = self.closed = 0
        self.at_opening: Exception | None = None
        self._hello = {"machine": "aarch64", "cpu": "Cortex-A72", "onnxruntime": "1.22.0", "cores": 4} | hello
        self._busy = threading.Lock()

    def __enter__(self) -> Self:
        self.opened += 1
        if self.at_opening is not None:
            raise self.at_opening
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed += 1

    def hello(self) -> Mapping[str, Any]:
        return self._hello

    def conditions(self) -> dict[str, Any]:
        return {"provider": "CPU", "threads": 1, **self._hello}

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        assert self._busy.acquire(blocking=False), "two requests on one board at once"
        try:
            self.requests.append(models)
            self.before()
            return BlockTimes(np.full((len(models), timing.blocks), float(self.number)), self.conditions())
        finally:
            self._busy.release()

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        return RawProfile((), b"", self.time([model], timing))

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        return {"y": np.array([self.number])}


def dies() -> None:
    raise LostDevice("connection lost", found="no answer for 15 s")


def fleet(*boards: Device) -> FleetDevice:
    return FleetDevice(FACTS, "abcdefgh"[: len(boards)], boards)


def board_of(times: BlockTimes) -> object:
    return times.conditions["board"]


def test_one_request_after_the_other_goes_to_the_first_board() -> None:
    a, b = Scripted(1), Scripted(2)
    with fleet(a, b) as device:
        assert [board_of(device.time([b"m"], TIMING)) for _ in range(3)] == ["a"] * 3
        assert device.profile(b"m", TIMING).times.conditions["board"] == "a"
        assert device.conditions()["board"] == device.hello()["board"] == "a"
        assert device.run(b"m", {})["y"] == [1]
    assert not b.requests and b.opened == b.closed == 1


def test_as_many_requests_at_once_as_there_are_boards() -> None:
    meeting = threading.Barrier(3)  # passed only when three requests run at the same time

    def meet() -> None:
        meeting.wait(WAIT_S)

    boards = [Scripted(i, meet) for i in (1, 2, 3)]
    with fleet(*boards) as device, ThreadPoolExecutor(9) as pool:
        assert device.parallel == 3
        found = list(pool.map(lambda _: device.time([b"A", b"B", b"A"], TIMING), range(9)))
    for times in found:  # all of a comparison on one board, and it says which
        assert set(times.latency_s.flat) == {"abc".index(str(board_of(times))) + 1}
    assert sum(len(board.requests) for board in boards) == 9


def test_a_board_that_dies_in_a_request_is_dropped_and_another_does_the_work() -> None:
    a, b = Scripted(1, dies), Scripted(2)
    with fleet(a, b) as device:
        times = device.time([b"A", b"B"], TIMING)
        assert board_of(times) == "b" and set(times.latency_s.flat) == {2.0}
        assert device.losses == (("a", "connection lost (no answer for 15 s)"),)
        assert device.parallel == 1
        device.time([b"A"], TIMING)
    assert a.requests == [[b"A", b"B"]] and b.requests == [[b"A", b"B"], [b"A"]]
    assert a.closed == 1


def test_requests_that_belong_together_begin_anew_on_one_board() -> None:
    a, b = Scripted(1), Scripted(2)

    def second_dies() -> None:
        if len(a.requests) == 2:
            dies()

    a.before = second_dies
    with fleet(a, b) as device:
        found = on_one_board(device, lambda one: [board_of(one.time([m], TIMING)) for m in (b"1", b"2")])
    assert found == ["b", "b"]
    assert a.requests == [[b"1"], [b"2"]] and b.requests == [[b"1"], [b"2"]]


def test_a_single_device_does_the_work_itself() -> None:
    single = NullDevice(load_facts("null"), 1)
    assert on_one_board(single, lambda one: one) is single and single.parallel == 1


def test_work_of_a_dead_board_waits_for_the_others_to_be_free() -> None:
    """b is busy when a dies: a's work must not be lost, nor run on b beside what b does."""
    both, a_is_dead = threading.Barrier(2), threading.Event()

    def meet_and_die() -> None:
        both.wait(WAIT_S)
        dies()

    def meet_and_stay_busy() -> None:
        if len(b.requests) == 1:
            both.wait(WAIT_S)
            assert a_is_dead.wait(WAIT_S)

    a, b = Scripted(1, meet_and_die), Scripted(2, meet_and_stay_busy)
    with fleet(a, b) as device, ThreadPoolExecutor(2) as pool:
        work = [pool.submit(device.time, [b"m"], TIMING) for _ in range(2)]
        with device._changed:
            assert device._changed.wait_for(lambda: device.losses, WAIT_S)
        a_is_dead.set()
        assert {board_of(one.result(WAIT_S)) for one in work} == {"b"}
    assert len(b.requests) == 2


def test_all_lost_is_said_once_and_clearly_to_everyone_who_waits() -> None:
    with fleet(Scripted(1, dies), Scripted(2, dies)) as device, ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(device.time, [b"m"], TIMING) for _ in range(4)]:
            with pytest.raises(LostDevice, match="every board of the fleet is gone") as error:
                one.result(WAIT_S)
            assert "a: connection lost" in str(error.value) and "b: connection lost" in str(error.value)
        assert [host for host, _ in device.losses] == ["a", "b"]


def test_a_failed_request_is_the_callers_and_keeps_its_board() -> None:
    def fails() -> None:
        raise DeviceError("rpi4: time failed", found="illegal instruction")

    a, b = Scripted(1, fails), Scripted(2)
    with fleet(a, b) as device:
        with pytest.raises(DeviceError, match="time failed") as error:
            device.time([b"m"], TIMING)
        assert not isinstance(error.value, LostDevice)
        assert device.parallel == 2 and not device.losses and not b.requests


@pytest.mark.parametrize("key", ["onnxruntime", "machine", "cpu"])
def test_boards_that_differ_are_refused_with_a_list(key: str) -> None:
    boards = [Scripted(1, **{key: "one"}), Scripted(2, **{key: "one"}), Scripted(3, **{key: "other"})]
    with pytest.raises(DeviceError, match="differ") as error, fleet(*boards):
        pytest.fail("opened")
    for line in (f"a: {key} one", f"b: {key} one", f"c: {key} other"):
        assert line in str(error.value)
    assert [board.closed for board in boards] == [1, 1, 1]


def test_a_board_that_is_not_there_is_dropped_and_may_come_back() -> None:
    a, b = Scripted(1), Scripted(2)
    a.at_opening = LostDevice("a does not answer")
    device = fleet(a, b)
    with device:
        assert device.losses == (("a", "a does not answer"),) and device.parallel == 1
        assert board_of(device.time([b"m"], TIMING)) == "b"
    a.at_opening = None
    with device:
        assert not device.losses and board_of(device.time([b"m"], TIMING)) == "a"


def test_no_board_there() -> None:
    a, b = Scripted(1), Scripted(2)
    a.at_opening = b.at_opening = LostDevice("no route to host")
    with pytest.raises(LostDevice, match="every board") as error, fleet(a, b):
        pytest.fail("opened")
    assert "a: no route to host" in str(error.value)


def test_a_board_that_is_there_and_does_not_do_refuses_the_fleet() -> None:
    """A changed host key, the wrong kind of board: dropping it in silence would hide what the user must know."""
    a, b = Scripted(1), Scripted(2)
    b.at_opening = DeviceError("the host key has changed", do="compare fingerprints")
    with pytest.raises(DeviceError, match="b: the host key has changed") as error, fleet(a, b):
        pytest.fail("opened")
    assert error.value.do == "compare fingerprints"
    assert a.closed == 1


def test_closing_ends_the_wait_for_a_board_and_loses_none() -> None:
    inside, closing = threading.Event(), threading.Event()

    def closed_meanwhile() -> None:
        inside.set()
        assert closing.wait(WAIT_S)
        raise LostDevice("closed in the middle of it")

    device = fleet(Scripted(1, closed_meanwhile))
    with ThreadPoolExecutor(2) as pool:
        with device:
            running = pool.submit(device.time, [b"m"], TIMING)
            assert inside.wait(WAIT_S)
            waiting = pool.submit(device.time, [b"m"], TIMING)
        closing.set()
        for one in (running, waiting):
            with pytest.raises(LostDevice, match="fleet is closed"):
                one.result(WAIT_S)
    assert not device.losses

"""A device that is closed while a thread measures on it stays closed: the work is not begun anew."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.agent_device import PROTOCOL, TRIES, AgentDevice
from opadapt.measure.facts import load_facts
from opadapt.measure.timing import Timing
from opadapt.measure.transport import AGENT

WAIT_S = 60.0


class Losing:
    """A transport that loses its connection in every measurement, at once or when it is closed."""

    def __init__(self, at_once: bool) -> None:
        self.at_once, self.starts = at_once, 0
        self.measuring, self.closed = threading.Event(), threading.Event()

    def start(self) -> None:
        self.starts += 1

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        if message["do"] == "hello":
            digest = hashlib.sha256(AGENT.read_bytes()).hexdigest()
            board = {"machine": "any", "cpu": "any", "onnxruntime": "any"}
            return {"protocol": PROTOCOL, "sha256": digest, "folder": "/f", **board}
        self.measuring.set()
        assert self.at_once or self.closed.wait(WAIT_S)
        raise LostDevice("the connection was cut")

    def put(self, data: bytes, path: str) -> None: ...

    def get(self, path: str) -> bytes:
        return b""

    def close(self) -> None:
        self.closed.set()


class Interrupted(Losing):
    """Whoever waits for a measurement is interrupted; ``asked``: the requests so far."""

    def __init__(self) -> None:
        super().__init__(at_once=True)
        self.asked: list[str] = []

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append(message["do"])
        if message["do"] == "time":
            raise KeyboardInterrupt
        return super().request(message, timeout_s)


def test_an_interrupt_ends_the_agent_whose_answer_is_still_due() -> None:
    """Nothing more is asked of it: the next line it says is the answer to what was interrupted."""
    transport = Interrupted()
    device = AgentDevice(load_facts("local"), transport, 1)
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            device.time([b"model"], Timing())
        assert transport.asked == times * ["hello", "time"] and transport.starts == times
        assert transport.closed.is_set()
        transport.closed.clear()


def test_work_is_begun_anew_until_the_tries_are_used_up() -> None:
    transport = Losing(at_once=True)
    with AgentDevice(load_facts("local"), transport, 1) as device, pytest.raises(LostDevice):
        device.time([b"model"], Timing())
    assert transport.starts == TRIES


def test_closing_ends_the_work_of_another_thread_for_good() -> None:
    transport = Losing(at_once=False)
    with ThreadPoolExecutor(1) as pool:
        with AgentDevice(load_facts("local"), transport, 1) as device:
            work = pool.submit(device.time, [b"model"], Timing())
            assert transport.measuring.wait(WAIT_S)
        with pytest.raises(DeviceError):
            work.result(WAIT_S)
    assert transport.starts == 1

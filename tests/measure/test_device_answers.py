"""What a device makes of its agent's answers: whose they are, which failures count, how long they may take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.agent_device import PROTOCOL, AgentDevice
from opadapt.measure.facts import Cool, load_facts
from opadapt.measure.timing import Timing
from opadapt.measure.transport import AGENT

TIMING = Timing(blocks=6, timeout_s=100)
FACTS = load_facts("local").model_copy(update={"cool": None})
BOARD = {"onnxruntime": "1.22.0", "machine": "aarch64", "cpu": "Cortex-A72"}


class Answering:
    """A transport to an agent that is always there; ``before`` is called with each request and may raise or answer.
    ``board``: what the agent runs on."""

    def __init__(self) -> None:
        self.board = dict(BOARD)
        self.before: Callable[[Mapping[str, Any]], dict[str, Any] | None] = lambda message: None
        self.on_start: Callable[[], None] = lambda: None
        self.asked: list[Mapping[str, Any]] = []
        self.starts = self.closes = 0

    def start(self) -> None:
        self.starts += 1
        self.on_start()

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append(message)
        given = self.before(message)
        return self.answer(message) if given is None else given

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256(AGENT.read_bytes()).hexdigest()
        models = len(message.get("models", ["one"]))
        times = {
            "latency_s": [[1.0] * TIMING.blocks] * models,
            "order": list(range(models)) * TIMING.blocks,
            "energy_j": None,
            "conditions": dict(self.board),
        }
        return {
            "hello": {"protocol": PROTOCOL, "sha256": digest, "folder": "/f", **self.board},
            "time": times,
            "profile": {"kernels": [], "optimized": "/f/x", "times": times},
            "forget": {"removed": 1},
        }[message["do"]]

    def put(self, data: bytes, path: str) -> None: ...

    def get(self, path: str) -> bytes:
        return b""

    def close(self) -> None:
        self.closes += 1

    def count(self, what: str) -> int:
        return sum(message["do"] == what for message in self.asked)


@pytest.fixture
def transport() -> Answering:
    return Answering()


@pytest.fixture
def device(transport: Answering) -> AgentDevice:
    return AgentDevice(FACTS, transport, 1)


ASK: dict[str, Callable[[AgentDevice], object]] = {
    "time": lambda device: device.time([b"base", b"one"], TIMING),
    "profile": lambda device: device.profile(b"base", TIMING),
}


# --- whose answers they are


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("key", BOARD)
def test_samples_of_another_board_are_not_taken(
    device: AgentDevice, transport: Answering, ask: str, key: str
) -> None:
    with device:
        ASK[ask](device)
        transport.board[key] = "another"
        with pytest.raises(LostDevice, match="not what it was") as error:
            ASK[ask](device)
        assert error.value.given_up and transport.count(ask) == 2 and transport.starts == 1
        assert f"{key} {BOARD[key]}" in str(error.value.expected)
        assert f"{key} another" in str(error.value.found)
        assert transport.closes == 1  # the other board is not kept from others
    with device:  # opened anew, it is whatever it is
        ASK[ask](device)


def test_a_board_that_was_replaced_while_it_was_away_is_not_measured(
    device: AgentDevice, transport: Answering
) -> None:
    def replaced(message: Mapping[str, Any]) -> None:
        if message["do"] == "time":
            transport.board["cpu"] = "Cortex-A76"
            raise LostDevice("the connection is lost")

    with device:
        transport.before = replaced
        with pytest.raises(LostDevice, match="not what it was") as error:
            ASK["time"](device)
    assert transport.starts == 2 and transport.count("time") == 1
    assert "opadapt resume" in str(error.value.do)


# --- which failures count


@pytest.mark.parametrize("error", [DeviceError("no answer"), LostDevice("the connection is lost")])
def test_what_was_measured_counts_when_tidying_up_fails(
    device: AgentDevice, transport: Answering, error: DeviceError
) -> None:
    def fails(message: Mapping[str, Any]) -> None:
        if message["do"] == "forget":
            raise error

    with device:
        transport.before = fails
        assert device.time([b"base", b"one"], TIMING).latency_s.shape == (2, TIMING.blocks)
        assert transport.count("time") == 1
        device.time([b"base", b"two"], TIMING)
        assert transport.starts == 2  # who does not answer is started again


@pytest.mark.parametrize("kind", ["signal", "space", "locked", "throttled"])
def test_errors_keep_the_agents_name_for_them(device: AgentDevice, transport: Answering, kind: str) -> None:
    with device:
        transport.before = lambda message: (
            {"error": {"kind": kind, "message": "why"}} if message["do"] == "time" else None
        )
        with pytest.raises(DeviceError) as error:
            device.time([b"base"], TIMING)
    assert error.value.kind == kind and "why" in str(error.value.found)


def test_what_the_host_finds_has_no_kind() -> None:
    assert DeviceError("no host of that name").kind is None and LostDevice("gone").kind is None


# --- how long they may take


def test_the_time_limit_is_per_model_and_waiting_comes_on_top(transport: Answering) -> None:
    facts = FACTS.model_copy(update={"cool": Cool(start_above_c=70, resume_below_c=60, wait_s=45)})
    with AgentDevice(facts, transport, 1) as device:
        device.time([b"base", b"one", b"two"], TIMING)
        device.profile(b"base", TIMING)
    limits = {message["do"]: message["timeout_s"] for message in transport.asked}
    assert limits["time"] == 3 * TIMING.timeout_s + 45
    assert limits["profile"] == TIMING.timeout_s + 45


# --- closing


def test_a_closed_device_does_nothing_until_it_is_entered_again(
    device: AgentDevice, transport: Answering
) -> None:
    with device:
        pass
    for ask in (device.hello, device.conditions, lambda: device.time([b"base"], TIMING)):
        with pytest.raises(DeviceError, match="closed"):
            ask()
    assert transport.starts == 1
    with device:
        assert device.time([b"base"], TIMING).latency_s.shape == (1, TIMING.blocks)
    assert transport.starts == 2


def test_closing_is_not_undone_by_an_agent_that_is_being_started(
    device: AgentDevice, transport: Answering
) -> None:
    transport.on_start = device.close
    with pytest.raises(DeviceError, match="closed"):
        device.hello()
    assert transport.starts == 1 and not transport.asked
    assert transport.closes == 2  # by whoever closed it, and by whoever started it too late

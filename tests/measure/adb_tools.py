"""What the tests of adb share: a pretended server with one phone, and devices on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from phone import FakeAdbServer, Phone

from opadapt.measure.adb.server import AdbServer
from opadapt.measure.adb.transport import AdbTransport
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.facts import Facts

FACTS = Facts(name="phone", description="a pretended phone", transport="adb", arch="host", timeout_s=60)


def transport(adb: FakeAdbServer, serial: str = "", facts: Facts = FACTS) -> AdbTransport:
    folder = next(iter(adb.phones.values())).storage if not serial else adb.phones[serial].storage
    return AdbTransport(serial, facts, AdbServer("127.0.0.1", adb.port), str(folder))


def device(adb: FakeAdbServer, serial: str = "") -> AgentDevice:
    return AgentDevice(FACTS, transport(adb, serial), 1)


def agents(phone: Phone) -> list[str]:
    return [path.name for path in phone.storage.glob("agent-*")]


def running_agents(phone: Phone) -> list[int]:
    """Process ids of the phone's agents, their children left out."""
    return [pid for pid, line in _processes(phone) if "--child" not in line]


def running_children(phone: Phone) -> list[int]:
    """Process ids of what measures."""
    return [pid for pid, line in _processes(phone) if "--child" in line]


def _processes(phone: Phone) -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"{phone.storage}/agent-" in line:
                found.append((int(folder.name), line))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    waiting = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("waited too long")

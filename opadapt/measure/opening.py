"""From what ``--device`` and ``--host`` say to the device.

What needs a library of its own (asyncssh, adbutils) is imported when a device of that kind is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from opadapt.errors import ConfigError, DeviceError
from opadapt.measure.address import Address, parse_device
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.device import Device
from opadapt.measure.facts import Facts, load_facts
from opadapt.measure.fleet import FleetDevice
from opadapt.measure.local import LocalDevice
from opadapt.measure.null import NullDevice

Hosts = tuple[str, ...]


def _null(facts: Facts, threads: int, hosts: Hosts) -> Device:
    return NullDevice(facts, threads)


def _local(facts: Facts, threads: int, hosts: Hosts) -> Device:
    return LocalDevice(facts, threads)


def _agents(transport: str) -> Callable[[Facts, int, Hosts], Device]:
    """Devices behind an agent: one board by itself, several as a fleet."""

    def make(facts: Facts, threads: int, hosts: Hosts) -> Device:
        make_transport = _imported(transport)
        # no host: the one phone that is plugged in
        boards = [AgentDevice(facts, make_transport(host, facts), threads) for host in hosts or ("",)]
        return boards[0] if len(boards) == 1 else FleetDevice(facts, hosts, boards)

    return make


KINDS: Mapping[str, Callable[[Facts, int, Hosts], Device]] = MappingProxyType(
    {
        "null": _null,
        "local": _local,
        "ssh": _agents("opadapt.measure.ssh.transport:SshTransport"),
        "adb": _agents("opadapt.measure.adb.transport:AdbTransport"),
    }
)
HERE = ("null", "local")  # transports without a host


def find_device(name: str, host: str | None = None) -> tuple[Address, Facts]:
    """What is asked for, and its facts; a device reached over ssh has its host filled in. Raises ConfigError."""
    address = parse_device(name, host)
    facts = load_facts(address.type)
    if facts.transport in HERE:
        if address.hosts:
            raise ConfigError(
                f"{facts.name} is on this machine",
                expected="no host",
                found=", ".join(address.hosts),
                do="leave the host out, or choose the type of the board: opadapt devices list",
            )
    elif facts.transport == "ssh" and not address.hosts:
        address = Address(address.type, (facts.host or facts.name,))
    return address, facts


def open_device(name: str, threads: int = 1, host: str | None = None) -> Device:
    """The device of that name: use it as a context manager. Raises ConfigError, DeviceError."""
    address, facts = find_device(name, host)
    return KINDS[facts.transport](facts, threads, address.hosts)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise DeviceError(
            f"{module} cannot be imported", found=str(error), do="install opadapt again, with all it needs"
        ) from error

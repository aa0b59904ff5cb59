"""From a device's name to the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from opadapt.measure.device import Device
from opadapt.measure.facts import Facts, load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.null import NullDevice

KINDS: Mapping[str, Callable[[Facts, int], Device]] = MappingProxyType(
    {"null": NullDevice, "local": LocalDevice}
)


def open_device(name: str, threads: int = 1) -> Device:
    """The device of that name: use it as a context manager. Raises ConfigError, DeviceError."""
    facts = load_facts(name)
    return KINDS[facts.transport](facts, threads)

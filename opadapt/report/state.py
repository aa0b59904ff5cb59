"""The state of a device and the energy of an inference: from what the agent tells to what people read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from opadapt.measure.timing import BlockTimes
from opadapt.report.data import DeviceState, EnergyFacts, Report
from opadapt.report.wording import digits, percent, seconds

_LABELS = {
    "clock_mhz": "clocks in MHz",
    "firmware_clock_mhz": "clock by the firmware in MHz",
    "onnxruntime": "onnxruntime on the device",
    "processes": "processes that timed it",
    "temperature_c": "°C of",
    "waited_s": "seconds waited",
}
_MOMENTS = ("before", "after")
_LONG = re.compile(r"\d+\.\d{4,}")  # more digits than anybody reads
_JOULES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))


def state_of(conditions: Mapping[str, Any]) -> DeviceState | None:
    """The state in the conditions of a measurement; None for a device that has none (the null device)."""
    before, after = conditions.get("before"), conditions.get("after")
    if before is None or after is None:
        return None
    return DeviceState(
        temperature_c=(_heat_c(before), _heat_c(after)),
        clock_mhz=(_clock_mhz(before), _clock_mhz(after)),
        governor=after.get("governor"),
        throttled=(before.get("throttled"), after.get("throttled")),
        watched=conditions.get("throttling_watched", False),
        discarded_blocks=conditions.get("discarded_blocks", 0),
        waited_s=float(conditions.get("waited_s", 0)),
        too_hot=conditions.get("too_hot", False),
        pinned=tuple(conditions.get("pinned") or ()),
    )


def _heat_c(told: Mapping[str, Any]) -> float | None:
    return max(map(float, (told.get("temperature_c") or {}).values()), default=None)


def _clock_mhz(told: Mapping[str, Any]) -> float | None:
    """What the firmware says, where it does: a Raspberry Pi's kernel does not know that it is throttled."""
    clocks = [told["firmware_clock_mhz"]] if told.get("firmware_clock_mhz") else told.get("clock_mhz") or ()
    return max(map(float, clocks), default=None)


def energy_of(times: BlockTimes) -> EnergyFacts | None:
    """Energy of the original (model 0, and again model 2) and of the adapted model (1), if it was measured."""
    if times.energy_j is None:
        return None
    original_j, adapted_j, again_j = times.energy_j
    return EnergyFacts(
        original_j=original_j,
        adapted_j=adapted_j,
        source=str(times.conditions["power_source"]),
        noise_floor=abs(original_j / again_j - 1),
    )


def joules(value: float) -> str:
    """``0.00123`` -> ``"1.23 mJ"``."""
    size, unit = next(((s, u) for s, u in _JOULES if abs(value) >= s), _JOULES[-1])
    return f"{digits(value / size)} {unit}"


def facts(conditions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the device told of itself and its state, as rows of a label and a text; not what it has no answer to."""
    for key, value in sorted(conditions.items()):
        moment, _, name = key.partition(".")
        if moment not in _MOMENTS:
            moment, name = "", key
        if value is None or value == "[]" or name.startswith("energy."):  # which has lines of its own
            continue
        kind, _, source = name.partition(".")
        label = " ".join(filter(None, (_LABELS.get(kind, kind.replace("_", " ")), source, moment)))
        yield label, _text(value)


def _text(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return digits(value)
    if isinstance(value, str) and value.startswith("["):  # a list of numbers
        return _LONG.sub(lambda long: digits(float(long[0])), value.strip("[]"))
    return str(value)


def lines(report: Report) -> Iterator[str]:
    """What the reader of a latency should know of how it came about."""
    if report.device.state is not None:
        yield from _state_lines(report.device.state)
    missing = report.device.conditions.get("power_missing")
    if report.energy is not None:
        floor = percent(report.energy.noise_floor)
        yield f"energy of an inference from {report.energy.source}, noise floor {floor}"
    elif missing is not None:
        yield f"no energy: {missing}"


def _state_lines(state: DeviceState) -> Iterator[str]:
    parts = [
        _pair(state.temperature_c, "°C"),
        _pair(state.clock_mhz, "MHz"),
        f"governor {state.governor}" if state.governor else "",
        f"pinned to {', '.join(map(str, state.pinned))}" if state.pinned else "",
    ]
    if told := ", ".join(filter(None, parts)):
        yield f"device: {told}"
    if state.discarded_blocks:
        yield f"throttling: {state.discarded_blocks} block(s) thrown away and repeated"
    else:
        yield f"throttling: {'none while it was measured' if state.watched else 'the device does not tell'}"
    if state.waited_s:
        yield f"waited {seconds(state.waited_s)} to cool down" + (
            ", and it was still hot" if state.too_hot else ""
        )


def _pair(values: tuple[float | None, float | None], unit: str) -> str:
    known = [f"{value:.0f}" for value in values if value is not None]
    return f"{' -> '.join(dict.fromkeys(known))} {unit}" if known else ""

"""The state of the device and the energy of an inference, from the final measurement to the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import write_model

from opadapt.adapt import adapt
from opadapt.experiment import create_run, load_experiment, open_run
from opadapt.measure.device import OnProcess
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.report.data import Report, read_json
from opadapt.report.progress import Silent

STATE = {
    "before": {"temperature_c": {"a": 50.0, "b": 61.5}, "clock_mhz": [600.0, 1500.0], "throttled": "0x0"},
    "after": {
        "temperature_c": {"a": 55.0},
        "clock_mhz": [1500.0],
        "firmware_clock_mhz": 1400.4,
        "governor": "ondemand",
        "throttled": "0x50000",
    },
    "throttling_watched": True,
    "discarded_blocks": 2,
    "waited_s": 31.5,
    "too_hot": True,
    "pinned": [2, 3],
    "power_source": "ina226 channel 1",
}


def run_exact(folder: Path) -> tuple[Report, Path]:
    """A run without data: seconds, and the final measurement all the same."""
    path = folder / "exact.yaml"
    model = write_model(folder / "tiny.onnx")
    path.write_text(f"model: {model}\nruns: {folder / 'runs'}\nname: exact\ndevice: 'null'\n")
    experiment, run = create_run(load_experiment(path))
    return adapt(experiment, run, Silent()), run


@pytest.fixture
def sensitive(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Null devices that have a state, and a power sensor for those who ask. Whether each request did, which only
    final measurements do."""
    asked: list[bool] = []
    plain = NullDevice.time

    def time(
        self: Any,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        asked.append(energy)
        assert energy == (len(models) == 3)  # the original, the adapted and the original again
        times = plain(self, models, timing)
        joules = (4e-3, 1e-3, 3.2e-3)[: len(models)] if energy else None
        return dataclasses.replace(times, conditions={**times.conditions, **STATE}, energy_j=joules)

    monkeypatch.setattr(NullDevice, "time", time)
    return asked


def test_state_and_energy_reach_the_report(tmp_path: Path, sensitive: list[bool]) -> None:
    report, folder = run_exact(tmp_path)
    state, energy = report.device.state, report.energy
    assert state is not None and energy is not None
    assert state.temperature_c == (61.5, 55.0) and state.clock_mhz == (1500.0, 1400.4)
    assert (state.governor, state.throttled) == ("ondemand", ("0x0", "0x50000"))
    assert (state.discarded_blocks, state.waited_s, state.pinned) == (2, 31.5, (2, 3)) and state.watched
    assert (energy.original_j, energy.adapted_j, energy.source) == (4e-3, 1e-3, "ina226 channel 1")
    assert energy.noise_floor == pytest.approx(0.25)
    assert any("too hot" in text and "32 s" in text for text in report.warnings)
    assert read_json(folder / "report.json") == report
    assert set(sensitive) == {True, False}  # candidates and profiles do without

    again = adapt(open_run(folder), folder, Silent())  # out of the journal
    assert (again.device.state, again.energy) == (state, energy)


def test_what_nothing_measures_is_absent(tmp_path: Path) -> None:
    report, folder = run_exact(tmp_path)
    assert report.energy is None and report.device.state is None
    assert '"energy": null' in (folder / "report.json").read_text()
    assert "energy" not in (folder / "report.html").read_text()

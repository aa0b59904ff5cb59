"""Joules per inference: from a sensor or a counter that is there, else not at all. On a made-up /sys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_sysfs import FakeSysfs, board

from opadapt.measure.agent import EnergyCounter, _energy_block
from opadapt.measure.facts import PowerSource, Thermal
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.model.graph import Model
from opadapt.model.save import at_batch

RAPL = PowerSource(kind="rapl", match="package-0")
RANGE_UJ = 262_143_328_850  # of a real package


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    return FakeSysfs(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def model(cnn: Callable[..., Model]) -> bytes:
    return at_batch(cnn(64, 32), 1).SerializeToString()


def watts(found: BlockTimes) -> list[float]:
    """The mean power that the energies stand for, by the runs and seconds of their blocks."""
    assert found.energy_j is not None
    energy = found.conditions["energy"]
    pairs = zip(found.energy_j, energy["runs"], energy["seconds"], strict=True)
    return [joules * runs / seconds for joules, runs, seconds in pairs]


def hwmon(name: str, channel: int | None = None) -> tuple[PowerSource, ...]:
    return (PowerSource(kind="hwmon", match=name, channel=channel),)


@pytest.mark.parametrize(
    ("power", "expected", "source"),
    [
        (hwmon("ina226"), 2.5, "ina226 channel 1"),
        (hwmon("ina3221"), 3.0, "ina3221 channel 1"),
        (hwmon("ina3221", 2), 1.0, "ina3221 channel 2"),
        ((PowerSource(kind="iio", match="ina3221*"),), 4.2, "ina3221x channel 0"),
        ((RAPL, *hwmon("ina219"), *hwmon("ina226")), 2.5, "ina226 channel 1"),  # the first that is there
    ],
)
def test_power_of_a_hwmon_chip(
    sysfs: FakeSysfs, model: bytes, quick: Timing, power: Any, expected: float, source: str
) -> None:
    # microwatts; milliamperes times millivolts, and in0 is the voltage of the shunt
    sysfs.hwmon(0, "ina226", in0_input=9, in1_input=5100, curr1_input=100, power1_input=2_500_000)
    sysfs.hwmon(1, "ina3221", in1_input=5000, curr1_input=600, in2_input=5000, curr2_input=200, in4_input=40)
    sysfs.write("bus/iio/devices/iio:device0/name", "ina3221x")
    sysfs.write("bus/iio/devices/iio:device0/in_power0_input", 4200)  # milliwatts
    sysfs.write("bus/iio/devices/iio:device0/in_power1_input", 77)
    with board(sysfs, power=power) as device:
        found = device.time([model, model], quick, energy=True)
    assert watts(found) == pytest.approx([expected] * 2, rel=1e-6)
    assert found.conditions["power_source"] == source
    assert min(found.conditions["energy"]["seconds"]) >= 0.5
    assert found.energy_j is not None
    for joules, latency_s in zip(found.energy_j, found.latency_s, strict=True):
        # of one inference: it draws that power for at least about its latency; on a busy machine for longer
        assert 0.5 < joules / (expected * float(latency_s.min())) < 30


def test_a_sensor_that_converts_slowly_is_read_for_longer(
    sysfs: FakeSysfs, model: bytes, quick: Timing
) -> None:
    sysfs.hwmon(0, "ina3221", in1_input=5000, curr1_input=600, update_interval=200)
    with board(sysfs, power=hwmon("ina3221")) as device:
        found = device.time([model], quick, energy=True)
    assert found.conditions["energy"]["seconds"][0] >= 1.0


def zone(sysfs: FakeSysfs, number: str, name: str, energy_uj: int) -> None:
    sysfs.write(f"class/powercap/{number}/name", name)
    sysfs.write(f"class/powercap/{number}/max_energy_range_uj", RANGE_UJ)
    sysfs.write(f"class/powercap/{number}/energy_uj", energy_uj)


class Consumer:
    """A package that draws a constant power. When a child's stage has ``event``, its counter is set so that it
    starts again half-way through the energy block (which follows 0.2 s later and lasts for 0.5 s)."""

    def __init__(self, sysfs: FakeSysfs, power_w: float, event: str) -> None:
        self.sysfs, self.power_w, self.event = sysfs, power_w, event
        self.readings: list[int] = []
        self.folder = Path("/nowhere")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Consumer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()

    def _seen(self) -> bool:
        try:
            return any(self.event in file.read_text() for file in self.folder.glob("**/stage"))
        except OSError:
            return False

    def _run(self) -> None:
        base_uj, began, set_yet = 1_000_000.0, time.monotonic(), False
        while not self._end.wait(0.001):
            if not set_yet and self._seen():
                base_uj, began, set_yet = RANGE_UJ - 0.45 * self.power_w * 1e6, time.monotonic(), True
            now = int(base_uj + (time.monotonic() - began) * self.power_w * 1e6) % RANGE_UJ
            self.readings.append(now)
            self.sysfs.write("class/powercap/intel-rapl:0/energy_uj", now)


def test_energy_of_a_counter_that_starts_again(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    zone(sysfs, "intel-rapl:0", "package-0", 1_000_000)
    zone(sysfs, "intel-rapl:0:0", "core", 5)
    zone(sysfs, "intel-rapl-mmio:0", "package-0", 6)  # the same energy, told twice
    with board(sysfs, power=(RAPL,)) as device, Consumer(sysfs, 40.0, "model 0: energy") as consumer:
        consumer.folder = Path(str(device.hello()["folder"]))
        found = device.time([model], quick, energy=True)
    assert any(b < a for a, b in zip(consumer.readings, consumer.readings[1:], strict=False))
    assert watts(found) == pytest.approx([40.0], rel=0.15)
    assert found.conditions["power_source"] == "rapl package-0"


@pytest.mark.parametrize(
    ("before", "after", "joules"),
    [(1_000_000, 3_500_000, 2.5), (RANGE_UJ - 1_000_000, 1_500_000, 2.5), (7, 7, None), (7, "", None)],
)
def test_a_counter_is_exact(sysfs: FakeSysfs, before: int, after: object, joules: float | None) -> None:
    zone(sysfs, "intel-rapl:0", "package-0", before)
    counter = EnergyCounter(sysfs.sys / "class/powercap/intel-rapl:0")
    assert counter.works()
    counter.start()
    sysfs.write("class/powercap/intel-rapl:0/energy_uj", after)
    assert counter.stop()[0] == (None if joules is None else pytest.approx(joules, abs=1e-9))


def test_a_block_lasts_from_when_its_meter_has_started() -> None:
    class SlowToStart(EnergyCounter):
        lead_s, block_s = 0.0, 0.05

        def start(self) -> None:
            time.sleep(0.03)
            super().start()

    _, seconds, runs = _energy_block(SlowToStart(Path("/nowhere")), lambda: time.sleep(0.001))
    assert runs > 0
    assert seconds >= SlowToStart.block_s


def test_energy_under_throttling_is_thrown_away(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    sysfs.hwmon(0, "ina226", power1_input=9_000_000)
    file = sysfs.sys / "class/hwmon/hwmon0/power1_input"
    sysfs.vcgencmd(
        once="0x4", event="model 0: energy", action=f"echo 2000000 > {file}.new; mv {file}.new {file}"
    )
    with board(sysfs, power=hwmon("ina226"), thermal=(Thermal(kind="vcgencmd"),)) as device:
        found = device.time([model], quick, energy=True)
    assert sysfs.happened() and found.conditions["discarded_blocks"] == 1
    assert watts(found) == pytest.approx([2.0], rel=1e-6)  # nothing of the 9 W


def test_without_a_source_there_is_no_energy(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    with board(sysfs) as device:
        found = device.time([model], quick, energy=True)
    assert found.energy_j is None
    assert found.conditions["power_source"] is None and "power_missing" not in found.conditions


def test_energy_that_nobody_asks_for_costs_nothing(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    sysfs.hwmon(0, "ina226", power1_input=2_500_000)
    with board(sysfs, power=hwmon("ina226")) as device:
        found = device.time([model], quick)
    assert found.energy_j is None and "energy" not in found.conditions


@pytest.mark.parametrize(
    ("files", "power", "why"),
    [
        ({}, (RAPL, *hwmon("ina226")), "rapl package-0: not there; hwmon ina226: not there"),
        ({"power2_input": 5}, hwmon("ina226", 1), "ina226 channel 1: cannot be read"),
        ({"power1_input": 0}, hwmon("ina226"), "ina226 channel 1: reads nothing"),
        ({"curr1_input": -5, "in1_input": 5000}, hwmon("ina226"), "ina226 channel 1: reads nothing"),
    ],
)
def test_a_source_that_is_missing_or_dead_is_named(
    sysfs: FakeSysfs, model: bytes, quick: Timing, files: dict[str, int], power: Any, why: str
) -> None:
    if files:
        sysfs.hwmon(0, "ina226", **files)
    with board(sysfs, power=power) as device:
        found = device.time([model], quick, energy=True)
    assert found.energy_j is None and found.conditions["power_source"] is None
    assert why in found.conditions["power_missing"]


def test_a_counter_that_stands_still_is_no_source(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    zone(sysfs, "intel-rapl:0", "package-0", 1_000_000)  # as virtual machines show one
    with board(sysfs, power=(RAPL,)) as device:
        found = device.time([model], quick, energy=True)
    assert found.energy_j is None and found.conditions["power_missing"] == "rapl package-0: reads nothing"

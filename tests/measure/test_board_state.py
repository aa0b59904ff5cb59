"""Hot, throttled and pinned boards: what is measured, what is not, and what is recorded. On a made-up /sys."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_sysfs import FakeSysfs, board

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.facts import Cool, Facts, Thermal
from opadapt.measure.local import LocalDevice
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.model.graph import Model
from opadapt.model.save import at_batch
from opadapt.report.state import state_of

CPU_ZONE = Thermal(kind="zone", match="cpu-*")
PI = (CPU_ZONE, Thermal(kind="vcgencmd"))
CORE = max(os.sched_getaffinity(0))


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    made = FakeSysfs(tmp_path, monkeypatch)
    made.zone(0, "cpu-thermal", 50)
    return made


@pytest.fixture(scope="module")
def model(cnn: Callable[..., Model]) -> bytes:
    return at_batch(cnn(), 1).SerializeToString()


class Measuring:
    """A measurement in the background, which the test looks into while it runs."""

    def __init__(self, device: LocalDevice, model: bytes, timing: Timing) -> None:
        self.folder = Path(str(device.hello()["folder"]))
        self.result: list[BlockTimes | BaseException] = []
        self._work = lambda: device.time([model], timing)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result.append(self._work())
        except BaseException as error:
            self.result.append(error)

    def stage(self, part: str) -> Path:
        """The child's folder, once its stage has that part."""
        end = time.monotonic() + 30
        while not self.result and time.monotonic() < end:
            for file in self.folder.glob("**/stage"):
                if part in file.read_text():
                    return file.parent
            time.sleep(0.005)
        raise AssertionError(f"never at '{part}': {self.result}")

    def times(self) -> BlockTimes:
        self._thread.join(60)
        (found,) = self.result
        assert isinstance(found, BlockTimes), found
        return found


def heat_source(sysfs: FakeSysfs, kind: str) -> Callable[[float], None]:
    if kind == "zone":
        return lambda celsius: sysfs.zone(0, "cpu-thermal", celsius)
    return lambda celsius: sysfs.hwmon(0, "coretemp", temp1_input=30_000, temp2_input=round(1000 * celsius))


@pytest.mark.parametrize(("kind", "match"), [("zone", "cpu-*"), ("hwmon", "coretemp")])
def test_a_hot_board_waits_until_it_is_cool(
    sysfs: FakeSysfs, model: bytes, quick: Timing, kind: Any, match: str
) -> None:
    heat = heat_source(sysfs, kind)
    heat(85)
    cool = Cool(start_above_c=70, resume_below_c=60, wait_s=60)
    with board(sysfs, thermal=(Thermal(kind=kind, match=match),), cool=cool) as device:
        measuring = Measuring(device, model, quick)
        measuring.stage("waiting until it is below 60")
        heat(59)
        found = measuring.times()
    assert found.latency_s.shape == (1, quick.blocks)
    assert 0 < found.conditions["waited_s"] < 60 and not found.conditions["too_hot"]
    assert max(found.conditions["before"]["temperature_c"].values()) == 85
    assert max(found.conditions["after"]["temperature_c"].values()) == 59


def test_a_board_between_the_marks_does_not_wait(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    sysfs.zone(0, "cpu-thermal", 65)
    sysfs.zone(1, "PMIC-Die", 100)  # of no interest
    cool = Cool(start_above_c=70, resume_below_c=60, wait_s=60)
    with board(sysfs, thermal=(CPU_ZONE,), cool=cool) as device:
        found = device.time([model], quick).conditions
    assert found["waited_s"] == 0 and not found["too_hot"]


def test_a_board_whose_zones_all_count_does_not_wait_for_one_that_is_no_heat(
    sysfs: FakeSysfs, model: bytes, quick: Timing
) -> None:
    sysfs.zone(1, "PMIC-Die", 100)
    cool = Cool(start_above_c=70, resume_below_c=60, wait_s=60)
    with board(sysfs, thermal=(Thermal(kind="zone"),), cool=cool) as device:
        times = device.time([model], quick)
    state = state_of(times.conditions)
    assert times.conditions["waited_s"] == 0 and state is not None and state.temperature_c == (50, 50)


def test_a_board_that_stays_hot_waits_once_and_says_so(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    sysfs.zone(0, "cpu-thermal", 85)
    cool = Cool(start_above_c=70, resume_below_c=60, wait_s=1)
    with board(sysfs, thermal=(CPU_ZONE,), cool=cool) as device:
        found = device.time([model, model], quick)
    assert found.latency_s.shape == (2, quick.blocks)
    assert 1 <= found.conditions["waited_s"] < 2 * quick.blocks  # once for all blocks, not for each
    assert found.conditions["too_hot"]


# throttled at the end of a block; an undervoltage; what began and ended within a block and left its mark
@pytest.mark.parametrize("word", ["0x50004", "0x10001", "0x40000"])
def test_a_block_under_throttling_is_thrown_away_and_repeated(
    sysfs: FakeSysfs, model: bytes, quick: Timing, word: str
) -> None:
    sysfs.vcgencmd("0x0", once=word, event="model 0: block 2", action=f"echo 0x50000 > {sysfs.root}/word")
    with board(sysfs, thermal=PI) as device:
        found = device.time([model, model], quick)
    assert sysfs.happened() and found.conditions["discarded_blocks"] == 1
    assert found.latency_s.shape == (2, quick.blocks)
    assert sysfs.calls("model 0: block 2") > sysfs.calls("model 0: block 3") == 1
    assert found.conditions["waited_s"] > 0  # without a cool-down: a pause
    assert (found.conditions["before"]["throttled"], found.conditions["after"]["throttled"]) == (
        "0x0",
        "0x50000",
    )


def test_the_report_understands_what_the_agent_tells(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    sysfs.vcgencmd("0x50000")
    sysfs.write("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 600_000)
    sysfs.write("devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand")
    with board(sysfs, thermal=PI, pin_cores=(CORE,)) as device:
        state = state_of(device.time([model], quick).conditions)
    assert state is not None
    assert state.temperature_c == (50, 50) and state.clock_mhz == pytest.approx((1500.398464, 1500.398464))
    assert (state.governor, state.throttled, state.pinned) == ("ondemand", ("0x50000",) * 2, (CORE,))
    assert (state.discarded_blocks, state.waited_s, state.too_hot) == (0, 0, False) and state.watched


def test_throttling_of_the_past_is_none_of_this_measurement(
    sysfs: FakeSysfs, model: bytes, quick: Timing
) -> None:
    sysfs.vcgencmd("0xf0000")
    with board(sysfs, thermal=PI) as device:
        found = device.time([model], quick).conditions
    assert found["discarded_blocks"] == 0 and found["before"]["throttled"] == "0xf0000"


def test_after_throttling_the_board_cools_down(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    sysfs.zone(0, "cpu-thermal", 65)  # below the mark where waiting starts
    sysfs.vcgencmd("0x0", once="0x4", event="model 0: block 1")
    cool = Cool(start_above_c=70, resume_below_c=60, wait_s=60)
    with board(sysfs, thermal=PI, cool=cool) as device:
        measuring = Measuring(device, model, quick)
        measuring.stage("waiting until it is below 60")
        sysfs.zone(0, "cpu-thermal", 55)
        found = measuring.times()
    assert found.conditions["discarded_blocks"] == 1 and 0 < found.conditions["waited_s"] < 60


@pytest.mark.parametrize("counter", ["core_throttle_count", "package_throttle_count"])
def test_a_rising_counter_is_throttling(sysfs: FakeSysfs, model: bytes, quick: Timing, counter: str) -> None:
    for cpu in (0, 1):
        for name in ("core_throttle_count", "package_throttle_count"):
            sysfs.write(f"devices/system/cpu/cpu{cpu}/thermal_throttle/{name}", 7)
    file = sysfs.sys / "devices/system/cpu/cpu1/thermal_throttle" / counter
    # the script serves as a clock here: it is asked after every block
    sysfs.vcgencmd(event="model 0: block 1", action=f"echo 8 > {file}.new; mv {file}.new {file}")
    thermal = (Thermal(kind="vcgencmd"), Thermal(kind="x86_counter"))
    with board(sysfs, thermal=thermal) as device:
        found = device.time([model], quick)
    assert sysfs.happened() and found.conditions["discarded_blocks"] == 1
    assert found.latency_s.shape == (1, quick.blocks)


def test_the_profiled_runs_are_repeated_too(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    sysfs.vcgencmd(once="0x4", event="model 0: profiled runs")
    with board(sysfs, thermal=PI) as device:
        found = device.profile(model, quick)
    assert sysfs.happened() and found.times.conditions["discarded_blocks"] == 1
    assert found.kernels and all(kernel.latency_s > 0 for kernel in found.kernels)


def test_a_board_that_always_throttles_is_an_error_that_says_why(
    sysfs: FakeSysfs, model: bytes, quick: Timing
) -> None:
    sysfs.zone(0, "cpu-thermal", 82.4)
    sysfs.vcgencmd("0x50005")
    with board(sysfs, thermal=PI, max_retries=1) as device:
        with pytest.raises(LostDevice) as error:
            device.time([model], quick)
        text = str(error.value)
        assert "local: time failed (model 0: block 0)" in text
        assert "throttled in each of 2 attempts: under-voltage, throttled, at 82 degrees C" in text
        assert "heat sink" in text and "max_retries" in text
        (sysfs.root / "word").write_text("0x50000\n")
        assert device.time([model], quick).latency_s.shape == (1, quick.blocks)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core, everything is pinned to it")
def test_the_measuring_process_is_pinned(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    with board(sysfs, pin_cores=(CORE,)) as device:
        measuring = Measuring(device, model, quick.model_copy(update={"warmup_s": 0.5}))
        folder = measuring.stage("warming up")
        (child,) = [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and _folder(process) == folder
        ]
        threads = [int(task.name) for task in Path(f"/proc/{child}/task").iterdir()]
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({CORE})}
        assert measuring.times().conditions["pinned"] == [CORE]


def _folder(process: Path) -> Path | None:
    try:
        return (process / "cwd").readlink()
    except OSError:
        return None


def test_more_threads_than_cores_to_pin_are_not_pinned(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    with board(sysfs, pin_cores=(CORE,)) as device:
        found = device.time([model], quick.model_copy(update={"threads": 2})).conditions
    assert found["pinned"] is None


def test_cores_that_are_not_there_are_an_error(sysfs: FakeSysfs, model: bytes, quick: Timing) -> None:
    with board(sysfs, pin_cores=(CORE, 1000)) as device, pytest.raises(DeviceError) as error:
        device.time([model], quick)
    assert f"cannot run on the cores [{CORE}, 1000]" in str(error.value)
    assert "pin_cores" in str(error.value) and not isinstance(error.value, LostDevice)


def test_conditions_are_told_in_their_units(sysfs: FakeSysfs) -> None:
    sysfs.vcgencmd("0x50000")
    sysfs.zone(1, "PMIC-Die", 100)  # of a Jetson Nano: it says so whatever happens
    sysfs.hwmon(0, "coretemp", temp1_input=61_500)
    sysfs.hwmon(1, "nvme", temp1_input=99_000)
    for cpu, khz in enumerate((1_500_000, 600_000)):
        sysfs.write(f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", khz)
        sysfs.write(f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "ondemand")
    with board(sysfs, thermal=(Thermal(kind="hwmon", match="coretemp"),)) as device:
        found = device.conditions()["before"]
    assert found["temperature_c"] == {"thermal_zone0:cpu-thermal": 50.0, "hwmon0:coretemp:temp1": 61.5}
    assert found["clock_mhz"] == [1500.0, 600.0] and found["governor"] == "ondemand"
    assert found["firmware_clock_mhz"] == pytest.approx(1500.398464)
    assert found["throttled"] == "0x50000"


def test_a_device_that_tells_nothing_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: bytes, quick: Timing
) -> None:
    sysfs = FakeSysfs(tmp_path, monkeypatch)
    thermal = (*PI, Thermal(kind="hwmon", match="k10temp"), Thermal(kind="x86_counter"))
    cool = Cool(start_above_c=70, resume_below_c=60, wait_s=60)
    with board(sysfs, thermal=thermal, cool=cool) as device:
        found = device.time([model], quick).conditions
    assert found["before"]["temperature_c"] == {} and found["before"]["throttled"] is None
    assert (found["discarded_blocks"], found["waited_s"], found["pinned"]) == (0, 0, None)
    assert not found["throttling_watched"]


@pytest.mark.parametrize("limit_s", [None, 900.0])
def test_what_the_facts_say_is_sent_and_waiting_is_no_measuring_time(
    model: bytes, quick: Timing, limit_s: float | None
) -> None:
    asked: list[tuple[dict[str, Any], float]] = []

    class Recorder:
        def start(self) -> None: ...
        def close(self) -> None: ...
        def put(self, data: bytes, path: str) -> None: ...
        def get(self, path: str) -> bytes:
            return b""

        def request(self, message: Any, timeout_s: float) -> dict[str, Any]:
            asked.append((dict(message), timeout_s))
            return {"error": {"kind": "timeout", "message": "none"}}

    facts = Facts(
        name="x",
        description="x",
        transport="local",
        arch="host",
        pin_cores=(2, 3),
        thermal=PI,
        cool=Cool(start_above_c=70, resume_below_c=60, wait_s=45),
        max_retries=5,
        timeout_s=limit_s,
    )
    device = LocalDevice(facts, 1, Recorder(), None)
    device._hello = {"folder": "/nowhere"}
    for measure in (lambda: device.time([model], quick), lambda: device.profile(model, quick)):
        with pytest.raises(DeviceError):
            measure()
    requests = [message for message, _ in asked if message["do"] in ("time", "profile")]
    assert [message["do"] for message in requests] == ["time", "profile"]
    for request in requests:
        assert request["timeout_s"] == (limit_s or quick.timeout_s) + 45
        assert request["board"] == {
            "pin_cores": [2, 3],
            "cool": {"start_above_c": 70, "resume_below_c": 60, "wait_s": 45},
            "thermal": [{"kind": "zone", "match": "cpu-*"}, {"kind": "vcgencmd", "match": "*"}],
            "power": [],
            "max_retries": 5,
        }

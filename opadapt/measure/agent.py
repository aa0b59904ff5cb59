#!/usr/bin/env python3
"""The measuring agent: one self-contained file that runs on the board.

Needs Python >= 3.9, numpy and onnxruntime, nothing of opadapt. Speaks JSON lines: one request on stdin, one
answer on stdout: ``{"id", "do", ...}`` -> ``{"id", ...}`` or ``{"id", "error": {"kind", "message", ...}}``.

    hello                     sha256, folder, versions, cpu, ...
    conditions                temperature, governor, clock, throttling, load, versions
    time     models, timing   latency_s[model][block], order, conditions; with "energy": energy_j[model] or null
    profile  model, timing    kernels, the path of the optimised model, un-profiled times
    run      model, feeds     the path of the outputs
    forget   paths, keep      how many files were removed, those made of them included; "keep": paths that stay
    verify   path, sha256     the file ``path.part`` is whole and becomes ``path``, or is removed
    bye                       everything is removed and the agent ends

Whoever sends files puts them into ``folder``; it goes with everything in it when the agent ends. What touches
onnxruntime runs in a child process, so an illegal instruction, a segmentation fault, the memory killer or a
timeout becomes an answer that names it, and the agent lives on. The agent itself is single-threaded and needs
the standard library alone.

Started without options it ends when stdin does. A host that may lose its connection starts it with ``--token T``:
``folder`` is then ``sessions/T`` beside this file, and with ``--linger S`` the agent keeps the files S seconds
longer for a new agent of the same token, which takes them over. ``--silence S`` is for a host that sends an empty line
now and then, whatever else it says: when there was nothing for S seconds it counts as gone. ``--board-lock`` lets one
host measure at a time.

``conditions``, ``time`` and ``profile`` take "board", which says how this board is measured: see ``Board``.
"""

# ruff: noqa: B905 (the zip of Python 3.9 knows no strict)

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import fnmatch
import gc
import hashlib
import json
import math
import os
import platform
import re
import select
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

PROTOCOL = 1
PROVIDER = "CPUExecutionProvider"
PROFILED_RUNS = 100  # at most: the profile of 250 nodes is then about 15 MB of JSON
PROFILE_WARMUP = 3  # profiled runs that are not counted
HERE = Path(__file__).resolve()
SYS = Path("/sys")
BOARD_LOCK = Path("/tmp/opadapt-board.lock")  # not TMPDIR: it is one for all users
ENERGY_S = 0.5  # least duration of a block whose energy is measured
_PAUSE_S = 1.0  # after throttling where no temperature is set: doubled at every repetition
_POLL_S = 0.1  # between two looks at the temperature while the board cools down
_SAMPLE_S = 0.01  # between two readings of the power; the sensors convert once in 1 to 140 ms
_LEAD_S = 0.2  # what runs before an energy block: sensors average over the time before a reading
_FULL_BYTES = 1 << 16  # a disk with less room is full
NOT_HEAT = "PMIC-Die"  # a Jetson's zone of that type says 100 degrees whatever happens
_STAGE = Path("stage")  # in the child's folder: the mark of what it was at, which outlives a crash


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def cpu_model() -> str:
    """The CPU's model name; ARM kernels give none, the board's name takes its place."""
    fields: dict[str, str] = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    named = fields.get("model name") or _read(Path("/proc/device-tree/model")) or fields.get("hardware")
    return named or platform.processor() or platform.machine()


def _integer(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _printed(*command: str) -> str:
    """What a command prints after ``=``; nothing where it is missing or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip().partition("=")[2]
    return ""


def _zones(match: str) -> Iterator[tuple[str, int | None]]:
    """Thermal zones whose type matches, in millidegrees (kernel: Documentation/driver-api/thermal)."""
    for zone in sorted(SYS.glob("class/thermal/thermal_zone*")):
        name = _read(zone / "type")
        if name != NOT_HEAT and fnmatch.fnmatch(name, match):
            yield f"{zone.name}:{name}", _integer(zone / "temp")


def _chips(match: str) -> Iterator[tuple[str, int | None]]:
    """Sensors of the hwmon chips whose name matches, in millidegrees (Documentation/hwmon/sysfs-interface)."""
    for chip in sorted(SYS.glob("class/hwmon/hwmon*")):
        name = _read(chip / "name")
        for sensor in sorted(chip.glob("temp*_input")) if fnmatch.fnmatch(name, match) else ():
            yield f"{chip.name}:{name}:{sensor.name[: -len('_input')]}", _integer(sensor)


TEMPERATURES: dict[str, Callable[[str], Iterator[tuple[str, int | None]]]] = {"zone": _zones, "hwmon": _chips}


def temperatures(thermal: list[dict[str, Any]]) -> dict[str, float]:
    """Degrees Celsius of the sources ``{"kind", "match"}``; those that cannot be read are left out."""
    found: dict[str, float] = {}
    for source in thermal:
        if source["kind"] in TEMPERATURES:
            readings = TEMPERATURES[source["kind"]](source["match"])
            found.update({name: value / 1000 for name, value in readings if value is not None})
    return found


def _pi_flags() -> tuple[int, ...]:
    """The Raspberry Pi's word: bits 0 to 3 say what is so now, 16 to 19 what has been since it was started."""
    word = _printed("vcgencmd", "get_throttled")
    with contextlib.suppress(ValueError):
        return (int(word, 16),)
    return ()


def _pi_throttled(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """Under-voltage counts, too: the firmware answers it with a lower clock."""
    names = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
    flags = 0
    for old, new in zip(before, after):
        flags |= old | new | (new & ~old) >> 16  # a flag of the past that is new came and went meanwhile
    return ", ".join(name for bit, name in enumerate(names) if flags >> bit & 1)


def _x86_counts() -> tuple[int, ...]:
    """How often, and for how long, each core and package was throttled (intel_thermal_throttle)."""
    values = ("core_throttle_count", "package_throttle_count", "core_throttle_total_time_ms")
    folders = sorted(SYS.glob("devices/system/cpu/cpu*/thermal_throttle"))
    return tuple(_integer(folder / value) or 0 for folder in folders for value in values)


def _x86_throttled(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    return "the CPU's throttle counters rose" if any(a > b for b, a in zip(before, after)) else ""


# by the kind of thermal source: what it says now, and what two readings say about the time between them
SIGNS: dict[str, tuple[Callable[[], tuple[int, ...]], Callable[..., str]]] = {
    "vcgencmd": (_pi_flags, _pi_throttled),
    "x86_counter": (_x86_counts, _x86_throttled),
}


def _throttled() -> str | None:
    """A Raspberry Pi's word of flags, x86's counter, or None where the system tells nothing."""
    flags = _printed("vcgencmd", "get_throttled")
    counts = _x86_counts()
    return flags or (str(sum(counts[::3])) if counts else None)


def conditions(thermal: list[dict[str, Any]]) -> dict[str, Any]:
    """What may differ from one measurement to the next. What the system does not tell is None or empty."""
    clocks = map(_integer, sorted(SYS.glob("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")))
    governors = set(map(_read, SYS.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor"))) - {""}
    hertz = _printed("vcgencmd", "measure_clock", "arm")  # what the firmware made of the kernel's wish
    return {
        "temperature_c": temperatures([{"kind": "zone", "match": "*"}, *thermal]),
        "governor": ",".join(sorted(governors)) or None,
        "clock_mhz": [value / 1000 for value in clocks if value is not None],
        "firmware_clock_mhz": int(hertz) / 1e6 if hertz.isdigit() else None,
        "throttled": _throttled(),
        "load_average": _load(),
    }


def _load() -> list[float]:
    """Empty where it may not be read, as on Android."""
    with contextlib.suppress(OSError, AttributeError):
        return list(os.getloadavg())
    return []


class _Fault(Exception):
    """What an answer's error says: ``kind`` tells the host what can be done about it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


_T = TypeVar("_T")


class Board:
    """How one request is measured: pinned, cooled down, without throttling; and what that took.

    Settings, all optional: "pin_cores", "cool" {"start_above_c", "resume_below_c", "wait_s"}, "thermal" and
    "power" (lists of sources), "max_retries". ``wait_s`` bounds the waiting of the whole request; then it is
    measured as hot as it is, and the conditions say so. With more threads than ``pin_cores`` nothing is pinned.
    Raises _Fault "pinning" where these cores cannot be had.
    """

    def __init__(self, settings: dict[str, Any], threads: int) -> None:
        self.thermal = settings.get("thermal") or []
        self.cool = settings.get("cool")
        self.power = settings.get("power") or []
        self.retries = settings.get("max_retries", 0)
        self.signs = [SIGNS[source["kind"]] for source in self.thermal if source["kind"] in SIGNS]
        self.seen: list[tuple[int, ...]] | None = None
        self.watched = any(self._read())
        self.discarded, self.waited_s, self.too_hot = 0, 0.0, False
        cores = set(settings.get("pin_cores") or ())
        self.pinned = sorted(cores) if len(cores) >= threads else None
        if self.pinned:
            _pin(cores)

    def conditions(self) -> dict[str, Any]:
        return {
            "throttling_watched": self.watched,
            "discarded_blocks": self.discarded,
            "waited_s": round(self.waited_s, 1),
            "too_hot": self.too_hot,
            "pinned": self.pinned,
        }

    def steady(self, what: str, sample: Callable[[], _T], warm: Callable[[], Any] | None = None) -> _T:
        """A sample taken while nothing throttled; after a pause ``warm`` comes first, which brings the clock and
        the caches back. Raises _Fault "throttled" when every repetition was."""
        reasons = ""
        for attempt in range(self.retries + 1):
            paused = self._cool_down(attempt)
            _STAGE.write_text(what)
            if paused and warm is not None:
                warm()
            before = self.seen or self._read()
            result = sample()
            self.seen = self._read()
            reasons = self._throttled(before, self.seen)
            if not reasons:
                return result
            self.discarded += 1
            self.seen = None
        heat_c = self._heat_c()
        where = "" if heat_c is None else f", at {heat_c:.0f} degrees C"
        raise _Fault("throttled", f"throttled in each of {self.retries + 1} attempts: {reasons}{where}")

    def _read(self) -> list[tuple[int, ...]]:
        return [read() for read, _ in self.signs]

    def _throttled(self, before: list[tuple[int, ...]], after: list[tuple[int, ...]]) -> str:
        found = [judge(b, a) for (_, judge), b, a in zip(self.signs, before, after)]
        return ", ".join(filter(None, found))

    def _heat_c(self) -> float | None:
        return max(temperatures(self.thermal).values(), default=None)

    def _above(self, limit_c: float, flags: bool) -> bool:
        """Whether it is hotter than that or, with ``flags``, throttled at this moment."""
        heat_c, now = self._heat_c(), self._read() if flags else []
        return (heat_c is not None and heat_c > limit_c) or bool(self._throttled(now, now))

    def _cool_down(self, attempt: int) -> bool:
        """Wait if it is too hot; after throttling, until it is cool again and no flag stands. Says whether."""
        again = attempt > 0
        if self.cool is None:
            pause_s = _PAUSE_S * 2 ** (attempt - 1) if again else 0.0
            self.waited_s += pause_s
            time.sleep(pause_s)
            return again
        resume_c, limit_s = self.cool["resume_below_c"], self.cool["wait_s"]
        hot = self._above(resume_c if again else self.cool["start_above_c"], again)
        if not hot:
            return False
        _STAGE.write_text(f"waiting until it is below {resume_c:g} degrees C")
        self.seen, began, before_s = None, time.monotonic(), self.waited_s
        while hot and self.waited_s < limit_s:
            time.sleep(_POLL_S)
            self.waited_s = before_s + time.monotonic() - began
            hot = self._above(resume_c, again)
        self.too_hot = self.too_hot or hot
        return self.waited_s > before_s


def _pin(cores: set[int]) -> None:
    """Run this process on these cores alone, with all its threads (sched_setaffinity(2))."""
    if not hasattr(os, "sched_setaffinity"):
        raise _Fault("pinning", f"{platform.system()} does not pin to cores")
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)
    if os.sched_getaffinity(0) != cores:
        allowed = sorted(os.sched_getaffinity(0))
        raise _Fault("pinning", f"cannot run on the cores {sorted(cores)}, only on {allowed}")


class EnergyCounter:
    """The energy counter of one powercap zone, in microjoules, which starts again after its range.

    Kernel: Documentation/power/powercap. It moves about once in a millisecond.
    """

    lead_s, block_s = _LEAD_S, ENERGY_S

    def __init__(self, zone: Path) -> None:
        self.zone, self.name = zone, f"rapl {_read(zone / 'name')}"
        self.started: tuple[float, int | None] = (0.0, None)

    def works(self) -> bool:
        return _integer(self.zone / "energy_uj") is not None

    def start(self) -> None:
        self.started = time.perf_counter(), _integer(self.zone / "energy_uj")

    def stop(self) -> tuple[float | None, float]:
        """Joules and seconds since the start; no joules if the counter cannot be read or stands still."""
        ended, now_s = _integer(self.zone / "energy_uj"), time.perf_counter()
        began_s, began = self.started
        if began is None or ended is None or began == ended:
            return None, now_s - began_s
        used = ended - began
        if used < 0:
            used += _integer(self.zone / "max_energy_range_uj") or 0
        return used / 1e6 if used > 0 else None, now_s - began_s


class PowerSensor:
    """The power of one channel of a chip, read every few milliseconds while a model runs.

    ``scale``: watts of a unit of the first file that is there: one of power, or two that are multiplied, of
    current and voltage. ``update_interval`` (milliseconds) says how long the chip takes for a reading.
    """

    def __init__(self, chip: Path, channel: int, files: tuple[tuple[tuple[str, ...], float], ...]) -> None:
        self.name = f"{_read(chip / 'name')} channel {channel}"
        self.files = [([chip / name.format(channel) for name in names], scale) for names, scale in files]
        interval_s = min(_integer(chip / "update_interval") or 0, 2000) / 1000
        self.lead_s, self.block_s = max(_LEAD_S, 2 * interval_s), max(ENERGY_S, 5 * interval_s)
        self.samples: list[tuple[float, float]] = []  # seconds, watts
        self.done = threading.Event()
        self.thread: threading.Thread | None = None

    def works(self) -> bool:
        return self.watts() is not None

    def watts(self) -> float | None:
        for files, scale in self.files:
            values = [value for value in map(_integer, files) if value is not None]
            if len(values) == len(files):
                return math.prod(values) * scale
        return None

    def take(self) -> None:
        watts = self.watts()
        if watts is not None:
            self.samples.append((time.perf_counter(), watts))

    def follow(self) -> None:
        while not self.done.wait(_SAMPLE_S):
            self.take()

    def start(self) -> None:
        self.samples.clear()
        self.done.clear()
        self.take()
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def stop(self) -> tuple[float | None, float]:
        """Joules and seconds since the start, by the trapezoidal rule; no joules where there is no power."""
        self.done.set()
        if self.thread is not None:
            self.thread.join()
        self.take()
        used = 0.0
        for (t0, p0), (t1, p1) in zip(self.samples, self.samples[1:]):
            used += (t1 - t0) * (p0 + p1) / 2
        return (used, self.samples[-1][0] - self.samples[0][0]) if used > 0 else (None, 0.0)


def _rapl(source: dict[str, Any]) -> Iterator[EnergyCounter]:
    """One zone, not a sum: a package contains its cores, dies may mirror each other, and what the zones of
    intel-rapl-mmio count is counted by intel-rapl already."""
    for zone in sorted(SYS.glob("class/powercap/intel-rapl:*")):
        if fnmatch.fnmatch(_read(zone / "name"), source["match"]):
            yield EnergyCounter(zone)


def _sensors(
    chips: str, files: tuple[tuple[tuple[str, ...], float], ...]
) -> Callable[[dict[str, Any]], Iterator[PowerSensor]]:
    """Finds the channel of a source, the first one if it names none, in chips whose ``name`` matches."""

    def found(source: dict[str, Any]) -> Iterator[PowerSensor]:
        for chip in sorted(SYS.glob(chips)):
            if not fnmatch.fnmatch(_read(chip / "name"), source["match"]):
                continue
            there = [file.name for names, _ in files for file in chip.glob(names[0].format("*"))]
            numbers = sorted({int("".join(filter(str.isdigit, name))) for name in there})
            wanted = source.get("channel")
            for channel in numbers[:1] if wanted is None else [wanted]:
                yield PowerSensor(chip, channel, files)

    return found


# microwatts; milliamperes times millivolts (ina2xx: channel 1; ina3221: 1 to 3)
_hwmon = _sensors("class/hwmon/hwmon*", ((("power{}_input",), 1e-6), (("curr{}_input", "in{}_input"), 1e-6)))
# milliwatts, as the ABI's sysfs-bus-iio says; NVIDIA's kernel 4.9 for the Jetson Nano has its rails there, from 0
_iio = _sensors("bus/iio/devices/iio:device*", ((("in_power{}_input",), 1e-3),))
METERS: dict[str, Callable[[dict[str, Any]], Iterator[Any]]] = {
    "rapl": _rapl,
    "hwmon": _hwmon,
    "iio": _iio,
}


def find_meter(power: list[dict[str, Any]]) -> tuple[Any, str | None]:
    """The first of the sources that is there and gives a reading, and, if none does, why not."""
    reasons = []
    for source in power:
        reasons.append(f"{source['kind']} {source['match']}: not there")
        for meter in METERS[source["kind"]](source):
            if meter.works():
                return meter, None
            reasons[-1] = f"{meter.name}: cannot be read (by root only?)"
    return None, "; ".join(reasons) or None


def _energy(board: Board, runners: list[Any]) -> tuple[list[float] | None, dict[str, Any]]:
    """Joules per inference of each model, all that the source supplies included (the idle board, too), and
    what was measured. None without a source: nothing is estimated."""
    meter, missing = find_meter(board.power)
    if meter is None:
        return None, {"power_source": None, **({"power_missing": missing} if missing else {})}

    found = [
        board.steady(f"model {number}: energy", partial(_energy_block, meter, run))
        for number, run in enumerate(runners)
    ]
    energy_j = [used / runs for used, _, runs in found if used is not None]
    if len(energy_j) < len(runners):
        return None, {"power_source": None, "power_missing": f"{meter.name}: reads nothing"}
    facts = {"seconds": [seconds for _, seconds, _ in found], "runs": [runs for _, _, runs in found]}
    return energy_j, {"power_source": meter.name, "energy": facts}


def _energy_block(meter: Any, run: Any) -> tuple[float | None, float, int]:
    """Joules, seconds and number of consecutive runs."""
    _block(run, meter.lead_s, 1)
    meter.start()  # which takes a while itself: the block is what follows
    runs, began = 0, time.perf_counter()
    while not runs or time.perf_counter() - began < meter.block_s:
        run()
        runs += 1
    used, seconds = meter.stop()
    return used, seconds, runs


def _session(path: str, threads: int, profile: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path.cwd() / "profile")
        options.optimized_model_filepath = f"{path}.optimized"
    return ort.InferenceSession(path, options, providers=[PROVIDER])


def _inputs(session: Any, seed: int) -> dict[str, Any]:
    """Normal numbers for floats, zeros for all else (an index of zero is in range everywhere)."""
    import numpy as np

    names = {"tensor(float)": "float32", "tensor(double)": "float64"}
    feeds = {}
    for number, wanted in enumerate(session.get_inputs()):
        if not all(isinstance(dim, int) and dim > 0 for dim in wanted.shape):
            raise ValueError(f"input '{wanted.name}' has the free shape {wanted.shape}: pin it")
        dtype = np.dtype(names.get(wanted.type) or wanted.type[len("tensor(") : -1])
        feeds[wanted.name] = np.zeros(wanted.shape, dtype)
        if dtype.kind == "f":
            normal = np.random.default_rng([seed, number]).standard_normal(wanted.shape)
            feeds[wanted.name] = normal.astype(dtype)
    return feeds


def _runner(session: Any, seed: int) -> Any:
    """What runs the session once; bound beforehand, to keep Python's part out of the time."""
    binding = session.io_binding()
    for name, value in _inputs(session, seed).items():
        binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _block(run: Any, min_s: float, min_runs: int) -> list[int]:
    """Times [ns] of consecutive runs, for at least ``min_s`` seconds and ``min_runs`` runs."""
    clock = time.perf_counter_ns
    times: list[int] = []
    run()  # the block before may have evicted the caches: that is another question
    now = clock()
    end = now + int(min_s * 1e9)
    while now < end or len(times) < min_runs:
        before = now
        run()
        now = clock()
        times.append(now - before)
    return times


def block_order(models: int, blocks: int) -> list[int]:
    """Which model each block runs: A B B A, B A A B, ...; more models: rounds mirrored in pairs, rotated."""
    order: list[int] = []
    for turn in range(blocks):
        rotated = [(turn // 2 + i) % models for i in range(models)]
        order.extend(reversed(rotated) if turn % 2 else rotated)
    return order


def _do_hello(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _do_conditions(request: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime as ort

    fixed = {"cpu": cpu_model(), "machine": platform.machine(), "onnxruntime": ort.__version__}
    now = conditions((request.get("board") or {}).get("thermal") or [])
    return {**fixed, "provider": PROVIDER, "threads": request["threads"], "before": now}


def _do_time(request: dict[str, Any]) -> dict[str, Any]:
    board = Board(request.get("board") or {}, request["timing"]["threads"])
    return _timed(request, request["models"], board)


def _timed(request: dict[str, Any], models: list[str], board: Board) -> dict[str, Any]:
    timing = request["timing"]
    found = _do_conditions({"threads": timing["threads"], "board": request.get("board")})
    runners = []
    for number, path in enumerate(models):
        _STAGE.write_text(f"model {number}: making the session")
        runners.append(_runner(_session(path, timing["threads"]), timing["seed"]))
        _STAGE.write_text(f"model {number}: warming up")
        _block(runners[number], timing["warmup_s"], 1)
    order = block_order(len(runners), timing["blocks"])
    latency_s: list[list[float]] = [[] for _ in runners]
    gc.collect()
    gc.disable()
    for number in order:
        times = board.steady(
            f"model {number}: block {len(latency_s[number])}",
            partial(_block, runners[number], timing["min_block_s"], timing["min_runs"]),
            partial(_block, runners[number], timing["warmup_s"], 1),
        )
        latency_s[number].append(statistics.median(times) / 1e9)
    after = conditions(board.thermal)
    energy_j, power = _energy(board, runners) if request.get("energy") else (None, {})
    gc.enable()
    found = {**found, "after": after, **board.conditions(), **power}
    return {"latency_s": latency_s, "order": order, "energy_j": energy_j, "conditions": found}


def _kernels(path: str) -> list[dict[str, Any]]:
    """Per node of the optimised model the interquartile mean of its times, which are whole microseconds."""
    suffix = "_kernel_time"
    found: dict[Any, list[int]] = {}
    for event in json.loads(Path(path).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            key = (event["name"], event["args"].get("op_name"), event["args"].get("node_index"))
            found.setdefault(key, []).append(event["dur"])
    kernels = []
    for (event_name, op_type, _), durations in found.items():
        name = event_name[: -len(suffix)]
        counted = sorted(durations[PROFILE_WARMUP:])
        middle = counted[len(counted) // 4 : len(counted) - len(counted) // 4]
        kernels.append({"name": name, "op_type": op_type, "latency_s": statistics.mean(middle) / 1e6})
    return kernels


def _do_profile(request: dict[str, Any]) -> dict[str, Any]:
    timing, path = request["timing"], request["model"]
    board = Board(request.get("board") or {}, timing["threads"])
    times = _timed(request, [path], board)
    kernels = board.steady("model 0: profiled runs", partial(_profiled, path, timing))
    times["conditions"].update(board.conditions())
    return {"kernels": kernels, "optimized": f"{path}.optimized", "times": times}


def _profiled(path: str, timing: dict[str, Any]) -> list[dict[str, Any]]:
    session = _session(path, timing["threads"], profile=True)
    run = _runner(session, timing["seed"])
    end = time.perf_counter() + timing["profile_s"]
    for number in range(PROFILE_WARMUP + max(PROFILED_RUNS, timing["min_runs"])):
        run()
        if number >= PROFILE_WARMUP + timing["min_runs"] and time.perf_counter() > end:
            break
    return _kernels(session.end_profiling())


def _do_run(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    with np.load(request["feeds"], allow_pickle=False) as arrays:
        feeds = {name: arrays[f"a{i}"] for i, name in enumerate(request["names"])}
    _STAGE.write_text("model 0: making the session")
    session = _session(request["model"], request["threads"])
    _STAGE.write_text("model 0: running")
    outputs = session.run(None, feeds)
    path = request["model"] + ".outputs.npz"
    arrays = {f"a{i}": np.asarray(value) for i, value in enumerate(outputs)}
    np.savez(path, allow_pickle=False, **arrays)
    return {"outputs": path, "names": [output.name for output in session.get_outputs()]}


_NAMES = {"hello": _do_hello, "conditions": _do_conditions}
ACTIONS = {**_NAMES, "time": _do_time, "profile": _do_profile, "run": _do_run}


def _kind(error: Exception) -> str:
    """What kind of trouble an exception is; onnxruntime's own tell it in their text, or, of a full disk, not at all
    ("Protobuf serialization failed"): its working directory tells."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "space"
    with contextlib.suppress(OSError):
        if shutil.disk_usage(".").free < _FULL_BYTES:
            return "space"
    return "memory" if isinstance(error, MemoryError) or "alloc" in str(error) else "exception"


def child() -> None:
    """Serve one request in the working directory; the answer goes where stdout was at the start."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it also leaves files in ~/.cache (its Privacy.md)
    with contextlib.suppress(OSError):  # where memory runs out, this process is to go, not the agent
        Path("/proc/self/oom_score_adj").write_text("1000")
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what libraries print belongs to the log
        request = json.loads(sys.stdin.readline())
        # reading ends when the agent's end of the pipe is gone, however it went
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
        try:
            result = ACTIONS[request["do"]](request)
        except Exception as error:
            result = {"error": {"kind": _kind(error), "message": f"{type(error).__name__}: {error}"}}
            if isinstance(error, _Fault):
                result = {"error": {"kind": error.kind, "message": str(error)}}
        json.dump(result, answer)
    os._exit(0)  # a finished child does not wait for its watching thread


class _Closed(Exception):
    """stdin is at its end: nobody is there any more, or the connection is broken."""


class _Asked(Exception):
    """The host, or a signal, asked the agent to go."""


class _Bye(_Asked):
    """So did the host, in the middle of work: it still waits for the answer."""


class _Taken(Exception):
    """Another agent has the session now."""


def _says_bye(lines: bytes) -> bool:
    with contextlib.suppress(ValueError, AttributeError):
        return b"\n" in lines and bool(json.loads(lines.partition(b"\n")[0]).get("do") == "bye")
    return False


def _how_it_ended(code: int, log: str) -> dict[str, Any]:
    """The error of a child that ended without an answer."""
    if code >= 0:
        return {"kind": "exit", "message": f"ended with exit code {code}", "log": log}
    name = {s.value: s.name for s in signal.Signals}.get(-code, f"signal {-code}")
    note = {"SIGKILL": ": out of memory?", "SIGILL": ": an instruction this CPU lacks"}.get(name, "")
    return {"kind": "signal", "signal": name, "message": f"killed by {name}{note}", "log": log}


_HASH = re.compile(r"[0-9a-f]{64}")
_HELD = "held"  # in a session's folder: locked by its agent, whose process id is in it
_PATIENCE_S = 10.0  # for the agent before to let go of the session
_STALE_S = 600.0  # the age at which a file beside this one is nobody's any more, unless it runs


def _lock(path: Path) -> int | None:
    """An exclusive flock(2) on the file, made if need be; None if it is held, or the file is no longer there: removed,
    or moved away with its folder."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):  # else it was swept away before it was locked
            return file
    os.close(file)
    return None


def _take_session(folder: Path) -> int:
    """The lock of the session, taken from the agent that still has it. Raises OSError."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _lock(folder / _HELD)
        if file is not None:
            try:
                os.ftruncate(file, 0)
                os.write(file, str(os.getpid()).encode())
            except OSError as problem:  # a full disk: nothing is to stay of the attempt
                _discard(folder)
                raise OSError(problem.errno, problem.strerror, str(folder)) from problem
            return file
        late = time.monotonic() > deadline
        if late and time.monotonic() > 2 * _PATIENCE_S + deadline:
            raise OSError(errno.EBUSY, "another agent keeps the session", str(folder))
        _tell_to_go(folder, signal.SIGKILL if late else signal.SIGUSR1)
        time.sleep(0.05)


def _tell_to_go(folder: Path, number: int) -> None:
    """Signal the process that ``held`` names, if it is an agent of this session."""
    pid = _read(folder / _HELD)
    if pid.isdigit() and f"\0{folder.name}\0" in _read(Path("/proc", pid, "cmdline")) + "\0":
        with contextlib.suppress(OSError):
            os.kill(int(pid), number)


def _tidy(folder: Path) -> dict[str, int]:
    """Remove what an agent before left unfinished; the sizes of the whole files that it had."""
    whole = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif _HASH.fullmatch(entry.name):
            whole[entry.name] = entry.stat().st_size
        elif entry.name != _HELD and not (entry.suffix == ".part" and _HASH.fullmatch(entry.stem)):
            entry.unlink()
    return whole


def _discard(folder: Path) -> None:
    """Remove a session that this process has locked. Under another name, since an agent that is started for it in the
    meantime is to find all of its files or none."""
    with contextlib.suppress(OSError):
        folder = folder.rename(folder.with_name(f"{folder.name}.{os.getpid()}"))
    shutil.rmtree(folder, ignore_errors=True)


def _sweep(sessions: Path, mine: Path) -> None:
    """Remove the sessions of agents that were killed, uploads of this file that were broken off, and other versions
    of it that no process runs."""
    with contextlib.suppress(OSError):
        for folder in sessions.iterdir():
            file = _lock(folder / _HELD) if folder != mine else None
            if file is not None:
                _discard(folder)
                os.close(file)
        for other in sessions.parent.glob("agent-*"):
            if other != HERE and time.time() - other.stat().st_mtime > _STALE_S and not _is_run(other.name):
                other.unlink()


def _is_run(name: str) -> bool:
    """Whether a process has a file of that name on its command line."""
    return any(name in _read(line) for line in Path("/proc").glob("[0-9]*/cmdline"))


def lock_place(shared: Path = BOARD_LOCK) -> Path:
    """Where a board's lock lies: beside this file on Android, which has no /tmp, and each app for a user."""
    return shared if shared.parent.is_dir() else HERE.with_name("board.lock")


class BoardLock:
    """One host measures on a board at a time: flock(2), which the kernel takes back when its holder dies.

    Any user may lock a file that they may read; who has it is written in it where that is allowed.
    """

    def __init__(self, path: Path, who: str) -> None:
        self.path, self.who = path, who
        self.file: int | None = None

    def take(self) -> str | None:
        """None if this agent has the lock now, or else who has it. Raises OSError where it cannot be opened."""
        if self.file is not None:
            return None
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder(file)
            os.close(file)
            return holder
        self.file = file
        self._describe({"who": self.who, "since": time.time(), "pid": os.getpid()})
        return None

    def release(self) -> None:
        if self.file is not None:
            self._describe(None)
            os.close(self.file)
            self.file = None

    def _open(self) -> int:
        file = self._opened()
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "not a regular file, so nobody can lock the board", str(self.path))
        with contextlib.suppress(OSError):
            os.fchmod(file, 0o644)  # whatever the umask: others are to lock it, too
        return file

    def _opened(self) -> int:
        common = (
            os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )  # the opening of a fifo would wait for its other end
        for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT):
            with contextlib.suppress(OSError):
                return os.open(self.path, flags | common, 0o644)
        return os.open(self.path, os.O_RDONLY | common)  # another user's

    def _describe(self, what: dict[str, Any] | None) -> None:
        assert self.file is not None
        with contextlib.suppress(OSError):  # another user's file
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, json.dumps(what).encode() if what else b"", 0)

    def _holder(self, file: int) -> str:
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            told = json.loads(os.pread(file, 4096, 0))
            since, ago_s = time.localtime(told["since"]), time.time() - told["since"]
            if Path("/proc", str(told["pid"])).exists():
                when = f"{time.strftime('%Y-%m-%d %H:%M:%S', since)} by its clock, {ago_s:.0f} s ago"
                return f"{told['who']}, since {when} (process {told['pid']} there)"
        return "another user of the board"


class Agent:
    """Reads requests, starts a child for each that measures, answers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.linger_s: float = options.linger
        self.silence_s: float | None = options.silence
        self.heard = time.monotonic()
        self.lock = BoardLock(options.board_lock, options.who) if options.board_lock else None
        self.files: dict[str, int] = {}
        self.held: int | None = None
        self.removed = False
        if options.token is None:
            self.folder = Path(tempfile.mkdtemp(prefix="opadapt-agent-")).resolve()
        else:
            sessions = HERE.parent / "sessions"
            self.folder = sessions / options.token
            self.held = _take_session(self.folder)
            self.files = _tidy(self.folder)
            _sweep(sessions, self.folder)
        self.sha256 = hashlib.sha256(HERE.read_bytes()).hexdigest()
        self.buffer = b""

    def take_input(self) -> None:
        """Read what there is on stdin. Raises _Closed at its end."""
        data = os.read(0, 1 << 16)
        if not data:
            raise _Closed
        self.buffer = (self.buffer + data).lstrip(b"\n")  # empty lines only show that somebody is there

    def readable(self, *pipes: int, limit_s: float | None = None) -> list[int]:
        """Which of stdin and these can be read now, or within the limit. Raises _Closed when the host is silent for
        too long."""
        silence_s = None if self.silence_s is None else self.heard + self.silence_s - time.monotonic()
        limits = [max(0.0, limit) for limit in (limit_s, silence_s) if limit is not None]
        ready = select.select([0, *pipes], [], [], min(limits, default=None))[0]
        if 0 in ready:
            self.heard = time.monotonic()
        elif self.silence_s is not None and time.monotonic() >= self.heard + self.silence_s:
            raise _Closed
        return ready

    def collect(self, pipe: int, limit_s: float) -> bytes | None:
        """The child's output up to its end, None after the time limit. Watches stdin, whose end ends all."""
        output, deadline = b"", time.monotonic() + limit_s
        while True:
            left = deadline - time.monotonic()
            ready = self.readable(pipe, limit_s=left)
            if 0 in ready:
                self.take_input()
                if _says_bye(self.buffer):
                    raise _Bye  # nobody waits for the child any more
            if pipe in ready:
                data = os.read(pipe, 1 << 16)
                if not data:
                    return output
                output += data
            elif left <= 0:
                return None

    def in_child(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one request in a child process and say how it went."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        limit_s = float(request.get("timeout_s", 600))
        command, pipe = [sys.executable, str(HERE), "--child", "--sysfs", str(SYS)], subprocess.PIPE
        with (folder / "log").open("wb") as log:
            # a session of its own, so that it can be killed with whatever it started
            options: dict[str, Any] = {"stderr": log, "cwd": folder, "start_new_session": True}
            process: Any = subprocess.Popen(command, stdin=pipe, stdout=pipe, **options)
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            output = self.collect(process.stdout.fileno(), limit_s)
            if output is None:
                error = {"kind": "timeout", "message": f"no result within {limit_s:g} s"}
            elif process.wait() != 0:
                error = _how_it_ended(process.returncode, _read(folder / "log")[-2000:])
            else:
                result: dict[str, Any] = json.loads(output)
                if "error" not in result:
                    return result
                error = result["error"]
            return {"error": {**error, "stage": _read(folder / "stage")}}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)

    def answer(self, line: bytes) -> dict[str, Any]:
        request: dict[str, Any] = {}
        try:
            request = dict(json.loads(line))
            if request["do"] in ACTIONS:
                result = self.locked() or self.in_child(request)
            elif request["do"] in OWN:
                result = OWN[request["do"]](self, request)
            else:
                raise ValueError(f"no such request: {request['do']}")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            result = {"error": {"kind": "request", "message": f"{type(problem).__name__}: {problem}"}}
        except OSError as problem:
            result = {"error": {"kind": _kind(problem), "message": f"{type(problem).__name__}: {problem}"}}
        if request.get("do") == "hello":  # known even where onnxruntime cannot be imported
            own = {"protocol": PROTOCOL, "sha256": self.sha256, "pid": os.getpid()}
            result.update(own, folder=str(self.folder), files=self.files)
        return {**result, "id": request.get("id")}

    def locked(self) -> dict[str, Any] | None:
        """The answer to a request that has to wait for another host, None if there is none."""
        holder = self.lock.take() if self.lock else None
        return {"error": {"kind": "locked", "message": holder}} if holder else None

    def forget(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove files of the folder, and those made of them (path.*)."""
        roots, kept = tuple(f"{path}." for path in request["paths"]), request.get("keep", ())
        files = [f for f in self.folder.iterdir() if f"{f}.".startswith(roots) and str(f) not in kept]
        for file in files:
            file.unlink()
        return {"removed": len(files)}

    def verify(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give an upload its name, if it is what was sent."""
        path = Path(request["path"])
        part = path.with_name(path.name + ".part")
        if path.parent != self.folder:
            raise ValueError(f"not a file of {self.folder}: {path}")
        digest = hashlib.sha256()
        with part.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != request["sha256"]:
            part.unlink()
            return {"error": {"kind": "corrupt", "message": f"{path.name}: arrived as {digest.hexdigest()}"}}
        part.replace(path)
        return {"verified": True}

    def bye(self, request: dict[str, Any]) -> dict[str, Any]:
        self.remove()
        return {"gone": True}

    def serve(self) -> None:
        """Answer until the end; then leave nothing behind, except to a host that may come back."""
        try:
            try:
                self.answer_all()
            except (_Closed, BrokenPipeError):
                self.linger()
            except _Bye:
                self.answer_next()
        except (_Asked, BrokenPipeError):
            pass
        except _Taken:
            return
        _when_told(signal.SIG_IGN)  # tidying up is not to be disturbed
        self.remove()

    def answer_all(self) -> None:
        while True:
            self.answer_next()

    def answer_next(self) -> None:
        while b"\n" not in self.buffer:
            if self.readable():
                self.take_input()
        line, _, rest = self.buffer.partition(b"\n")
        self.buffer = rest.lstrip(b"\n")
        answer = self.answer(line)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        if answer.get("gone"):
            raise _Asked

    def linger(self) -> None:
        """Keep the files for a while; nothing runs, and the board is free."""
        if self.lock:
            self.lock.release()
        if self.linger_s:
            with Path(os.devnull).open("r+b") as nowhere:
                for number in range(3):  # the connection's end is not to wait for this process
                    os.dup2(nowhere.fileno(), number)
            _when_told(_go)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            time.sleep(self.linger_s)

    def remove(self) -> None:
        """May be called twice: a folder of that name is then another agent's."""
        if not self.removed:
            self.removed = True
            if self.held is None:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                _discard(self.folder)
        if self.lock:
            self.lock.release()


# what the agent does itself, without a child
OWN = {"forget": Agent.forget, "verify": Agent.verify, "bye": Agent.bye}


def _take_sysfs(arguments: list[str]) -> list[str]:
    """The arguments without ``--sysfs DIR``, which stands in for /sys (for tests)."""
    global SYS
    if "--sysfs" not in arguments:
        return arguments
    at = arguments.index("--sysfs")
    SYS = Path(arguments[at + 1])
    return arguments[:at] + arguments[at + 2 :]


def _go(number: int, frame: Any) -> None:
    _when_told(signal.SIG_IGN)  # tidying up is not to be disturbed
    raise {signal.SIGHUP: _Closed, signal.SIGUSR1: _Taken}.get(signal.Signals(number), _Asked)


def _when_told(handler: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, handler)


def main() -> None:
    arguments = _take_sysfs(sys.argv[1:])
    if arguments == ["--child"]:
        child()
    parser = argparse.ArgumentParser(description="The measuring agent of opadapt: speaks JSON lines.")
    parser.add_argument("--token", help="name of the session, whose files outlive a broken connection")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds that they do")
    parser.add_argument("--silence", type=float, help="seconds without a line after which the host is gone")
    parser.add_argument("--board-lock", type=Path, nargs="?", const=lock_place(), help="measure alone there")
    parser.add_argument("--who", default="somebody", help="what others are told about who has the lock")
    options = parser.parse_args(arguments)
    _when_told(_go)
    try:
        agent = Agent(options)
    except OSError as problem:
        sys.exit(f"{problem.strerror or problem}: {problem.filename}")
    except (_Closed, _Asked, _Taken):
        return
    agent.serve()


if __name__ == "__main__":
    main()

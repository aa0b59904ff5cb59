"""A board as it describes itself: the probe's lines as numbers with units. None: the board does not tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from opadapt.measure.agent import NOT_HEAT
from opadapt.measure.check.probe import Told
from opadapt.measure.facts import Caches, Facts, Thermal

CPU = "/sys/devices/system/cpu"
_PROCESSOR_ZONES = ("*cpu*", "*CPU*", "x86_pkg_temp", "soc*", "bcm2*_thermal")
_PROCESSOR_HWMON = ("coretemp", "k10temp", "cpu_thermal")


@dataclass(frozen=True)
class Interpreter:
    """A Python of the board. ``failure``: why numpy and onnxruntime cannot be imported there, None if they can."""

    path: str
    version: tuple[int, ...]
    bits: int
    has: frozenset[str]  # which of venv, ensurepip, zlib
    numpy: str | None = None
    onnxruntime: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Cpu:
    """One core: clocks in MHz; ``capacity``: its speed against the fastest core's 1024."""

    number: int
    governor: str | None = None
    governors: tuple[str, ...] = ()  # those it could have
    clock_mhz: float | None = None
    limit_mhz: float | None = None
    max_mhz: float | None = None
    capacity: int | None = None


@dataclass(frozen=True)
class Sensor:
    """A thermal zone (``zone``: its type) or a hwmon chip (``hwmon``: its name), in degrees Celsius."""

    kind: Literal["zone", "hwmon"]
    name: str
    value_c: float


@dataclass(frozen=True)
class Board:
    """Everything that ``check`` judges and ``init`` writes down. Sizes in bytes."""

    machine: str
    system: str
    os: str | None
    model: str | None
    user: str
    home: str
    cache: str  # where opadapt keeps things there
    bits: int | None  # of the programs: 32 on a 64-bit kernel with a 32-bit system
    glibc: tuple[int, int] | None
    cores: int | None
    online: tuple[int, ...]  # numbers of these cores; empty: not told
    extensions: tuple[str, ...]
    cpus: tuple[Cpu, ...]
    caches: Caches | None
    shared_l2: int  # cores that share the second level; 0: not told
    memory_bytes: int | None
    memory_free_bytes: int | None
    disk_free_bytes: int | None
    cache_writable: bool
    load: float | None  # average of the last minute
    sensors: tuple[Sensor, ...]
    throttled: int | None  # the Raspberry Pi's word of flags
    throttled_error: str | None  # what vcgencmd said instead
    throttle_count: int | None  # the x86 counter, summed over the cores
    power: tuple[tuple[str, str], ...]  # (kind, name) of what measures power: hwmon or rapl
    base: Interpreter | None
    venv: Interpreter | None

    @property
    def python(self) -> Interpreter | None:
        """The interpreter that measures: the one that ``--install`` set up, or else the board's own."""
        return self.venv or self.base

    def at_home(self, path: str) -> str:
        """A path as the user writes it: ``~`` for the home folder."""
        return f"~{path.removeprefix(self.home)}" if self.home and path.startswith(f"{self.home}/") else path

    def temperature_c(self, thermal: tuple[Thermal, ...]) -> float | None:
        """The hottest of the sensors that the facts name; where none of those is there, of the processor's,
        or else of all."""
        named = [
            s for s in self.sensors for t in thermal if t.kind == s.kind and fnmatchcase(s.name, t.match)
        ]
        for sensors in (named, self.processor_sensors, self.sensors):
            if sensors:
                return max(sensor.value_c for sensor in sensors)
        return None

    @property
    def processor_sensors(self) -> tuple[Sensor, ...]:
        """Sensors whose name says that they are the processor's."""
        names = {"zone": _PROCESSOR_ZONES, "hwmon": _PROCESSOR_HWMON}
        return tuple(s for s in self.sensors if any(fnmatchcase(s.name, name) for name in names[s.kind]))


def board_of(told: Told) -> Board:
    """Make sense of the probe's answer."""
    cpus = tuple(_cpus(told.files))
    online = _numbers(told.files.get(f"{CPU}/online", ""))
    caches, shared_l2 = _caches(told.files)
    memory = dict(_memory(told.lines.get("memory", ())))
    disk = (told.line("disk") or "").split()
    counts = [
        int(v) for path, v in told.files.items() if path.endswith("/core_throttle_count") and v.isdigit()
    ]
    flags = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", told.line("vcgencmd") or "")
    libc = re.fullmatch(r"glibc (\d+)\.(\d+).*", told.line("libc") or "")
    load = (told.files.get("/proc/loadavg") or "").split()
    return Board(
        machine=told.line("machine") or "unknown",
        system=told.line("system") or "unknown",
        os=told.line("os") or None,
        model=told.line("model") or _cpuinfo(told, "model name") or _cpuinfo(told, "Hardware"),
        user=told.line("user") or "",
        home=told.line("home") or "",
        cache=told.line("cache") or "",
        bits=_int(told.line("bits")),
        glibc=(int(libc[1]), int(libc[2])) if libc else None,
        cores=len(online) or _int(told.line("cores")),
        online=online,
        extensions=tuple((_cpuinfo(told, "Features") or _cpuinfo(told, "flags") or "").split()),
        cpus=cpus,
        caches=caches,
        shared_l2=shared_l2,
        memory_bytes=memory.get("MemTotal"),
        memory_free_bytes=memory.get("MemAvailable"),
        disk_free_bytes=int(disk[3]) * 1024 if len(disk) > 4 and disk[3].isdigit() else None,
        cache_writable=told.line("readonly") is None,
        load=_float(load[0]) if load else None,
        sensors=tuple(_sensors(told.files)),
        throttled=int(flags[1], 16) if flags else None,
        throttled_error=None if flags else told.line("vcgencmd") or None,
        throttle_count=sum(counts) if counts else None,
        power=tuple(_power(told.files)),
        base=_interpreter(told, "base"),
        venv=_interpreter(told, "venv"),
    )


def wheel_platforms(board: Board, facts: Facts | None = None) -> tuple[str, ...]:
    """Tags of wheels that run there: those of the facts, or else all, without those for a newer glibc."""
    if board.glibc is None:
        return ()
    major, minor = board.glibc
    machine = board.machine
    every = [f"manylinux_{major}_{i}_{machine}" for i in range(minor, 16, -1)] + [f"manylinux2014_{machine}"]
    named = facts.wheel_platforms if facts is not None else ()
    return tuple(tag for tag in named or every if _glibc_of(tag) <= board.glibc)


def _glibc_of(tag: str) -> tuple[int, int]:
    match = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cpuinfo(told: Told, key: str) -> str | None:
    for line in told.lines.get("cpuinfo", ()):
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """``"0-2,6"`` -> 0, 1, 2, 6."""
    ends = [part.split("-") for part in text.split(",") if part]
    if not all(number.isdigit() for end in ends for number in end):
        return ()
    return tuple(number for end in ends for number in range(int(end[0]), int(end[-1]) + 1))


def _memory(lines: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for line in lines:
        if match := re.fullmatch(r"(Mem\w+):\s+(\d+) kB", line):
            yield match[1], int(match[2]) * 1024


def _cpus(files: Mapping[str, str]) -> Iterator[Cpu]:
    numbers = {int(match[1]) for path in files if (match := re.match(rf"{CPU}/cpu(\d+)/", path))}
    for number in sorted(numbers):

        def told(name: str, at: str = f"{CPU}/cpu{number}") -> str | None:
            return files.get(f"{at}/{name}")

        def mhz(name: str, at: str = f"{CPU}/cpu{number}") -> float | None:
            khz = _int(files.get(f"{at}/cpufreq/{name}"))
            return None if khz is None else khz / 1000

        yield Cpu(
            number,
            told("cpufreq/scaling_governor"),
            tuple((told("cpufreq/scaling_available_governors") or "").split()),
            mhz("scaling_cur_freq"),
            mhz("scaling_max_freq"),
            mhz("cpuinfo_max_freq"),
            _int(told("cpu_capacity")),
        )


def _caches(files: Mapping[str, str]) -> tuple[Caches | None, int]:
    sizes: dict[str, int] = {}
    shared = 0
    names = {"1Data": "l1d_kib", "1Instruction": "l1i_kib", "2Unified": "l2_kib", "3Unified": "l3_kib"}
    for path in files:
        if not (path.startswith(f"{CPU}/cpu0/cache/") and path.endswith("/level")):
            continue
        folder = path.removesuffix("/level")
        name = names.get(files[path] + files.get(f"{folder}/type", ""))
        size = re.fullmatch(r"(\d+)([KM])", files.get(f"{folder}/size", ""))
        if name and size and int(size[1]):
            sizes[name] = int(size[1]) * (1024 if size[2] == "M" else 1)
            if name == "l2_kib":
                shared = len(_numbers(files.get(f"{folder}/shared_cpu_list", "")))
    return (Caches(**sizes) if sizes else None), shared


def _sensors(files: Mapping[str, str]) -> Iterator[Sensor]:
    for path, value in files.items():
        folder, _, name = path.rpartition("/")
        if not value.lstrip("-").isdigit():
            continue
        if name == "temp" and "/thermal_zone" in folder:
            kind = files.get(f"{folder}/type", folder.rpartition("/")[2])
            if kind != NOT_HEAT:
                yield Sensor("zone", kind, int(value) / 1000)
        elif re.fullmatch(r"temp\d+_input", name):
            yield Sensor("hwmon", files.get(f"{folder}/name", ""), int(value) / 1000)


def _power(files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Chips that give a power, or a current with a voltage; readable RAPL packages."""
    for path, name in files.items():
        folder, _, last = path.rpartition("/")
        if last != "name":
            continue
        inputs = {file.rpartition("/")[2] for file in files if file.rpartition("/")[0] == folder}
        watts = {i for i in inputs if re.fullmatch(r"power\d+_input", i)}
        amperes = {i for i in inputs if re.fullmatch(r"curr\d+_input", i)}
        volts = {i for i in inputs if re.fullmatch(r"in\d+_input", i)}
        if "/hwmon/" in path and (watts or (amperes and volts)):
            yield "hwmon", name
        elif "/powercap/" in path and "energy_uj" in inputs and name.startswith("package-"):
            yield "rapl", name


_SIGNALS = {4: "SIGILL: an instruction this CPU lacks", 9: "SIGKILL: out of memory?", 11: "SIGSEGV"}


def _interpreter(told: Told, label: str) -> Interpreter | None:
    """None where the interpreter is absent; one that does not even start is there, with version ()."""
    code = _int(told.line(f"{label}.exit"))
    if code is None:
        return None
    failure = told.line(f"{label}.error") or f"exit code {code}"
    if code > 128:
        failure = f"killed by {_SIGNALS.get(code - 128, f'signal {code - 128}')}"
    version = (told.line(f"{label}.version") or "").split(".")
    return Interpreter(
        told.line(f"{label}.executable") or label,
        tuple(int(part) for part in version if part.isdigit()),
        _int(told.line(f"{label}.bits")) or 0,
        frozenset(told.lines.get(f"{label}.has", ())),
        told.line(f"{label}.numpy"),
        told.line(f"{label}.onnxruntime") or told.line(f"{label}.onnxruntime-gpu"),
        None if told.line(f"{label}.imports") == "yes" else failure,
    )

"""Is a board fit to measure on? One finding per item, each with a verdict and, unless it is ok, a remedy.

``bad``: measuring there fails, or its results would be wrong. ``warn``: it works, less precisely or for longer.
What a board does not tell counts as ok and says so. (Not called ``inspect``: the agent is started by its path, so
this folder hides modules of the standard library from it.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from opadapt.measure.board import Board
from opadapt.measure.facts import Facts

Verdict = Literal["ok", "warn", "bad"]
SILENT = "the system does not tell"
PYTHONS = ((3, 9), (3, 13))  # oldest and newest that the agent is made for
MANYLINUX = (2, 27)  # glibc that the wheels of onnxruntime ask for
GB, MB = 1e9, 1e6
MEMORY_NEEDED, MEMORY_WANTED = 150 * MB, 400 * MB  # a session of a small model, with Python and onnxruntime
DISK_NEEDED, DISK_WANTED = (
    50 * MB,
    500 * MB,
)  # models, outputs and profiles of a session; 256 MB of them are kept
HOT_C = 75.0  # where the facts name no limit; boards throttle from 80 degrees on
BUSY = 0.5  # processes that want a core, on average


@dataclass(frozen=True)
class Finding:
    """``remedy``: what to do, as a sentence. ``command``: the command that does it, on the board if it says so."""

    item: str
    verdict: Verdict
    found: str
    remedy: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Case:
    """What a check looks at. ``address``: how the user names the board; ``here``: it is this machine."""

    board: Board
    facts: Facts
    address: str = ""
    here: bool = False

    def where(self, command: str) -> str:
        """What to do about a command that has to be given on the board."""
        return command if self.here else f"on the board, {command}"


def judge(case: Case) -> list[Finding]:
    """All findings, in the order of ``CHECKS``."""
    return [check(case) for check in CHECKS.values()]


def _system(case: Case) -> Finding:
    board = case.board
    libc = "glibc {}.{}".format(*board.glibc) if board.glibc else "no glibc"
    found = f"{board.os or 'unknown system'}, {board.system}, {libc}"
    if board.machine == "aarch64" and board.bits == 32:
        remedy = "install the 64-bit image: there are no 32-bit wheels of onnxruntime"
        return Finding("system", "bad", f"{found}, 32-bit programs on a 64-bit kernel", remedy)
    works = board.python is not None and board.python.failure is None
    if works or case.here or (board.glibc and board.glibc >= MANYLINUX):
        return Finding("system", "ok", found)
    remedy = (
        f"onnxruntime needs glibc {MANYLINUX[0]}.{MANYLINUX[1]}: install a newer system, or build it there"
    )
    return Finding("system", "bad", found, remedy)


def _architecture(case: Case) -> Finding:
    board, facts = case.board, case.facts
    lacking = [name for name in facts.extensions if name not in board.extensions]
    found = f"{board.machine}, {board.model or 'unknown processor'}"
    if facts.arch not in ("host", board.machine):
        remedy = f"{facts.name} is {facts.arch}: choose the type that fits (opadapt devices list)"
        return Finding("architecture", "bad", found, remedy)
    if lacking and board.extensions:
        remedy = f"lacks {', '.join(lacking)} of {facts.name}: choose another type, or describe this board"
        return Finding("architecture", "warn", found, remedy, f"opadapt devices init {case.address} NAME")
    return Finding("architecture", "ok", found)


def _cores(case: Case) -> Finding:
    wanted, found = case.facts.cores, case.board.cores
    if found is None:
        return Finding("cores", "ok", SILENT)
    absent = [core for core in case.facts.pin_cores if core >= found]
    if absent:
        remedy = f"{case.facts.name} pins to core {absent[0]}, which is not there: change pin_cores"
        return Finding("cores", "bad", f"{found}", remedy)
    if wanted is not None and wanted != found:
        remedy = "bring the others up (cores offline, or maxcpus=/isolcpus= at boot), or choose another type"
        return Finding("cores", "warn", f"{found} of {wanted}", remedy)
    return Finding("cores", "ok", f"{found}")


def _memory(case: Case) -> Finding:
    free, total = case.board.memory_free_bytes, case.board.memory_bytes
    if free is None or total is None:
        return Finding("memory", "ok", SILENT)
    found = f"{free / GB:.2f} GB free of {total / GB:.2f}"
    verdict: Verdict = "bad" if free < MEMORY_NEEDED else "warn" if free < MEMORY_WANTED else "ok"
    remedy = None if verdict == "ok" else "end other programs there (a desktop, a browser)"
    return Finding("memory", verdict, found, remedy)


def _disk(case: Case) -> Finding:
    board = case.board
    free = board.disk_free_bytes
    if not board.cache_writable and not case.here:
        remedy = f"make {board.cache} writable for {board.user}"
        return Finding("disk", "bad", f"{board.at_home(board.cache)} cannot be written", remedy)
    if free is None:
        return Finding("disk", "ok", SILENT)
    verdict: Verdict = "bad" if free < DISK_NEEDED else "warn" if free < DISK_WANTED else "ok"
    found = f"{free / GB:.1f} GB free for {board.at_home(board.cache)}"
    advice = f"free {DISK_WANTED / MB:.0f} MB or more on its disk"
    return Finding("disk", verdict, found, None if verdict == "ok" else advice)


def _python(case: Case) -> Finding:
    python = case.board.python
    if python is None:
        remedy = case.where("install Python, or name its path as 'python' in the device file")
        return Finding("python", "bad", f"no {case.facts.python}", remedy, "sudo apt install python3")
    version = ".".join(map(str, python.version)) or "unknown version"
    found = f"{version}, {case.board.at_home(python.path)}"
    oldest, newest = PYTHONS
    if not python.version:
        found += f" does not start: {python.failure}"
        return Finding("python", "bad", found, "set the environment up again", _install(case))
    if python.version[:2] < oldest or python.bits != 64:
        remedy = f"install a 64-bit Python {oldest[0]}.{oldest[1]} or newer, and name it in the device file (python)"
        return Finding("python", "bad", f"{found}, {python.bits} bits", remedy)
    if python.version[:2] > newest:
        remedy = f"not tried with Pythons newer than {newest[0]}.{newest[1]}; name another if it fails"
        return Finding("python", "warn", found, remedy)
    return Finding("python", "ok", found + (", set up by --install" if case.board.venv else ""))


def _onnxruntime(case: Case) -> Finding:
    python = case.board.python
    if python is None or not python.version:
        return Finding("onnxruntime", "bad", "no Python to look in", "mend Python first")
    if python.onnxruntime is None:
        absent = "onnxruntime" if python.numpy else "onnxruntime, no numpy"
        return Finding("onnxruntime", "bad", f"no {absent}", "install it", _install(case))
    found = f"{python.onnxruntime}, numpy {python.numpy or 'missing'}"
    bad = case.facts.bad_version(python.onnxruntime)
    if bad is not None:
        return Finding("onnxruntime", "bad", f"{found}: {bad.reason}", bad.fix, _install(case))
    if python.failure is not None:
        return Finding("onnxruntime", "bad", f"{found}: {python.failure}", "install another", _install(case))
    return Finding("onnxruntime", "ok", found)


def _install(case: Case) -> str:
    if case.here:
        python = case.board.python
        return f"{python.path if python else 'python3'} -m pip install --upgrade onnxruntime numpy"
    return f"opadapt devices check {case.address} --install"


def _governor(case: Case) -> Finding:
    governors = sorted({cpu.governor for cpu in case.board.cpus if cpu.governor})
    if not governors:
        return Finding("governor", "ok", SILENT)
    found = ", ".join(governors)
    if governors == ["performance"]:
        return Finding("governor", "ok", found)
    if not all("performance" in cpu.governors for cpu in case.board.cpus if cpu.governors):
        return Finding("governor", "warn", found, "the kernel offers no 'performance': clocks will vary")
    remedy = case.where("until the next start:")
    path = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    return Finding("governor", "warn", found, remedy, f"echo performance | sudo tee {path}")


def _clock(case: Case) -> Finding:
    cpus = [cpu for cpu in case.board.cpus if cpu.clock_mhz is not None]
    if not cpus:
        return Finding("clock", "ok", SILENT)
    clocks = [cpu.clock_mhz for cpu in cpus if cpu.clock_mhz is not None]
    tops = sorted({cpu.max_mhz for cpu in cpus if cpu.max_mhz is not None})
    low, high = f"{min(clocks):.0f}", f"{max(clocks):.0f}"
    found = (low if low == high else f"{low} to {high}") + " MHz"
    if tops:
        found += " of " + " and ".join(f"{top:.0f}" for top in tops)
    capped = [
        c for c in cpus if c.limit_mhz is not None and c.max_mhz is not None and c.limit_mhz < c.max_mhz
    ]
    if capped:
        first, khz = capped[0], round((capped[0].max_mhz or 0) * 1000)
        which = "*" if len(tops) == 1 else first.number
        remedy = case.where(f"lift the limit of {first.limit_mhz:.0f} MHz, if it is not meant:")
        command = f"echo {khz} | sudo tee /sys/devices/system/cpu/cpu{which}/cpufreq/scaling_max_freq"
        return Finding("clock", "warn", found, remedy, command)
    return Finding("clock", "ok", found)


def _temperature(case: Case) -> Finding:
    facts = case.facts
    found = case.board.temperature_c(facts.thermal)
    if found is None:
        return Finding("temperature", "ok", SILENT)
    text = f"{found:.0f} °C"
    if facts.max_temperature_c is not None and found >= facts.max_temperature_c:
        remedy = (
            f"throttles from {facts.max_temperature_c:.0f} °C on: cool it (heat sink, fan, out of its case)"
        )
        return Finding("temperature", "bad", text, remedy)
    wait = facts.cool.start_above_c if facts.cool is not None else HOT_C
    if found >= wait:
        remedy = "cool it (heat sink, fan, out of its case)"
        if facts.cool is not None:
            remedy += f"; measurements wait until it is below {facts.cool.resume_below_c:.0f} °C"
        return Finding("temperature", "warn", text, remedy)
    return Finding("temperature", "ok", text)


_COOL = "cool it: heat sink, fan, out of its case"
_SUPPLY = "use the supply made for the board and a short, thick cable"
# bit of `vcgencmd get_throttled` -> (what it means, remedy); 16 bits higher: it happened since the start
FLAGS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        0: ("under-voltage", _SUPPLY),
        1: ("clock capped", _COOL + f"; if its voltage is low too, {_SUPPLY}"),
        2: ("throttled", _COOL),
        3: ("soft temperature limit", _COOL),
    }
)


def decode(word: int) -> tuple[list[int], list[int]]:
    """The flags of ``vcgencmd get_throttled`` that hold now, and those that held at some time since the start."""
    now = [bit for bit in FLAGS if word >> bit & 1]
    past = [bit for bit in FLAGS if word >> (bit + 16) & 1]
    return now, past


def _throttling(case: Case) -> Finding:
    board = case.board
    if board.throttled is not None:
        now, past = decode(board.throttled)
        bits, since = (now, "now") if now else (past, "since the start")
        if not bits:
            return Finding("throttling", "ok", "none since the start")
        found = f"{', '.join(FLAGS[bit][0] for bit in bits)} {since} (0x{board.throttled:x})"
        return Finding("throttling", "bad" if now else "warn", found, FLAGS[bits[0]][1])
    if board.throttled_error is not None:
        remedy = case.where("let the user read it, then log in again:")
        command = f"sudo usermod -aG video {board.user}"
        return Finding("throttling", "warn", f"vcgencmd: {board.throttled_error}", remedy, command)
    if board.throttle_count is not None:
        found = f"{board.throttle_count} times since the start"
        remedy = f"{_COOL}; what is measured meanwhile is measured again"
        return (
            Finding("throttling", "warn", found, remedy)
            if board.throttle_count
            else Finding("throttling", "ok", found)
        )
    return Finding("throttling", "ok", SILENT)


def _load(case: Case) -> Finding:
    load = case.board.load
    if load is None:
        return Finding("load", "ok", SILENT)
    if load <= BUSY:
        return Finding("load", "ok", f"{load:.2f}")
    remedy = case.where("see what runs, and end it:")
    return Finding("load", "warn", f"{load:.2f}", remedy, "top -b -n 1 | head -n 15")


CHECKS: Mapping[str, Callable[[Case], Finding]] = MappingProxyType(
    {
        "system": _system,
        "architecture": _architecture,
        "cores": _cores,
        "memory": _memory,
        "disk": _disk,
        "python": _python,
        "onnxruntime": _onnxruntime,
        "governor": _governor,
        "clock": _clock,
        "temperature": _temperature,
        "throttling": _throttling,
        "load": _load,
    }
)


def usable(findings: list[Finding]) -> bool:
    """Whether the board can run a model at all."""
    needed = ("system", "architecture", "cores", "python", "onnxruntime")
    return not any(f.verdict == "bad" and f.item in needed for f in findings)

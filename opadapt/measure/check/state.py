"""Can it be measured well now: room, clocks, heat and what else runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from opadapt.measure.check.finding import SILENT, Case, Finding, Verdict

GB, MB = 1e9, 1e6
MEMORY_NEEDED, MEMORY_WANTED = 150 * MB, 400 * MB  # a session of a small model, with Python and onnxruntime
DISK_NEEDED, DISK_WANTED = 50 * MB, 500 * MB  # a session: models, outputs, profiles; 256 MB of them are kept
HOT_C = 75.0  # where the facts name no limit; boards throttle from 80 degrees on
BUSY = 0.5  # processes that want a core, on average


def memory(case: Case) -> Finding:
    free, total = case.board.memory_free_bytes, case.board.memory_bytes
    if free is None or total is None:
        return Finding("memory", "ok", SILENT)
    found = f"{free / GB:.2f} GB free of {total / GB:.2f}"
    verdict: Verdict = "bad" if free < MEMORY_NEEDED else "warn" if free < MEMORY_WANTED else "ok"
    remedy = None if verdict == "ok" else "end other programs there (a desktop, a browser)"
    return Finding("memory", verdict, found, remedy)


def disk(case: Case) -> Finding:
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


_ROOT = "only root may change it on a phone: expect more noise"


def governor(case: Case) -> Finding:
    governors = sorted({cpu.governor for cpu in case.board.cpus if cpu.governor})
    if not governors:
        return Finding("governor", "ok", SILENT)
    found = ", ".join(governors)
    if governors == ["performance"]:
        return Finding("governor", "ok", found)
    if not all("performance" in cpu.governors for cpu in case.board.cpus if cpu.governors):
        return Finding("governor", "warn", found, "the kernel offers no 'performance': clocks will vary")
    if case.phone:
        return Finding("governor", "warn", found, _ROOT)
    remedy = case.where("until the next start:")
    path = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    return Finding("governor", "warn", found, remedy, f"echo performance | sudo tee {path}")


def clock(case: Case) -> Finding:
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
        if case.phone:
            return Finding("clock", "warn", found, _ROOT)
        first, khz = capped[0], round((capped[0].max_mhz or 0) * 1000)
        which = "*" if len(tops) == 1 else first.number
        remedy = case.where(f"lift the limit of {first.limit_mhz:.0f} MHz, if it is not meant:")
        command = f"echo {khz} | sudo tee /sys/devices/system/cpu/cpu{which}/cpufreq/scaling_max_freq"
        return Finding("clock", "warn", found, remedy, command)
    return Finding("clock", "ok", found)


def temperature(case: Case) -> Finding:
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


def throttling(case: Case) -> Finding:
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


def load(case: Case) -> Finding:
    load = case.board.load
    if load is None:
        return Finding("load", "ok", SILENT)
    if load <= BUSY:
        return Finding("load", "ok", f"{load:.2f}")
    remedy = case.where("see what runs, and end it:")
    return Finding("load", "warn", f"{load:.2f}", remedy, "top -b -n 1 | head -n 15")

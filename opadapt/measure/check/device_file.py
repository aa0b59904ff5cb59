"""``opadapt devices init``: a device file from what a board tells, every fact with how it was found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opadapt.errors import ConfigError, RunError
from opadapt.measure.check.board import Board, wheel_platforms
from opadapt.measure.facts import Facts, checked, known_devices, load_facts
from opadapt.yamlfile import parse_yaml, write_yaml

GENERIC = {"aarch64": "generic-aarch64", "x86_64": "generic-x86"}
# instruction set extensions that kernels of neural networks make use of; of x86's hundred flags the others are left out
EXTENSIONS = {
    "aarch64": "fp asimd fphp asimdhp asimdrdm asimddp atomics sve sve2 i8mm bf16",
    "x86_64": "sse4_2 avx fma f16c avx2 avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16",
}
# facts that no board tells: taken from the type that it is said to be, or from the generic one
COPIED = ("memory_bandwidth_gb_s", "bad_onnxruntime", "max_temperature_c", "cool", "timeout_s", "max_retries")
_CORES = "/sys/devices/system/cpu/online, up to the last one; some between may be switched off"
Fact = tuple[str, Any, str]  # key, value, how it was found


def check_name(name: str) -> None:
    """Raises ConfigError for a name that ``--device`` could not be given."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(
            "not the name of a device type", expected="letters, digits, '.', '_', '-'", found=name
        )


def base_of(board: Board, kind: str | None) -> Facts | None:
    """The type that gives what a board does not tell: the one named, or the generic one of its architecture."""
    name = kind if kind is not None else GENERIC.get(board.machine)
    return load_facts(name) if name is not None and (kind is not None or name in known_devices()) else None


def device_file(
    board: Board, name: str, transport: str, host: str | None, base: Facts | None, day: str
) -> str:
    """The text of NAME.yaml, as ``load_facts`` takes it. ``day``: when it was found. Raises ConfigError."""
    where = host or "this machine"
    lines = [
        f"# Written by opadapt devices init on {day}, from what {where} told; before each fact how it was found."
    ]
    for key, value, how in facts_of(board, name, transport, host, base):
        lines += [f"# {line}" for line in how.splitlines()]
        lines.append(write_yaml({key: value}).rstrip("\n"))
    text = "\n".join(lines) + "\n"
    checked(parse_yaml(text, f"{name}.yaml"))
    return text


def write_device_file(text: str, path: Path, force: bool) -> None:
    """Write it; an existing file only when forced. Raises ConfigError, RunError."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists", expected="a new file", found="an existing one", do="--force writes it anew"
        ) from error
    except OSError as error:
        raise RunError(f"cannot write {path}", found=str(error)) from error


def facts_of(board: Board, name: str, transport: str, host: str | None, base: Facts | None) -> Iterator[Fact]:
    """The facts in the order of the file."""
    model = board.model or board.machine
    yield "name", name, "as given"
    yield (
        "description",
        f"{model}, {board.os or board.system}",
        "/proc/device-tree/model or cpuinfo, os-release",
    )
    yield "transport", transport, "as it was reached"
    if host is not None:
        yield "host", host, "as given; --host or NAME@HOST name another"
    yield "arch", board.machine, "uname -m"
    known = EXTENSIONS.get(board.machine, "").split() or board.extensions
    if extensions := [name for name in known if name in board.extensions]:
        yield "extensions", extensions, "/proc/cpuinfo; those that neural networks make use of"
    if board.cores is not None:
        yield "cores", max(board.online, default=board.cores - 1) + 1, _CORES
    yield "pin_cores", *_pinned(board, base)
    if board.caches is not None:
        sizes = {k: v for k, v in board.caches.model_dump().items() if v is not None}
        shared = f"; {board.shared_l2} core(s) share one l2" if board.shared_l2 else ""
        yield "caches", sizes, f"/sys/devices/system/cpu/cpu0/cache, in KiB{shared}"
    if board.glibc is not None:
        yield "triple", f"{board.machine}-linux-gnu", "uname -m, and a system with glibc"
    if transport != "local":
        yield from _wheels(board, base)
    if thermal := list(_thermal(board)):
        yield "thermal", thermal, "sensors of the processor below /sys/class, and what tells throttling"
    if board.power:
        power = [{"kind": kind, "match": chip} for kind, chip in dict.fromkeys(board.power)]
        how = (
            "/sys/class/hwmon, /sys/class/powercap; keep those that supply the processor, or the whole board"
        )
        yield "power", power, how
    if base is not None:
        yield from _copied(base)


def _pinned(board: Board, base: Facts | None) -> tuple[list[int], str]:
    """The fastest cores, where there are slower ones; else those of the type, if they are there."""
    there = [cpu for cpu in board.cpus if not board.online or cpu.number in board.online]
    speeds = {cpu.number: (cpu.capacity or 0, cpu.max_mhz or 0.0) for cpu in there}
    fastest = [number for number, speed in speeds.items() if speed == max(speeds.values())]
    if len(fastest) < len(speeds):
        return fastest, "the fastest cores (cpu_capacity, cpuinfo_max_freq)"
    alike = "all cores are alike (cpu_capacity, cpuinfo_max_freq)"
    if base is not None and base.pin_cores and set(base.pin_cores) <= set(board.online):
        return list(base.pin_cores), f"{alike}: as in {base.name}"
    return [], f"{alike}: none to prefer"


def _wheels(board: Board, base: Facts | None) -> Iterator[Fact]:
    python = base.python if base is not None else "python3"
    found = ".".join(map(str, board.base.version)) if board.base else "not found there"
    yield "python", python, f"the interpreter that was asked: {found}"
    if platforms := wheel_platforms(board):
        yield "wheel_platforms", platforms, "getconf GNU_LIBC_VERSION, uname -m"


def _thermal(board: Board) -> Iterator[dict[str, str]]:
    for sensor in dict.fromkeys((s.kind, s.name) for s in board.processor_sensors):
        yield {"kind": sensor[0], "match": sensor[1]}
    if board.throttled is not None:
        yield {"kind": "vcgencmd"}
    if board.throttle_count is not None:
        yield {"kind": "x86_counter"}


def _copied(base: Facts) -> Iterator[Fact]:
    given = base.model_dump(mode="json", exclude_defaults=True)
    for key in COPIED:
        if key in given:
            yield key, given[key], f"not told by the board: from {base.name}"

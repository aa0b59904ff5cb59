"""Boards made of files: a tree of /sys and /proc, and a PATH on which the board's own commands answer by script.

The real probe runs on them with the real shell, so that what is tested is the probe too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from opadapt.measure.check.probe import Done, LocalRunner

TOOLS = ("sh", "sed", "tr", "grep", "sort", "tail", "cat", "sleep")
CPU = "sys/devices/system/cpu"


class FakeBoard:
    """A runner whose board lies in a folder. ``python``: what its interpreters say, by name."""

    def __init__(self, folder: Path, files: Mapping[str, str], commands: Mapping[str, str]) -> None:
        self.folder, self.root, self.home, self.bin = folder, folder / "root", folder / "home", folder / "bin"
        for place in (self.root, self.home, self.bin):
            place.mkdir(parents=True)
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        for name, script in {"id": "echo pi", **commands}.items():
            self.put_command(self.bin / name, script)
        self._local = LocalRunner({"PATH": str(self.bin), "HOME": str(self.home)})

    @staticmethod
    def put_command(path: Path, script: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Done:
        if list(command[:3]) == ["sh", "-s", "--"]:
            command = [str(self.bin / "sh"), "-s", "--", str(self.root), *command[4:]]
        return self._local.run(command, input=input, timeout_s=timeout_s)

    def put(self, data: bytes, path: str) -> None:
        Path(path).write_bytes(data)


def python(
    version: str, packages: Mapping[str, str] | None = None, end: str = "exit 0", bits: int = 64
) -> str:
    """The script of an interpreter that answers the probe; with an ``end`` of its own it dies while importing."""
    said = {"executable": "$0", "version": version, "implementation": "CPython", "bits": str(bits)}
    lines = [*said.items(), ("has", "venv"), ("has", "zlib"), *(packages or {}).items()]
    works = end == "exit 0" and packages is not None and "onnxruntime" in packages
    if works:
        lines.append(("imports", "yes"))
    elif end == "exit 0":
        end = "echo \"ModuleNotFoundError: No module named 'onnxruntime'\" >&2; exit 1"
    said_lines = "\n".join(f'printf "$3.{key}\\t{value}\\n"' for key, value in lines)
    return f"{said_lines}\n{end}"


def _commands(machine: str, glibc: str | None, **more: str) -> dict[str, str]:
    libc = f"echo 'glibc {glibc}'" if glibc else "exit 1"
    return {
        "uname": f"case $1 in -m) echo {machine};; -s) echo Linux;; *) echo 6.6.51+rpt-rpi-v8;; esac",
        "getconf": f"case $1 in GNU_LIBC_VERSION) {libc};; LONG_BIT) echo 64;; *) echo 4;; esac",
        "df": "echo Filesystem; echo '/dev/mmcblk0p2 30000000 8000000 20000000 28% /'",
        **more,
    }


def _cpus(count: int, governor: str, khz: int, limit: int, top: int) -> dict[str, str]:
    found = {f"{CPU}/online": f"0-{count - 1}\n"}
    for number in range(count):
        at = f"{CPU}/cpu{number}/cpufreq"
        found |= {
            f"{at}/scaling_governor": f"{governor}\n",
            f"{at}/scaling_available_governors": "ondemand performance schedutil \n",
            f"{at}/scaling_cur_freq": f"{khz}\n",
            f"{at}/scaling_max_freq": f"{limit}\n",
            f"{at}/cpuinfo_max_freq": f"{top}\n",
        }
    return found


_CPUINFO = "processor\t: 0\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
_PI_FEATURES = "fp asimd evtstrm crc32 cpuid"


def _pi_files(governor: str, khz: int, limit: int, temperature: int, load: str) -> dict[str, str]:
    return {
        **_cpus(4, governor, khz, limit, 1_800_000),
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/cpuinfo": _CPUINFO.format(_PI_FEATURES) * 4,
        "proc/meminfo": "MemTotal:        3884360 kB\nMemFree:  100 kB\nMemAvailable:    3423180 kB\n",
        "proc/loadavg": f"{load} 0.20 0.10 1/150 1234\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": f"{temperature}\n",
    }


def pi4(folder: Path, throttled: str = "throttled=0x0", **interpreters: str) -> FakeBoard:
    """A Raspberry Pi 4 as it should be. ``venv``, ``python3``: their scripts."""
    scripts = {"python3": python("3.11.2"), "venv": python("3.11.2", GOOD), **interpreters}
    files = _pi_files("performance", 1_800_000, 1_800_000, 48_312, "0.10")
    commands = _commands("aarch64", "2.36", vcgencmd=f"echo '{throttled}'")
    return _with_python(FakeBoard(folder, files, commands), scripts)


def pi_32_bit(folder: Path) -> FakeBoard:
    """The same board with the 32-bit image of its system."""
    files = _pi_files("performance", 1_800_000, 1_800_000, 48_312, "0.10")
    getconf = "case $1 in GNU_LIBC_VERSION) echo 'glibc 2.36';; LONG_BIT) echo 32;; *) echo 4;; esac"
    board = FakeBoard(folder, files, _commands("armv7l", "2.36", getconf=getconf))
    return _with_python(board, {"python3": python("3.11.2", bits=32)})


def hot_pi(folder: Path) -> FakeBoard:
    """The same board in a closed case on a phone's charger, with a desktop running."""
    files = _pi_files("ondemand", 600_000, 1_500_000, 83_100, "2.31")
    board = FakeBoard(folder, files, _commands("aarch64", "2.36", vcgencmd="echo throttled=0x50005"))
    return _with_python(board, {"python3": python("3.11.2"), "venv": python("3.11.2", GOOD)})


def jetson(folder: Path) -> FakeBoard:
    """A Jetson Nano of JetPack 4.6 in its 5 W mode (two cores), without onnxruntime."""
    files = {
        **_cpus(2, "schedutil", 102_000, 1_479_000, 1_479_000),
        "etc/os-release": 'PRETTY_NAME="Ubuntu 18.04.6 LTS"\n',
        "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
        "proc/cpuinfo": _CPUINFO.format("fp asimd evtstrm aes pmull sha1 sha2 crc32"),
        "proc/meminfo": "MemTotal: 4059412 kB\nMemAvailable: 300000 kB\n",
        "proc/loadavg": "0.30 0.2 0.1 1/1 1\n",
        "sys/class/thermal/thermal_zone0/type": "PMIC-Die\n",
        "sys/class/thermal/thermal_zone0/temp": "100000\n",
        "sys/class/thermal/thermal_zone1/type": "CPU-therm\n",
        "sys/class/thermal/thermal_zone1/temp": "35500\n",
        "sys/class/hwmon/hwmon3/name": "ina3221\n",
        "sys/class/hwmon/hwmon3/curr1_input": "420\n",
        "sys/class/hwmon/hwmon3/in1_input": "5010\n",
    }
    board = FakeBoard(folder, files, _commands("aarch64", "2.27"))
    return _with_python(board, {"python3": python("3.6.9")})


def without_python(folder: Path) -> FakeBoard:
    """Debian as debootstrap makes it, with an ssh server and nothing else; no /sys either."""
    return FakeBoard(folder, {"etc/os-release": "PRETTY_NAME=Debian\n"}, _commands("aarch64", "2.36"))


def alpine(folder: Path) -> FakeBoard:
    """A system without glibc."""
    return _with_python(FakeBoard(folder, {}, _commands("aarch64", None)), {"python3": python("3.12.8")})


GOOD = {"numpy": "2.2.6", "onnxruntime": "1.22.1"}


def _with_python(board: FakeBoard, scripts: Mapping[str, str]) -> FakeBoard:
    for name, script in scripts.items():
        if script:
            inside = board.home / ".cache/opadapt/venv/bin/python"
            board.put_command(inside if name == "venv" else board.bin / name, script)
    return board

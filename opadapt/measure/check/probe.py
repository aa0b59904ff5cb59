"""What a board says about itself: one shell script run there, its answer as lines ``key<TAB>value``.

The script needs a POSIX shell and nothing else, so that it answers on a board without Python too. It reads and
changes nothing. Values are text here; ``board.py`` makes sense of them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opadapt.errors import DeviceError

CACHE = ".cache/opadapt"  # of everything opadapt keeps on a board, below the home folder there
TIMEOUT_S = 180.0  # importing onnxruntime takes seconds on a small board, and much longer on an emulated one


class Completed(Protocol):
    """What came of a command."""

    @property
    def code(self) -> int: ...

    @property
    def stdout(self) -> bytes: ...

    @property
    def stderr(self) -> bytes: ...


class Runner(Protocol):
    """What runs commands on a board. Raises DeviceError when the board cannot be reached, or is too slow."""

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed: ...


class Sender(Runner, Protocol):
    """A runner that writes files there too."""

    def put(self, data: bytes, path: str) -> None: ...


@dataclass(frozen=True)
class Done:
    """A command of this machine that has ended; below 0: killed by that signal."""

    code: int
    stdout: bytes
    stderr: bytes


class LocalRunner:
    """Runs commands on this machine."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = None if environment is None else dict(environment)

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Done:
        try:
            done = subprocess.run(
                list(command), input=input, capture_output=True, timeout=timeout_s, env=self._environment
            )
        except OSError as error:
            raise DeviceError(f"'{command[0]}' does not start", found=str(error)) from error
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"'{command[0]}' did not end within {timeout_s:g} s") from error
        return Done(done.returncode, done.stdout, done.stderr)

    def put(self, data: bytes, path: str) -> None:
        Path(path).write_bytes(data)


@dataclass(frozen=True)
class Told:
    """The answer. ``files``: one-line files below ``/sys`` and ``/proc`` -> their text. ``lines``: the rest."""

    files: Mapping[str, str]
    lines: Mapping[str, tuple[str, ...]]

    def line(self, key: str) -> str | None:
        """The first line of a key, None where the board says nothing."""
        return next(iter(self.lines.get(key, ())), None)


def probe(runner: Runner, python: str = "python3", own: bool = True, cache: str = "", root: str = "") -> Told:
    """Ask a board. ``python``: its base interpreter. ``own``: look at the environment that ``--install`` makes
    too. ``cache``: where opadapt keeps things there, if not below the home folder. ``root``: the folder that
    stands for ``/``, for tests.

    Raises DeviceError when the board cannot be reached or has no POSIX shell.
    """
    command = ["sh", "-s", "--", root, python, "venv" if own else "", cache]
    done = runner.run(command, input=SCRIPT.encode(), timeout_s=TIMEOUT_S)
    text = done.stdout.decode(errors="replace")
    if "end\t" not in text:
        raise DeviceError(
            "the board does not answer to a shell script",
            expected="a POSIX shell 'sh'",
            found=done.stderr.decode(errors="replace").strip()[-300:] or f"exit code {done.code}",
        )
    return parse(text)


def parse(text: str) -> Told:
    """The lines ``key<TAB>value`` and ``file<TAB>path<TAB>value``; others (a talkative login shell's) are skipped."""
    files: dict[str, str] = {}
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, tab, value = line.partition("\t")
        if not tab:
            continue
        if key == "file":
            path, _, content = value.partition("\t")
            files[path] = content.strip()
        else:
            lines.setdefault(key, []).append(value.strip())
    return Told(files, {key: tuple(values) for key, values in lines.items()})


# What an interpreter says; any version from 2.7 on must understand it. Versions come before the imports: an import
# may end the interpreter (an illegal instruction).
_PYTHON = """
import platform, struct, sys
def say(key, value):
    sys.stdout.write("%s.%s\\t%s\\n" % (sys.argv[1], key, value))
    sys.stdout.flush()
say("executable", sys.executable)
say("version", "%d.%d.%d" % sys.version_info[:3])
say("implementation", platform.python_implementation())
say("bits", struct.calcsize("P") * 8)
for name in ("venv", "ensurepip", "zlib"):
    try:
        __import__(name)
        say("has", name)
    except ImportError:
        pass
try:
    from importlib import metadata
    for name in ("numpy", "onnxruntime", "onnxruntime-gpu"):
        try:
            say(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            pass
except ImportError:
    pass
import numpy
say("numpy", numpy.__version__)
import onnxruntime
say("onnxruntime", onnxruntime.__version__)
say("imports", "yes")
"""

# A function, so that the shell has read all of it before anything below could take from its stdin.
SCRIPT = f"""main() {{
root=$1
python=$2
own=$3
cache=${{4:-$HOME/{CACHE}}}
say() {{ printf '%s\\t%s\\n' "$1" "$2"; }}
lines() {{ while IFS= read -r line || [ -n "$line" ]; do say "$1" "$line"; done; }}
file() {{
    for path in "$@"; do
        value=
        {{ IFS= read -r value <"$path"; }} 2>/dev/null
        if [ -n "$value" ]; then printf 'file\\t%s\\t%s\\n' "${{path#"$root"}}" "$value"; fi
    done
}}
say machine "$(uname -m)"
say system "$(uname -s) $(uname -r)"
say user "$(id -un)"
say home "$HOME"
say cache "$cache"
say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say bits "$(getconf LONG_BIT 2>/dev/null)"
say cores "$(getconf _NPROCESSORS_ONLN 2>/dev/null)"
if command -v getprop >/dev/null 2>&1; then
    say os "Android $(getprop ro.build.version.release)"
    say model "$(getprop ro.product.model)"
fi
sed -n 's/^PRETTY_NAME="*\\([^"]*\\)"*$/\\1/p' "$root/etc/os-release" 2>/dev/null | lines os
tr -d '\\000' <"$root/proc/device-tree/model" 2>/dev/null | lines model
grep -E '^(model name|Features|flags|CPU implementer|CPU part|Hardware)[[:space:]]*:' \\
    "$root/proc/cpuinfo" 2>/dev/null | tr '\\t' ' ' | sort -u | lines cpuinfo
grep -E '^Mem(Total|Available):' "$root/proc/meminfo" 2>/dev/null | lines memory
folder=$cache
while [ -n "$folder" ] && [ ! -d "$folder" ]; do folder=${{folder%/*}}; done
folder=${{folder:-/}}
df -Pk "$folder" 2>/dev/null | tail -n 1 | lines disk
if [ ! -w "$folder" ]; then say readonly "$folder"; fi
cpu=$root/sys/devices/system/cpu
file "$root/proc/loadavg" "$cpu/online" "$cpu"/cpu[0-9]*/cpu_capacity \\
    "$cpu"/cpu[0-9]*/cpufreq/scaling_governor "$cpu"/cpu[0-9]*/cpufreq/scaling_available_governors \\
    "$cpu"/cpu[0-9]*/cpufreq/scaling_cur_freq "$cpu"/cpu[0-9]*/cpufreq/scaling_max_freq \\
    "$cpu"/cpu[0-9]*/cpufreq/cpuinfo_max_freq "$cpu"/cpu[0-9]*/thermal_throttle/core_throttle_count \\
    "$cpu"/cpu0/cache/index*/level "$cpu"/cpu0/cache/index*/type "$cpu"/cpu0/cache/index*/size \\
    "$cpu"/cpu0/cache/index*/shared_cpu_list \\
    "$root"/sys/class/thermal/thermal_zone*/type "$root"/sys/class/thermal/thermal_zone*/temp \\
    "$root"/sys/class/hwmon/hwmon*/name "$root"/sys/class/hwmon/hwmon*/temp*_input \\
    "$root"/sys/class/hwmon/hwmon*/power*_input "$root"/sys/class/hwmon/hwmon*/curr*_input \\
    "$root"/sys/class/hwmon/hwmon*/in*_input \\
    "$root"/sys/class/powercap/*/name "$root"/sys/class/powercap/*/energy_uj
if command -v vcgencmd >/dev/null 2>&1; then vcgencmd get_throttled 2>&1 | tail -n 1 | lines vcgencmd; fi
interpreter() {{
    label=$1
    problem=$("$2" -c "$code" "$label" 2>&1 >&3)
    say "$label.exit" $?
    printf '%s\\n' "$problem" | tail -n 1 | lines "$label.error"
}}
code='{_PYTHON}'
exec 3>&1
export ORT_DISABLE_TELEMETRY=1
if [ -n "$own" ] && [ -e "$cache/venv/bin/python" ]; then interpreter venv "$cache/venv/bin/python"; fi
if command -v "$python" >/dev/null 2>&1; then interpreter base "$python"; fi
say end 1
}}
main "$@" </dev/null
"""
assert "'" not in _PYTHON  # it stands between single quotes

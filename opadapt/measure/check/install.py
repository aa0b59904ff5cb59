"""onnxruntime on a board that may have no internet and no pip: ``opadapt devices check ... --install``.

The host's pip downloads the wheels for the board's Python and platform; they are sent by content, and a short
program there, with the standard library alone, makes a virtual environment and unpacks them into it. Neither
``ensurepip`` nor pip is needed on the board: a bare Debian or Raspberry Pi OS has the module ``venv`` without it.
The environment is made beside the old one and takes its place once both libraries import.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from opadapt.errors import DeviceError
from opadapt.measure.check.board import Board, Interpreter, wheel_platforms
from opadapt.measure.check.probe import Sender
from opadapt.measure.check.software import PYTHONS
from opadapt.measure.facts import Facts

DOWNLOAD_TIMEOUT_S = 1800.0
COMMAND_TIMEOUT_S = 900.0  # unpacking 100 MB onto a slow SD card, and the first import, which compiles
UNPACKED = (
    5.0  # bytes on disk per byte of wheels: the wheels, what is in them, and the old environment until then
)
TRIES = 8  # onnxruntime versions that may be bad one after another
NEEDED = ("onnxruntime", "numpy")

Download = Callable[
    [Sequence[str], str, Sequence[str], Path], None
]  # requirements, Python, platforms, folder


def install(
    board: Board, facts: Facts, sender: Sender, note: Callable[[str], None], download: Download | None = None
) -> None:
    """Make ``~/.cache/opadapt/venv`` on the board, with numpy and an onnxruntime not known bad there.

    ``note`` gets a line per step. Raises DeviceError with the board's environment as it was.
    """
    python = _base(board, facts)
    platforms = wheel_platforms(board, facts)
    if not platforms:
        raise DeviceError(
            f"{facts.name}: no wheels of onnxruntime for this system",
            expected="glibc, as Debian, Ubuntu and Raspberry Pi OS have it",
            found=f"{board.os or board.system}, {board.machine}",
            do="build onnxruntime there, or install another system",
        )
    with tempfile.TemporaryDirectory(prefix="opadapt-wheels-") as temporary:
        version = ".".join(map(str, python.version[:2]))
        note(f"download wheels for Python {version} on {platforms[0]}")
        wheels = fetch(facts, version, platforms, Path(temporary), download or pip_download)
        _check_room(board, sum(wheel.stat().st_size for wheel in wheels))
        hashes = _send(sender, board, python, wheels, note)
    note("unpack and try them")
    _run(sender, python, _UNPACK, [board.cache, *hashes])
    note("numpy {}, onnxruntime {}".format(*_verified(sender, board, facts)))
    _run(sender, python, _SWAP, [board.cache])


def fetch(
    facts: Facts, version: str, platforms: Sequence[str], folder: Path, download: Download
) -> list[Path]:
    """Wheels of numpy, onnxruntime and what they need: this machine's version of onnxruntime if the board can
    have it, so that a board set up later is the same; or else the newest that is not known bad."""
    mine = metadata.version("onnxruntime")
    if facts.bad_version(mine) is None:
        try:
            download([f"onnxruntime=={mine}", "numpy"], version, platforms, folder / "same")
            return _wheels(folder / "same")
        except DeviceError:
            pass  # too new for the board's Python or system: the newest that fits is asked for below
    bad: list[str] = []
    for number in range(TRIES):
        found = folder / str(number)
        requirement = "onnxruntime" + ",".join(f"!={one}" for one in bad)
        download([requirement, "numpy"], version, platforms, found)
        wheels = _wheels(found)
        got = next((v for name, v in map(_name_version, wheels) if name == "onnxruntime"), None)
        if got is None:
            raise DeviceError(
                "pip brought no onnxruntime", found=", ".join(w.name for w in wheels) or "nothing"
            )
        if facts.bad_version(got) is None:
            return wheels
        bad.append(got)
    raise DeviceError(
        f"{facts.name}: no onnxruntime that is not known bad",
        expected=f"a version for Python {version} other than {', '.join(bad)}",
        do="install another Python on the board and name it as 'python' in the device file",
    )


def pip_download(requirements: Sequence[str], version: str, platforms: Sequence[str], folder: Path) -> None:
    """``pip download`` with this machine's own settings, for another Python and platform. Raises DeviceError."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}"]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--dest={folder}", *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError("pip does not run on this machine", found=str(error)) from error
    if done.returncode:
        raise DeviceError(
            f"no wheels of {' and '.join(requirements)} for Python {version} on {platforms[0]}",
            found="\n".join(done.stderr.strip().splitlines()[-3:]),
            do="try it where pip can reach a package index, or set PIP_FIND_LINKS to a folder with the wheels",
        )


def _base(board: Board, facts: Facts) -> Interpreter:
    """The board's own interpreter, if it is fit to be the base of an environment."""
    python = board.base
    oldest = ".".join(map(str, PYTHONS[0]))
    if python is None or not python.version:
        raise DeviceError(
            f"{facts.name}: no Python to make an environment with",
            expected=f"{facts.python}, {oldest} or newer",
            found="nothing" if python is None else f"{python.path}: {python.failure}",
            do="on the board: sudo apt install python3",
        )
    if python.version[:2] < PYTHONS[0] or python.bits != 64:
        raise DeviceError(
            f"{facts.name}: Python is too old or not a 64-bit one",
            expected=f"{oldest} or newer, 64 bits",
            found=f"{'.'.join(map(str, python.version))}, {python.bits} bits",
            do="install a newer one and name its path as 'python' in the device file",
        )
    missing = [name for name in ("venv", "zlib") if name not in python.has]
    if missing:
        raise DeviceError(
            f"{facts.name}: {python.path} lacks {' and '.join(missing)} of the standard library",
            do="on the board: sudo apt install python3 python3-venv libpython3-stdlib",
        )
    return python


def _name_version(wheel: Path) -> tuple[str, str]:
    try:
        name, version, _, _ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise DeviceError("pip brought something other than a wheel", found=wheel.name) from error
    return str(name), str(version)


def _wheels(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _check_room(board: Board, size: int) -> None:
    needed = size * UNPACKED
    if board.disk_free_bytes is not None and board.disk_free_bytes < needed:
        raise DeviceError(
            f"not enough room in {board.cache} on the board",
            expected=f"{needed / 1e6:.0f} MB",
            found=f"{board.disk_free_bytes / 1e6:.0f} MB free",
            do="remove something there",
        )


def _send(
    sender: Sender, board: Board, python: Interpreter, wheels: Iterable[Path], note: Callable[[str], None]
) -> list[str]:
    """Send those that are not there yet; the SHA-256 of all."""
    named = {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in wheels}
    there = set(_run(sender, python, _THERE, [board.cache]).split())
    for sha256, wheel in named.items():
        if sha256 not in there:
            note(f"send {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB)")
            sender.put(wheel.read_bytes(), f"{board.cache}/wheels/{sha256}")
    return list(named)


def _run(sender: Sender, python: Interpreter, program: str, arguments: Sequence[str]) -> str:
    """Run a program there, with nothing of the user's own on its path. Raises DeviceError with its last words."""
    done = sender.run(
        [python.path, "-I", "-", *arguments], input=program.encode(), timeout_s=COMMAND_TIMEOUT_S
    )
    if done.code:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.code}"]
        full = "No space left" in last[0]
        raise DeviceError(
            "the environment cannot be made on the board",
            found=last[0],
            do="remove something from its disk" if full else None,
        )
    return done.stdout.decode(errors="replace")


def _verified(sender: Sender, board: Board, facts: Facts) -> tuple[str, str]:
    """The versions, as the new environment's own import says them."""
    python = f"{board.cache}/venv.new/bin/python"
    done = sender.run([python, "-I", "-"], input=_IMPORT.encode(), timeout_s=COMMAND_TIMEOUT_S)
    found = re.search(r"^versions (\S+) (\S+)$", done.stdout.decode(errors="replace"), re.MULTILINE)
    if done.code or not found:
        tried = re.search(r"^trying (\S+)$", done.stdout.decode(errors="replace"), re.MULTILINE)
        version = tried[1] if tried else "this version"
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DeviceError(
            f"onnxruntime {version} does not run on {facts.name}",
            found=f"exit code {done.code}" + (f", {last[0]}" if last else ""),
            do=f"name it in a device file, bad_onnxruntime: [{{specifier: '=={version}', reason: ..., fix: ...}}], "
            "and install again: another version is taken then",
        )
    return found[1], found[2]


# The programs below run on the board's Python, 3.9 or newer.
_THERE = """
import hashlib, os, sys
folder = os.path.join(sys.argv[1], "wheels")
os.makedirs(folder, exist_ok=True)
for name in os.listdir(folder):
    path = os.path.join(folder, name)
    with open(path, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() == name:
            print(name)
            continue
    os.unlink(path)
"""

# A wheel is a zip file: what lies at its top belongs into site-packages, and so does *.data/purelib and platlib
# (PyPA, binary distribution format). Scripts, headers and other data are not needed to import.
_UNPACK = """
import hashlib, os, shutil, sys, venv, zipfile
cache, hashes = sys.argv[1], sys.argv[2:]
new = os.path.join(cache, "venv.new")
try:
    venv.create(new, clear=True, symlinks=True, with_pip=False)
    site = os.path.join(new, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
    root = os.path.realpath(site)
    for sha256 in hashes:
        path = os.path.join(cache, "wheels", sha256)
        with open(path, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != sha256:
                raise SystemExit("a wheel arrived damaged: install again")
        with zipfile.ZipFile(path) as wheel:
            for entry in wheel.infolist():
                parts = entry.filename.split("/")
                if parts[0].endswith(".data"):
                    if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                        continue
                    parts = parts[2:]
                target = os.path.realpath(os.path.join(root, *parts))
                if entry.is_dir() or not parts[-1]:
                    continue
                if os.path.isabs(entry.filename) or not target.startswith(root + os.sep):
                    raise SystemExit("a wheel wants to write outside of its folder: " + entry.filename)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with wheel.open(entry) as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy)
except BaseException:
    shutil.rmtree(new, ignore_errors=True)
    raise
"""

_IMPORT = """
import os, sys
from importlib import metadata
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
print("trying", metadata.version("onnxruntime"))
sys.stdout.flush()
import numpy, onnxruntime
print("versions", numpy.__version__, onnxruntime.__version__)
"""

_SWAP = """
import os, shutil, sys
cache = sys.argv[1]
venv, new, old = (os.path.join(cache, name) for name in ("venv", "venv.new", "venv.old"))
shutil.rmtree(old, ignore_errors=True)
if os.path.lexists(venv):
    os.rename(venv, old)
os.rename(new, venv)
shutil.rmtree(old, ignore_errors=True)
shutil.rmtree(os.path.join(cache, "wheels"), ignore_errors=True)
"""

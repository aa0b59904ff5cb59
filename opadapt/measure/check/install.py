"""onnxruntime on a board that may have no internet and no pip: ``opadapt devices check ... --install``.

The host's pip downloads the wheels for the board's Python and platform; they are sent by content, and a short
program there, with the standard library alone, makes a virtual environment and unpacks them into it. Neither
``ensurepip`` nor pip is needed on the board: a bare Debian or Raspberry Pi OS has the module ``venv`` without it.
The environment is made beside the old one and takes its place once both libraries import. While that is done, the
board's lock is held, as agents hold it: nobody's interpreter is exchanged under a measurement.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from opadapt.errors import DeviceError
from opadapt.measure.agent import BOARD_LOCK
from opadapt.measure.check.board import Board, Interpreter, wheel_platforms
from opadapt.measure.check.environment import LOCKED, LOOK, MAKE
from opadapt.measure.check.probe import Sender
from opadapt.measure.check.software import PYTHONS
from opadapt.measure.facts import Facts
from opadapt.measure.transport import whoami

DOWNLOAD_TIMEOUT_S = 1800.0
COMMAND_TIMEOUT_S = 1800.0  # unpacking 100 MB onto a slow SD card, and the first import, which compiles
UNPACKED = (
    5.0  # bytes on disk per byte of wheels: the wheels, what is in them, and the old environment until then
)
TRIES = 8  # onnxruntime versions that may be bad one after another
NEEDED = ("onnxruntime", "numpy")

Download = Callable[
    [Sequence[str], str, Sequence[str], Path], None
]  # requirements, Python, platforms, folder

Run = Callable[
    [str, Sequence[str]], dict[str, str]
]  # program of ``environment``, hashes of wheels; what it says


def install(
    board: Board, facts: Facts, sender: Sender, note: Callable[[str], None], download: Download | None = None
) -> None:
    """Make ``~/.cache/opadapt/venv`` on the board, with numpy and an onnxruntime not known bad there.

    ``note`` gets a line per step. Raises DeviceError with the board's environment as it was, also where somebody
    measures or installs there.
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
    run = partial(_run, sender, board, python, facts)
    with tempfile.TemporaryDirectory(prefix="opadapt-wheels-") as temporary:
        version = ".".join(map(str, python.version[:2]))
        note(f"download wheels for Python {version} on {platforms[0]}")
        wheels = fetch(facts, version, platforms, Path(temporary), download or pip_download)
        _check_room(board, sum(wheel.stat().st_size for wheel in wheels))
        hashes = _send(sender, board, run, wheels, note)
    note("unpack and try them")
    said = run(MAKE, hashes)
    note(f"numpy {said['numpy']}, onnxruntime {said['onnxruntime']}")


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
    if "No module named pip" in done.stderr:
        raise DeviceError(
            "the Python that runs opadapt has no pip to download wheels with",
            found=sys.executable,
            do=f"{sys.executable} -m ensurepip, or install pip there as you installed opadapt",
        )
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
    sender: Sender, board: Board, run: Run, wheels: Iterable[Path], note: Callable[[str], None]
) -> list[str]:
    """Send those that are not there yet; the SHA-256 of all."""
    named = {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in wheels}
    there = run(LOOK, [])
    for sha256, wheel in named.items():
        if sha256 not in there:
            note(f"send {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB)")
            sender.put(wheel.read_bytes(), f"{board.cache}/wheels/{sha256}")
    return list(named)


def _run(
    sender: Sender, board: Board, python: Interpreter, facts: Facts, program: str, hashes: Sequence[str]
) -> dict[str, str]:
    """Run a program there under the board's lock, with nothing of the user's own on its path; what it says, by key.
    Raises DeviceError with who has the lock, why onnxruntime does not run, or its last words."""
    command = [python.path, "-I", "-", board.cache, str(BOARD_LOCK), f"{whoami()}, installing", *hashes]
    done = sender.run(command, input=(LOCKED + program).encode(), timeout_s=COMMAND_TIMEOUT_S)
    lines = done.stdout.decode(errors="replace").splitlines()
    said = {key: value for key, _, value in (line.partition("\t") for line in lines)}
    last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    if "locked" in said:
        raise DeviceError(
            f"{facts.name}: another opadapt is measuring or installing on this board",
            found=said["locked"],
            do="wait for it to end",
        )
    if "failed" in said:
        version = said.get("trying", "of this version")
        raise DeviceError(
            f"onnxruntime {version} does not run on {facts.name}",
            found=f"exit code {said['failed']}" + (f", {last}" if last else ""),
            do=f"name it in a device file, bad_onnxruntime: [{{specifier: '=={version}', reason: ..., fix: ...}}], "
            "and install again: another version is taken then",
        )
    if done.code:
        raise DeviceError(
            "the environment cannot be made on the board",
            found=last or f"exit code {done.code}",
            do="remove something from its disk" if "No space left" in last else None,
        )
    return said

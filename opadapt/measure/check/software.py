"""Can a model run there at all: the system, the processor, Python and onnxruntime."""

from __future__ import annotations

from opadapt.measure.check.board import Board
from opadapt.measure.check.finding import SILENT, Case, Finding

PYTHONS = ((3, 9), (3, 13))  # oldest and newest that the agent is made for
MANYLINUX = (2, 27)  # glibc that the wheels of onnxruntime ask for
_64_BIT = "install the 64-bit image: there are no 32-bit wheels of onnxruntime"


def system(case: Case) -> Finding:
    board = case.board
    libc = "glibc {}.{}".format(*board.glibc) if board.glibc else "no glibc"
    found = f"{board.os or 'unknown system'}, {board.system}, {libc}"
    if _is_32_bit(board):
        return Finding("system", "bad", f"{found}, 32-bit programs", _64_BIT)
    works = board.python is not None and board.python.failure is None
    if works or case.here or case.phone or (board.glibc and board.glibc >= MANYLINUX):
        return Finding("system", "ok", found)
    remedy = (
        f"onnxruntime needs glibc {MANYLINUX[0]}.{MANYLINUX[1]}: install a newer system, or build it there"
    )
    return Finding("system", "bad", found, remedy)


def _is_32_bit(board: Board) -> bool:
    """Of the programs, whatever the kernel: uname says armv6l, armv7l or i686, or aarch64 with such programs."""
    return board.bits == 32 or board.machine.startswith("armv")


def architecture(case: Case) -> Finding:
    board, facts = case.board, case.facts
    lacking = [name for name in facts.extensions if name not in board.extensions]
    found = f"{board.machine}, {board.model or 'unknown processor'}"
    if facts.arch not in ("host", board.machine):
        other = f"{facts.name} is {facts.arch}: choose the type that fits (opadapt devices list)"
        return Finding("architecture", "bad", found, _64_BIT if _is_32_bit(board) else other)
    if lacking and board.extensions:
        remedy = f"lacks {', '.join(lacking)} of {facts.name}: choose another type, or describe this board"
        return Finding("architecture", "warn", found, remedy, f"opadapt devices init {case.address} NAME")
    return Finding("architecture", "ok", found)


def cores(case: Case) -> Finding:
    wanted, found = case.facts.cores, case.board.cores
    if found is None:
        return Finding("cores", "ok", SILENT)
    online = case.board.online or range(found)
    absent = [core for core in case.facts.pin_cores if core not in online]
    if absent:
        remedy = f"{case.facts.name} pins to core {absent[0]}, which is not there: change pin_cores"
        return Finding("cores", "bad", f"{found}", remedy)
    if wanted is not None and wanted != found:
        remedy = "bring the others up (cores offline, or maxcpus=/isolcpus= at boot), or choose another type"
        return Finding("cores", "warn", f"{found} of {wanted}", remedy)
    return Finding("cores", "ok", f"{found}")


def python(case: Case) -> Finding:
    python = case.board.python
    if python is None:
        if case.phone:
            remedy = (
                "Android ships no Python: name one in the device file, or measure over ssh (sshd in Termux)"
            )
            return Finding("python", "bad", f"no {case.facts.python}", remedy)
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


def onnxruntime(case: Case) -> Finding:
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
    if case.phone:
        return f"{case.facts.python} -m pip install onnxruntime numpy"
    if case.here:
        python = case.board.python
        return f"{python.path if python else 'python3'} -m pip install --upgrade onnxruntime numpy"
    return f"opadapt devices check {case.address} --install"

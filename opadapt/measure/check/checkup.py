"""``opadapt devices check``: reach a board, ask it, judge the answer, and measure a model against itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from opadapt.errors import ConfigError, DeviceError
from opadapt.measure.address import Address
from opadapt.measure.check.board import Board, board_of
from opadapt.measure.check.finding import Case, Finding
from opadapt.measure.check.install import install
from opadapt.measure.check.judge import judge, usable
from opadapt.measure.check.probe import LocalRunner, Sender, probe
from opadapt.measure.check.software import architecture, system
from opadapt.measure.device import Device
from opadapt.measure.facts import Facts
from opadapt.measure.opening import open_device
from opadapt.measure.timing import Timing, floor_of, median_latency
from opadapt.model.load import load
from opadapt.model.save import at_batch
from opadapt.resources import shipped

MODEL = "quickstart/fashion_cnn.onnx"
TIMING = Timing(min_runs=2)  # as runs measure, but for boards where 5 runs take much longer than a block
NOISY = 0.03  # the same model on the same Raspberry Pi 4 read 3 % apart on different days
Note = Callable[[str], None]


@dataclass(frozen=True)
class Reached:
    """A board that answers. ``fingerprint``: of its host key, verified; None where there is none."""

    sender: Sender
    fingerprint: str | None = None


@dataclass(frozen=True)
class Checkup:
    """What came out for one board. ``host``: where it is, None for this machine. ``board``: None if it did not say."""

    device: str
    host: str | None
    board: Board | None
    findings: tuple[Finding, ...]

    @property
    def bad(self) -> bool:
        return any(finding.verdict == "bad" for finding in self.findings)

    def values(self) -> dict[str, Any]:
        """For JSON: sizes in bytes, temperatures in degrees Celsius, clocks in MHz."""
        findings = [asdict(finding) for finding in self.findings]
        board = None if self.board is None else _values(self.board)
        return {"device": self.device, "host": self.host, "findings": findings, "board": board}


def _values(board: Board) -> dict[str, Any]:
    found = asdict(board)
    for name in ("base", "venv"):
        if found[name] is not None:
            found[name]["has"] = sorted(found[name]["has"])
    found["caches"] = None if board.caches is None else board.caches.model_dump()
    return found


@contextmanager
def _here(host: str | None) -> Iterator[Reached]:
    yield Reached(LocalRunner())


@contextmanager
def _over_ssh(host: str | None) -> Iterator[Reached]:
    from opadapt.measure.ssh.connection import Connection

    assert host is not None
    connection = Connection(host)
    try:
        yield Reached(connection, connection.fingerprint)  # connects: the host key is verified here
    finally:
        connection.close()


@contextmanager
def _over_adb(host: str | None) -> Iterator[Reached]:
    from opadapt.measure.adb.connection import Connection

    yield Reached(Connection(host))


REACH: Mapping[str, Callable[[str | None], Any]] = MappingProxyType(
    {"local": _here, "ssh": _over_ssh, "adb": _over_adb}
)


@contextmanager
def reach(facts: Facts, host: str | None) -> Iterator[Reached]:
    """A connection to a board. Raises DeviceError, also for a host key that is unknown or has changed."""
    if facts.transport not in REACH:
        raise ConfigError(
            f"{facts.name}: not a board to look at",
            expected=f"one reached by {' or '.join(REACH)}",
            found=f"transport '{facts.transport}'",
        )
    with REACH[facts.transport](host) as reached:
        yield reached


def look(reached: Reached, facts: Facts) -> Board:
    """What the board says. Raises DeviceError."""
    if facts.transport == "local":
        return board_of(probe(reached.sender, sys.executable, own=False))
    if facts.transport == "adb":
        from opadapt.measure.adb.transport import FOLDER

        return board_of(probe(reached.sender, facts.python, own=False, cache=FOLDER))
    return board_of(probe(reached.sender, facts.python))


def check(kind: str, facts: Facts, host: str | None, note: Note, installing: bool = False) -> Checkup:
    """Everything about one board of a type. ``kind``: how the user names the type (a path, perhaps).

    Raises DeviceError, ConfigError.
    """
    if installing and facts.transport != "ssh":
        raise ConfigError(
            f"{facts.name}: --install is for boards over ssh",
            found=f"transport '{facts.transport}'",
            do=f"{sys.executable} -m pip install --upgrade onnxruntime numpy"
            if facts.transport == "local"
            else None,
        )
    note(f"ask {host or facts.name}")
    address = str(Address(kind, (host,) if host is not None and host != facts.name else ()))
    with reach(facts, host) as reached:
        case = Case(look(reached, facts), facts, address, here=facts.transport == "local")
        if installing:
            _check_kind(case)
            install(case.board, facts, reached.sender, note)
            # the load is then the installation's own
            case = replace(case, board=replace(look(reached, facts), load=case.board.load))
        fingerprint = reached.fingerprint
    findings = judge(case)
    if fingerprint is not None:
        findings.insert(0, Finding("host key", "ok", fingerprint))
    if usable(findings):
        note("measure a small model against itself")
        findings.append(noise_on(kind, host))
    else:
        findings.append(Finding("noise floor", "bad", "not measured", "mend what is bad above"))
    return Checkup(facts.name, host, case.board, tuple(findings))


def _check_kind(case: Case) -> None:
    """Raises DeviceError for a board where no environment could ever do."""
    for finding in (system(case), architecture(case)):
        if finding.verdict == "bad":
            raise DeviceError(
                f"{case.address}: onnxruntime cannot be installed there",
                found=finding.found,
                do=finding.remedy,
            )


def unreached(facts: Facts, host: str | None, error: DeviceError) -> Checkup:
    """What came out for a board that could not be asked."""
    return Checkup(facts.name, host, None, (_failed("connection", error),))


def _failed(item: str, error: DeviceError) -> Finding:
    found = error.message + (f": {error.found.splitlines()[0]}" if error.found else "")
    return Finding(item, "bad", found, error.do or "mend that, and check again")


def noise_on(kind: str, host: str | None) -> Finding:
    """The noise floor, or why it could not be measured."""
    try:
        with open_device(kind, 1, host) as device:
            return noise(device)
    except DeviceError as error:
        return _failed("noise floor", error)


def noise(device: Device, timing: Timing | None = None) -> Finding:
    """The shipped model in two sessions, blocks alternating: how far apart they read. Raises DeviceError."""
    model = at_batch(load(shipped("configs", MODEL)), 1).SerializeToString()
    times = device.time([model, model], timing or TIMING)
    floor = floor_of(times)
    latency_s = median_latency(times, 0).value
    latency = f"{latency_s:.3g} s" if latency_s >= 1 else f"{latency_s * 1e3:.3g} ms"
    found = f"{100 * floor:.1f} % between two sessions of one model of {latency}"
    discarded = times.conditions.get("discarded_blocks") or 0
    if discarded:
        found += f", {discarded} blocks thrown away (throttling)"
    if floor <= NOISY and not discarded:
        return Finding("noise floor", "ok", found)
    remedy = "gains below it count as none: mend what is not ok above, keep the board idle, switch radios off"
    return Finding("noise floor", "warn", found, remedy)

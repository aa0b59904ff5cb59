"""Null devices with a will of their own, for the tests of fleets, and what a run decided and recorded."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.device import OnProcess
from opadapt.measure.facts import load_facts
from opadapt.measure.fleet import FleetDevice
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import MIN_BLOCKS, BlockTimes, Timing
from opadapt.report.data import Report

WAIT_S = 300.0  # for another thread


class Moody(NullDevice):
    """With ``crashes`` it fails on a third of all candidates, the same on every device; is gone after ``lives``
    requests. ``meeting``: its first request for candidates waits there."""

    def __init__(
        self, lives: int | None = None, crashes: bool = True, meeting: threading.Barrier | None = None
    ) -> None:
        super().__init__(load_facts("null"), 1)
        self.lives, self.crashes, self.meeting = lives, crashes, meeting
        self.requests = 0
        self.threads_seen: set[int] = set()

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        self.threads_seen.add(threading.get_ident())
        self.requests += 1
        searching = timing.blocks == MIN_BLOCKS
        if searching and self.meeting is not None:
            meeting, self.meeting = self.meeting, None
            meeting.wait(WAIT_S)
        if self.lives is not None and self.requests > self.lives:
            raise LostDevice("null: gone")
        if searching and self.crashes and any(hashlib.sha256(m).digest()[0] % 3 == 0 for m in models[1:]):
            raise DeviceError("null: time failed", found="killed by SIGILL", kind="signal")
        return super().time(models, timing, energy, on_process)


def fleet(*boards: NullDevice) -> FleetDevice:
    return FleetDevice(load_facts("null"), "abcdefgh"[: len(boards)], boards)


def choices(report: Report) -> tuple[object, ...]:
    """What a run decided and measured, without clocks, dates and boards."""
    return (
        report.latency,
        report.accuracy,
        report.points,
        report.replacements,
        report.front,
        report.attempts,
        report.refusals,
        report.training,
    )


def begun_again(folder: Path) -> int:
    """How many trials of a run were begun after they had been finished."""
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as db:
        ask = "SELECT COUNT(*) FROM attempt JOIN trial USING (stage, key) WHERE started_at > finished_at"
        (count,) = db.execute(ask).fetchone()
    return int(count)


def rows(folder: Path, without: Sequence[str] = ("board",)) -> dict[str, list[tuple[str, str]]]:
    """What a run recorded, as (key, result) in the order of recording, by stage."""
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as db:
        found = db.execute("SELECT stage, key, result FROM trial ORDER BY rowid").fetchall()
    stages: dict[str, list[tuple[str, str]]] = {}
    for stage, key, result in found:
        if stage not in without:
            stages.setdefault(stage, []).append((key, result))
    return stages

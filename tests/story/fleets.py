"""Null devices with a will of their own, for the tests of fleets, and what a run wrote into its journal."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.facts import load_facts
from opadapt.measure.fleet import FleetDevice
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import BlockTimes, Timing


def crashing(model: bytes) -> bool:
    """A third of all models, whichever device they are on."""
    return hashlib.sha256(model).digest()[0] % 3 == 0


class Moody(NullDevice):
    """Fails on some models as a crash in the runtime would; is gone after ``lives`` requests."""

    def __init__(self, lives: int | None = None, spared: Sequence[bytes] = ()) -> None:
        super().__init__(load_facts("null"), 1)
        self.left, self.requests, self.spared = lives, 0, spared
        self.threads_seen: set[int] = set()

    def time(self, models: Sequence[bytes], timing: Timing, energy: bool = False) -> BlockTimes:
        self.threads_seen.add(threading.get_ident())
        self.requests += 1
        if self.left is not None and self.requests > self.left:
            raise LostDevice("null: gone")
        if len(models) > 1 and any(map(crashing, models[1:])):
            raise DeviceError("null: time failed", found="killed by SIGILL")
        return super().time(models, timing, energy)


def fleet(*boards: NullDevice) -> FleetDevice:
    return FleetDevice(load_facts("null"), "abcdefgh"[: len(boards)], boards)


def rows(folder: Path, without: Sequence[str] = ("board",)) -> dict[str, list[tuple[str, str]]]:
    """What a run recorded, as (key, result) in the order of recording, by stage."""
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as db:
        found = db.execute("SELECT stage, key, result FROM trial ORDER BY rowid").fetchall()
    stages: dict[str, list[tuple[str, str]]] = {}
    for stage, key, result in found:
        if stage not in without:
            stages.setdefault(stage, []).append((key, result))
    return stages

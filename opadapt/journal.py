"""The journal of a run: one SQLite row per trial, written before the result is used, and arrays by content.

A run is a deterministic function of its experiment, its seed and the results in the journal. Resuming is
running again: every trial that the journal holds is read instead of paid for. Nothing else is state.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opadapt.errors import RunError

JOURNAL_FILE = "journal.sqlite"
SCHEMA_VERSION = 1
_SEEN_EVERY_S = 5.0  # what a kill may leave uncounted of work that says it is alive
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trial (
  stage TEXT NOT NULL, key TEXT NOT NULL, result TEXT NOT NULL, seconds REAL NOT NULL, finished_at REAL NOT NULL,
  PRIMARY KEY (stage, key));
CREATE TABLE IF NOT EXISTS attempt (stage TEXT NOT NULL, key TEXT NOT NULL, started_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS session (opened_at REAL NOT NULL, seen_at REAL NOT NULL);
"""


def content_key(*parts: object) -> str:
    """A short stable name of JSON-able parts (sha256, 24 hex digits)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read_only(file: Path) -> str:
    return f"{file.absolute().as_uri()}?mode=ro"


def noted(folder: Path, name: str) -> str | None:
    """What ``fix`` noted in the run folder under a name; None where it is no run folder or was not noted."""
    try:
        with contextlib.closing(sqlite3.connect(_read_only(folder / JOURNAL_FILE), uri=True)) as journal:
            row = journal.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else str(row[0])


@contextlib.contextmanager
def _storage(what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, zipfile.BadZipFile) as error:
        raise RunError(
            f"cannot {what} the run folder",
            found=str(error),
            do="free disk space or fix the permissions, then `opadapt resume` the run: nothing finished is lost",
        ) from error


class Journal:
    """Results by (stage, key). Safe against ``kill -9``: a trial is either wholly there or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _storage("open"):
            (folder / "weights").mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / JOURNAL_FILE, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_TABLES)
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
            (found,) = self._db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
            now = time.time()
            self._session = self._db.execute("INSERT INTO session VALUES (?, ?)", (now, now)).lastrowid
            self._seen_at = now
        if int(found) > SCHEMA_VERSION:
            raise RunError(
                f"{folder} was written by a newer opadapt",
                expected=f"journal schema {SCHEMA_VERSION} or older",
                found=found,
                do="use that opadapt",
            )

    def close(self) -> None:
        """Count the time up to now and let go of the file. Raises RunError where it cannot be written."""
        with contextlib.closing(self._db):
            self._seen()

    def fix(self, name: str, value: str) -> None:
        """Note what the run is about, once. Raises RunError where it was noted differently before."""
        with _storage("write"):
            self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
            (found,) = self._db.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
        if found != value:
            raise RunError(
                f"the {name} is not the one that {self.folder} was begun with",
                expected="the same settings, model and data",
                found="a change in one of them: recorded results would not fit",
                do="start a new run, or put back what was changed",
            )

    def find(self, stage: str, key: str) -> Any | None:
        """The result of a finished trial, or None."""
        with _storage("read"):
            row = self._db.execute(
                "SELECT result FROM trial WHERE stage = ? AND key = ?", (stage, key)
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def start(self, stage: str, key: str) -> None:
        """Note that a trial is being paid for."""
        with _storage("write"):
            self._db.execute("INSERT INTO attempt VALUES (?, ?, ?)", (stage, key, time.time()))
        self._seen()

    def alive(self) -> None:
        """Say that work goes on, so that its time counts even if this session is killed. Cheap: for use in loops."""
        if time.time() - self._seen_at >= _SEEN_EVERY_S:
            self._seen()

    def _seen(self) -> None:
        self._seen_at = time.time()
        with _storage("write"):
            self._db.execute("UPDATE session SET seen_at = ? WHERE rowid = ?", (self._seen_at, self._session))

    def spent_s(self) -> float:
        """Wall time of this run so far in seconds, over all its sessions, without the time between them."""
        with _storage("read"):
            (before,) = self._db.execute(
                "SELECT COALESCE(SUM(seen_at - opened_at), 0) FROM session WHERE rowid != ?", (self._session,)
            ).fetchone()
            (opened,) = self._db.execute(
                "SELECT opened_at FROM session WHERE rowid = ?", (self._session,)
            ).fetchone()
        return float(before) + time.time() - float(opened)

    def finish(self, stage: str, key: str, result: Any, seconds: float) -> None:
        """Record a trial's result. Raises RunError for a trial recorded before."""
        with _storage("write"):
            self._db.execute(
                "INSERT INTO trial VALUES (?, ?, ?, ?, ?)",
                (stage, key, json.dumps(result), seconds, time.time()),
            )
        self._seen()

    def once(self, stage: str, key: str, compute: Callable[[], Any]) -> Any:
        """The recorded result of a trial; computed, recorded and only then returned if there is none.

        Both ways the result has been through JSON, so that a resumed run sees what the first one saw.
        """
        if (found := self.find(stage, key)) is not None:
            return found
        self.start(stage, key)
        began = time.monotonic()
        result = compute()
        self.finish(stage, key, result, time.monotonic() - began)
        return json.loads(json.dumps(result))

    def counts(self) -> dict[str, tuple[int, int, float]]:
        """Per stage: trials finished, trials begun, seconds spent in finished ones."""
        with _storage("read"):
            rows = self._db.execute(
                "SELECT stage, COUNT(*), SUM(seconds) FROM trial GROUP BY stage ORDER BY MIN(finished_at)"
            ).fetchall()
            begun = dict(self._db.execute("SELECT stage, COUNT(*) FROM attempt GROUP BY stage").fetchall())
        return {stage: (n, begun.get(stage, n), seconds) for stage, n, seconds in rows}

    def attempts(self, stage: str) -> int:
        """How many trials of a stage were begun."""
        (found,) = self._db.execute("SELECT COUNT(*) FROM attempt WHERE stage = ?", (stage,)).fetchone()
        return int(found)

    def results(self, stage: str) -> Iterator[tuple[str, Any]]:
        """All (key, result) of a stage in the order they were finished."""
        rows = self._db.execute(
            "SELECT key, result FROM trial WHERE stage = ? ORDER BY finished_at", (stage,)
        )
        for key, result in rows.fetchall():
            yield key, json.loads(result)

    def borrow(self, other: Path, stages: Iterable[str]) -> int:
        """Copy the finished trials of some stages from another run's folder, with the arrays that they name by
        ``weights``, at no cost; returns how many were new. What cannot be read there is left out."""
        taken = 0
        with contextlib.closing(sqlite3.connect(_read_only(other / JOURNAL_FILE), uri=True)) as theirs:
            for stage in stages:
                rows = theirs.execute("SELECT key, result FROM trial WHERE stage = ?", (stage,)).fetchall()
                for key, text in rows:
                    if self.find(stage, key) is None and self._borrow_arrays(other, json.loads(text)):
                        self.finish(stage, key, json.loads(text), 0.0)
                        taken += 1
        return taken

    def _borrow_arrays(self, other: Path, result: Any) -> bool:
        digest = result.get("weights") if isinstance(result, dict) else None
        if digest is None:
            return True
        theirs, mine = (folder / "weights" / f"{digest}.npz" for folder in (other, self.folder))
        if not mine.exists() and theirs.exists():
            with _storage("write weights into"):
                temporary = mine.with_suffix(f".{os.getpid()}.tmp")
                shutil.copyfile(theirs, temporary)
                temporary.replace(mine)
        return mine.exists()

    def save_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> str:
        """Store arrays under the hash of their content; returns the hash."""
        buffer = io.BytesIO()
        names = sorted(arrays)
        # Positional keys: an initializer's name may hold characters a zip member must not.
        members: dict[str, Any] = {f"a{i}": np.asarray(arrays[n]) for i, n in enumerate(names)}
        np.savez(buffer, names=np.array(names), **members)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
        path = self.folder / "weights" / f"{digest}.npz"
        if not path.exists():
            with _storage("write weights into"):
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                with temporary.open("wb") as file:
                    file.write(buffer.getvalue())
                    file.flush()
                    os.fsync(file.fileno())  # whole before it has its name, even if the power fails
                temporary.replace(path)
        return digest

    def load_arrays(self, digest: str) -> dict[str, NDArray[Any]]:
        """The arrays stored under a hash. Raises RunError if they are gone or damaged."""
        path = self.folder / "weights" / f"{digest}.npz"
        with _storage("read weights of"), np.load(path, allow_pickle=False) as found:
            return {str(name): found[f"a{i}"] for i, name in enumerate(found["names"])}

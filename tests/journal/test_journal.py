"""The journal: a trial is paid for once, survives a kill, and arrays come back by content."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opadapt.errors import RunError
from opadapt.journal import JOURNAL_FILE, Journal, content_key


def test_once_computes_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    calls = []
    for _ in range(3):
        found = journal.once("latency", "k", lambda: calls.append(1) or {"s": 0.25, "t": (1, 2)})
        assert found == {"s": 0.25, "t": [1, 2]}  # as JSON gives it, the first time too
    assert len(calls) == 1
    assert journal.counts()["latency"][:2] == (1, 1)


def test_a_finished_trial_cannot_be_recorded_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.finish("latency", "k", 1, 0.0)
    with pytest.raises(RunError, match="cannot write"):
        journal.finish("latency", "k", 2, 0.0)
    assert journal.find("latency", "k") == 1


def test_what_raises_is_not_recorded(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        journal.once("distil", "k", fail)
    assert journal.find("distil", "k") is None
    assert journal.once("distil", "k", lambda: 7) == 7


def test_kill_loses_at_most_the_trial_in_flight(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from opadapt.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "for i in range(50): j.once('t', str(i), lambda: i)\n"
        "j.once('t', 'last', lambda: (print('ready', flush=True), time.sleep(60)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    journal = Journal(tmp_path)
    assert [journal.find("t", str(i)) for i in range(50)] == list(range(50))
    assert journal.find("t", "last") is None
    assert journal.counts()["t"][:2] == (50, 51)


def test_arrays_by_content(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    arrays = {"a/b:0": np.arange(6, dtype=np.float32).reshape(2, 3), "..": np.float32([1.5])}
    name = journal.save_arrays(arrays)
    assert journal.save_arrays(dict(reversed(arrays.items()))) == name
    found = journal.load_arrays(name)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in arrays.items())
    assert not list((tmp_path / "weights").glob("*.tmp"))


def test_missing_arrays_are_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="weights"):
        Journal(tmp_path).load_arrays("0" * 32)


def test_a_damaged_journal_is_a_run_error(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path)) as journal:
        with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL_FILE)) as other:
            other.execute("DROP TABLE trial")
        with pytest.raises(RunError, match="cannot read the run folder"):
            journal.counts()


def test_damaged_arrays_are_a_run_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    name = journal.save_arrays({"a": np.ones(1000, np.float32)})
    file = tmp_path / "weights" / f"{name}.npz"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(RunError, match="weights"):
        journal.load_arrays(name)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(RunError, match="newer opadapt"):
        Journal(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    with pytest.raises(RunError, match="cannot open"):
        Journal(tmp_path / "run")


def test_content_key_is_stable_and_sensitive() -> None:
    assert content_key("a", 1, {"x": 1, "y": 2}) == content_key("a", 1, {"y": 2, "x": 1})
    assert content_key("a", 1) != content_key("a", 2)

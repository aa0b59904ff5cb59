"""The time that a run has taken: what a killed or interrupted session worked counts, pauses do not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from opadapt import journal as journal_module
from opadapt.journal import Journal


class Clock:
    """Seconds that pass when they are told to."""

    now = 1_000_000.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = SimpleNamespace(time=lambda: self.now, monotonic=lambda: self.now)
        monkeypatch.setattr(journal_module, "time", clock)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_time_of_a_killed_session_that_was_alive_counts(clock: Clock, tmp_path: Path) -> None:
    killed = Journal(tmp_path)
    killed.start("finetune", "k")
    for _ in range(120):
        clock.now += 1
        killed.alive()
    clock.now += 5000
    assert 115 <= Journal(tmp_path).spent_s() <= 120


def test_saying_it_often_costs_nothing(clock: Clock, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    before = journal._db.total_changes
    for _ in range(1000):
        clock.now += 0.01
        journal.alive()
    assert 1 <= journal._db.total_changes - before <= 2


def test_closing_counts_the_time_up_to_then(clock: Clock, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    clock.now += 40
    journal.close()
    clock.now += 5000
    again = Journal(tmp_path)
    clock.now += 2
    assert again.spent_s() == pytest.approx(42)

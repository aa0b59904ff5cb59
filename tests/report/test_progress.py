"""Progress: plain lines at a bounded rate, and the live display."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from opadapt.report.progress import LiveProgress, PlainProgress, duration


class _Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def _plain(clock: _Clock) -> tuple[PlainProgress, list[str]]:
    lines: list[str] = []
    return PlainProgress(lines.append, interval_s=5, clock=clock, stamp=lambda: "12:00:00"), lines


def test_plain_lines_come_at_most_every_few_seconds(clock: _Clock) -> None:
    progress, lines = _plain(clock)
    progress.stage("train", 100)
    for done in range(1, 101):
        clock.now_s += 0.25
        progress.advance(done, "loss 0.5")
    assert lines[0] == "12:00:00 train (100 steps)"
    assert lines[1] == "12:00:00 train: 20/100, loss 0.5, about 20s left"
    assert len(lines) == 1 + 5  # 25 seconds of work


def test_plain_lines_grow_rare_in_a_stage_that_takes_long(clock: _Clock) -> None:
    progress, lines = _plain(clock)
    progress.stage("train", 3600)
    for done in range(1, 3601):
        clock.now_s += 1
        progress.advance(done)
    assert 40 < len(lines) < 120  # an hour; one line in five seconds would be 720


def test_notes_and_stages_are_never_held_back(clock: _Clock) -> None:
    progress, lines = _plain(clock)
    progress.stage("one")
    progress.note("first\nnote \x1b[31m")
    progress.stage("two", 3)
    assert lines == ["12:00:00 one", "12:00:00 first note \\x1b[31m", "12:00:00 two (3 steps)"]


def test_time_left_of_a_resumed_stage_counts_own_work_only(clock: _Clock) -> None:
    progress, lines = _plain(clock)
    progress.stage("train", 100)
    clock.now_s = 6
    progress.advance(90)  # read from the journal
    clock.now_s = 16
    progress.advance(95)
    assert lines[1:] == ["12:00:00 train: 90/100", "12:00:00 train: 95/100, about 10s left"]


def test_advance_before_a_stage_is_an_error(clock: _Clock) -> None:
    with pytest.raises(ValueError, match="before any stage"):
        _plain(clock)[0].advance(1)
    with pytest.raises(ValueError, match="before any stage"):
        LiveProgress(Console(file=io.StringIO())).advance(1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (75, "1m15s"), (3600, "1h00m"), (7384, "2h03m"), (-1, "0s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_live_display_shows_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with LiveProgress(console) as progress:
        progress.stage("generation 1 of [/red]", 4)
        progress.note("kept [/x]")
        progress.stage("last")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "generation 1 of [/red]" in text
    assert "kept [/x]" in text


def test_live_display_leaves_an_unfinished_stage_unfinished_when_interrupted() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with pytest.raises(KeyboardInterrupt), LiveProgress(console) as progress:
        progress.stage("train", 4)
        progress.advance(2, "[bold]timed")
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().rsplit("train", 1)[1]
    assert "2/4" in last and "[bold]timed" in last


def test_a_stage_with_nothing_left_to_do_counts_nothing() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with LiveProgress(console) as progress:
        progress.stage("known already", 4)
        progress.stage("the rest", 2)
        progress.advance(2)
    assert isinstance(console.file, io.StringIO)
    rows = console.file.getvalue().splitlines()
    known, rest = (next(row for row in reversed(rows) if n in row) for n in ("known already", "the rest"))
    assert "✓" in known and "0/4" not in known
    assert "✓" in rest and "2/2" in rest


def test_live_display_fits_80_columns_whatever_the_names() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with pytest.raises(KeyboardInterrupt), LiveProgress(console) as progress:
        progress.stage("generation 0 of " + "/layer1/layer1.0/conv1/Conv" * 4, 1000)
        progress.advance(1)
        progress.advance(857, "timed " * 20)
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    row = next(line for line in reversed(console.file.getvalue().splitlines()) if "857" in line)
    assert "857/1000" in row and "0:00:00" in row and "left" in row
    assert len(row.rsplit("\r", 1)[-1].replace("\x1b[2K", "")) <= 80


def test_parts_have_stages_of_their_own(clock: _Clock) -> None:
    progress, lines = _plain(clock)
    with progress.part() as first, progress.part() as second:
        first.stage("first", 10)
        second.stage("second", 4)
        clock.now_s += 6
        first.advance(1)
        second.advance(1)
    assert lines[2:] == [
        "12:00:00 first: 1/10, about 54s left",
        "12:00:00 second: 1/4, about 18s left",
    ]


def test_parts_of_the_live_display_are_lines_of_their_own() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with pytest.raises(KeyboardInterrupt), LiveProgress(console) as progress:
        progress.stage("before", 2)
        with progress.part() as first, progress.part() as second:
            first.stage("first", 10)
            second.stage("second", 4)
            second.advance(1)
            first.advance(5)
            raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    rows = console.file.getvalue().splitlines()
    last = {
        name: next(row for row in reversed(rows) if name in row) for name in ("before", "first", "second")
    }
    assert len(set(last.values())) == 3
    assert "✓" in last["before"] and "5/10" in last["first"] and "1/4" in last["second"]

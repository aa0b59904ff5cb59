"""What a run is doing and how long is left: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from opadapt.report.printable import printable, short

Clock = Callable[[], float]  # seconds, monotonic


class Progress(Protocol):
    """What the story tells its reader. Texts are plain: whatever they hold is shown as it is."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins (and the one before it has ended); ``total`` steps of work, if that is known."""

    def advance(self, done: int, detail: str = "") -> None:
        """``done`` steps of the current stage are finished (not: that many more)."""

    def note(self, text: str) -> None:
        """Something worth keeping on the screen: always shown."""

    def part(self) -> AbstractContextManager[Progress]:
        """Stages of their own for work that goes on beside other work."""


class Silent:
    """Shows nothing: for tests and for use as a library."""

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, done: int, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def part(self) -> AbstractContextManager[Progress]:
        return nullcontext(self)


@dataclass
class _Stage:
    """The current stage and the pace it goes at."""

    name: str
    total: int | None
    started_s: float
    done: int = 0
    first_done: int | None = None  # steps done at the first report: resumed work says nothing about pace

    def left_s(self, now_s: float) -> float | None:
        """Seconds left at the pace so far, or None while nothing is known."""
        since = self.done - (self.first_done or 0)
        if self.total is None or since <= 0:
            return None
        return (now_s - self.started_s) / since * max(0, self.total - self.done)

    def advance(self, done: int, now_s: float) -> None:
        if self.first_done is None:
            # one step reported first was done by us; many at once were there before (a resumed run)
            self.first_done = 0 if done <= 1 else done
            self.started_s = now_s if done > 1 else self.started_s
        self.done = done


def duration(seconds: float) -> str:
    """``75`` -> ``"1m15s"``; whole seconds, at most two units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class PlainProgress:
    """Timestamped lines, for logs: stages and notes at once, steps at most one in ``interval_s`` seconds,
    and in a long stage one in twenty of those that it has taken."""

    def __init__(
        self,
        write: Callable[[str], None],
        interval_s: float = 5.0,
        clock: Clock = time.monotonic,
        stamp: Callable[[], str] = lambda: datetime.now().strftime("%H:%M:%S"),
    ) -> None:
        self._write, self._interval_s, self._clock, self._stamp = write, interval_s, clock, stamp
        self._stage: _Stage | None = None
        self._written_s = -interval_s

    def stage(self, name: str, total: int | None = None) -> None:
        self._stage = _Stage(name, total, self._clock())
        self._written_s = self._clock()
        self._line(name + (f" ({total} steps)" if total else ""))

    def advance(self, done: int, detail: str = "") -> None:
        stage, now_s = self._stage, self._clock()
        if stage is None:
            raise ValueError("advance before any stage")
        stage.advance(done, now_s)
        if now_s - self._written_s < max(self._interval_s, (now_s - stage.started_s) / 20):
            return
        self._written_s = now_s
        left_s = stage.left_s(now_s)
        parts = [f"{stage.name}: {done}" + (f"/{stage.total}" if stage.total else ""), detail]
        if left_s is not None:
            parts.append(f"about {duration(left_s)} left")
        self._line(", ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        self._line(text)

    def part(self) -> AbstractContextManager[Progress]:
        return nullcontext(PlainProgress(self._write, self._interval_s, self._clock, self._stamp))

    def _line(self, text: str) -> None:
        self._write(f"{self._stamp()} {printable(' '.join(text.split()))}")


class _LivePart:
    """A line per finished stage and a bar for the current one, among those of others in one display."""

    def __init__(self, bars: Bars, clock: Clock) -> None:
        self._bars, self._clock = bars, clock
        self._stage: _Stage | None = None
        self._task: TaskID | None = None
        # what the columns of fixed width leave is shared by the name and the detail
        spare = max(30, bars.console.width - 46)
        self._name_length, self._detail_length = spare * 2 // 3, spare // 3

    def stage(self, name: str, total: int | None = None) -> None:
        self.finish()
        self._stage = _Stage(name, total, self._clock())
        self._task = self._bars.add_task(
            "",
            total=total,
            name=self._fitted(name, self._name_length),
            count=f"0/{total}" if total else "",
            left="",
            detail="",
        )

    def advance(self, done: int, detail: str = "") -> None:
        if self._stage is None or self._task is None:
            raise ValueError("advance before any stage")
        stage, now_s = self._stage, self._clock()
        stage.advance(done, now_s)
        left_s = stage.left_s(now_s)
        self._bars.update(
            self._task,
            completed=done,
            count=f"{done}/{stage.total}" if stage.total else str(done),
            left="" if left_s is None else f"{duration(left_s)} left",
            detail=self._fitted(detail, self._detail_length),
        )

    def note(self, text: str) -> None:
        self._bars.console.print(printable(text), markup=False, highlight=False)

    @contextmanager
    def part(self) -> Iterator[Progress]:
        self.finish()
        made = _LivePart(self._bars, self._clock)
        yield made
        made.finish()

    def finish(self) -> None:
        """The current stage has ended; where something failed it is left as it stands."""
        if self._stage is not None and self._task is not None:
            total = self._stage.total or max(1, self._stage.done)
            self._bars.update(self._task, total=total, completed=total, left="", detail="")
            if not self._stage.done:  # nothing was left to do: all of it was known, or given up
                self._bars.update(self._task, count="")

    @staticmethod
    def _fitted(text: str, length: int) -> str:
        return escape(short(printable(text), length))


class LiveProgress(_LivePart, AbstractContextManager["LiveProgress"]):
    """A rich live display."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.fields[name]}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
        )
        super().__init__(bars, clock)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        self._bars.stop()

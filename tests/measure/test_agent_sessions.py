"""What an agent does about hosts that fall silent, sessions that change hands, and a lock that is no file."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from opadapt.measure import agent
from opadapt.measure.agent import Agent, BoardLock
from opadapt.measure.transport import AGENT

HASH = "a" * 64


def options(**given: object) -> argparse.Namespace:
    none = {"token": None, "linger": 0.0, "silence": None, "board_lock": None, "who": "somebody"}
    return argparse.Namespace(**{**none, **given})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the agent's file, which the sessions lie beside."""
    place = tmp_path / "agent.py"
    shutil.copyfile(AGENT, place)
    monkeypatch.setattr(agent, "HERE", place)
    return tmp_path


def test_empty_lines_are_no_requests_and_silence_is_the_end() -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, str(AGENT), "--silence", "0.3"], stdin=pipe, stdout=pipe)
    assert process.stdin is not None and process.stdout is not None
    request = b'{"id": 7, "do": "forget", "paths": []}\n'
    process.stdin.write(b"\n\n" + request + b"\n\n" + request + b"\n")
    process.stdin.flush()
    answers = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert answers == [{"id": 7, "removed": 0}] * 2
    assert process.stdout.readline() == b""  # it ends although its stdin is open
    assert process.wait(20) == 0
    process.stdin.close(), process.stdout.close()


class Clock:
    """What an agent sees of the time and of its stdin: a line comes at each of these seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines_at: Sequence[float]) -> None:
        self.now, self.lines_at = 0.0, list(lines_at)
        monkeypatch.setattr(agent, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(agent, "select", SimpleNamespace(select=self.select))

    def select(
        self, read: list[int], write: list[int], other: list[int], limit_s: float | None
    ) -> tuple[list[int], list[int], list[int]]:
        until = float("inf") if limit_s is None else self.now + limit_s
        if self.lines_at and self.lines_at[0] <= until:
            self.now = max(self.now, self.lines_at.pop(0))
            return [0], [], []
        assert until < float("inf"), "it waits for ever"
        self.now = until
        return [], [], []


def test_an_agent_listens_as_long_as_there_are_signs_of_life(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, lines_at=[50, 100, 150])
    waiting = Agent(options(token="t", silence=60.0))
    assert [waiting.readable() for _ in range(3)] == [[0]] * 3 and clock.now == 150
    assert waiting.readable(limit_s=40) == [] and clock.now == 190  # the child's time limit is another thing
    with pytest.raises(agent._Closed):
        waiting.readable()
    assert clock.now == 210


def test_what_came_while_the_agent_did_not_listen_counts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lines_at=[10])
    waiting = Agent(options(token="t", silence=60.0))
    clock.now = 100  # it was checking an upload
    assert waiting.readable() == [0]


def test_an_agent_that_was_not_told_a_limit_has_none(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lines_at=[100_000])
    assert Agent(options(token="t")).readable() == [0] and clock.now == 100_000


def test_an_agent_that_comes_while_another_removes_its_files_is_promised_none_of_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock may be the first of the files to go, so that the other one can take it."""
    leaving = Agent(options(token="t"))
    (leaving.folder / HASH).write_bytes(b"model")
    real, removing, coming = shutil.rmtree, [], []

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        removing.append(path)
        if len(removing) == 1:
            (Path(path) / "held").unlink()
            coming.append(Agent(options(token="t")))
        real(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(agent.shutil, "rmtree", rmtree)
        leaving.remove()
    (there,) = coming
    assert [name for name in there.files if not (there.folder / name).exists()] == []
    assert there.folder.is_dir() and there.held is not None
    leaving.remove()  # as it does after a goodbye
    assert there.folder.is_dir()
    there.remove()
    assert list((here / "sessions").iterdir()) == []


def test_sweeping_takes_a_session_away_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = here / "sessions" / "t"
    abandoned.mkdir(parents=True)
    (abandoned / HASH).write_bytes(b"model")
    real, seen = shutil.rmtree, []

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        seen.append(abandoned.exists())
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(agent.shutil, "rmtree", rmtree)
    sweeping = Agent(options(token="other"))
    assert seen == [False] and not abandoned.exists()
    sweeping.remove()


@pytest.mark.parametrize("others", [False, True], ids=["ours", "another user's"])
def test_a_fifo_in_the_place_of_the_lock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    path, real = tmp_path / "board.lock", os.open
    os.mkfifo(path)

    def opened(name: Path, flags: int, mode: int = 0o777) -> int:
        assert name != path or flags & os.O_NONBLOCK, "it would wait for somebody to write"
        if others and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, flags, mode)

    monkeypatch.setattr(agent.os, "open", opened)
    with pytest.raises(OSError, match="not a regular file"):
        BoardLock(path, "us").take()

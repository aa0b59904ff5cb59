"""Which boards the tests of the emulated board use: their own that live, each by one test at a time. No board is
needed for that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import emulated
from boards.emulated import aliases, taken

Boards = Callable[..., None]


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boards:
    """Pretend that there are boards of these aliases, of which those on the given ports are the tests' and live."""
    script = tmp_path / "emulated_board"
    script.write_text(f'#!/bin/sh\n[ "$1" = pid ] && [ -e "{tmp_path}/lives-$2" ] && echo 4321\n')
    script.chmod(0o755)
    monkeypatch.setattr(emulated, "SCRIPT", script)

    def pretend(*names: str, ours: str, living: str) -> None:
        (tmp_path / "home" / ".ssh").mkdir(parents=True)
        text = "".join(f"Host {name}\n  HostName 127.0.0.1\n" for name in names)
        (tmp_path / "home" / ".ssh" / "config").write_text(text)
        for port in living.split():
            (tmp_path / f"lives-{port}").touch()
        monkeypatch.setenv("OPADAPT_TEST_BOARD", str(tmp_path / "home"))
        monkeypatch.setenv("OPADAPT_TEST_PORTS", ours)

    return pretend


def test_boards_of_others_are_left_alone(boards: Boards) -> None:
    boards("emulated-2", "emulated-3", "bare-4", "emulated-5", ours="3 4", living="2 3 4 5")
    assert aliases("emulated") == ["emulated-3"] and aliases("bare") == ["bare-4"]
    with taken() as (alias,):
        assert alias == "emulated-3"


def test_a_dead_board_is_passed_over(boards: Boards) -> None:
    boards("emulated-2", "emulated-3", ours="2 3", living="3")
    with taken() as (alias,):
        assert alias == "emulated-3"


@pytest.mark.parametrize(("count", "living"), [(1, ""), (2, "3")])
def test_too_few_that_live_are_a_failure_that_names_the_dead(boards: Boards, count: int, living: str) -> None:
    boards("emulated-2", "emulated-3", ours="2 3", living=living)
    with pytest.raises(pytest.fail.Exception, match=r"dead: emulated-2"), taken(count):
        pass


def test_a_board_that_its_test_has_ended_for_a_while_is_waited_for(boards: Boards, tmp_path: Path) -> None:
    boards("emulated-2", ours="2", living="2")
    found: list[str] = []

    def other() -> None:
        with emulated.ExitStack() as stack:
            found.extend(emulated._locked(stack, ["emulated-2"], 1))

    with taken():
        (tmp_path / "lives-2").unlink()
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and not found
        (tmp_path / "lives-2").touch()
    waiting.join(60)
    assert found == ["emulated-2"]


def test_a_kind_of_board_that_the_tests_have_none_of_is_skipped(boards: Boards) -> None:
    boards("emulated-2", ours="2", living="2")
    with pytest.raises(pytest.skip.Exception, match="0 of 1 boards 'bare'"), taken(kind="bare"):
        pass


@pytest.mark.parametrize(("ours", "told"), [("", "OPADAPT_TEST_PORTS"), ("2 3", "no boards on ports 3")])
def test_ports_that_lead_nowhere_are_a_failure(boards: Boards, ours: str, told: str) -> None:
    boards("emulated-2", ours=ours, living="2")
    with pytest.raises(pytest.fail.Exception, match=told):
        aliases("emulated")

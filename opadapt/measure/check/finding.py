"""What a check says: a verdict, what was found, and the remedy; and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opadapt.measure.check.board import Board
from opadapt.measure.facts import Facts

Verdict = Literal["ok", "warn", "bad"]
SILENT = "the system does not tell"


@dataclass(frozen=True)
class Finding:
    """``remedy``: what to do, as a sentence. ``command``: the command that does it, on the board if it says so."""

    item: str
    verdict: Verdict
    found: str
    remedy: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Case:
    """What a check looks at. ``address``: how the user names the board; ``here``: it is this machine."""

    board: Board
    facts: Facts
    address: str = ""
    here: bool = False

    @property
    def phone(self) -> bool:
        """Whether it is an Android phone: no sudo, no glibc, no package manager."""
        return self.facts.transport == "adb"

    def where(self, command: str) -> str:
        """What to do about a command that has to be given on the board."""
        return command if self.here else f"on the board, {command}"

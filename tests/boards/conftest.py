"""Boards to connect to: a real OpenSSH server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boards.sshd_server import Sshd, Wire, why_not


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A board that the alias ``board`` leads to, for a user whose home is ``sshd.client``."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    server = Sshd(tmp_path / "board")
    monkeypatch.setenv("HOME", str(server.client))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def wire(sshd: Sshd) -> Iterator[Wire]:
    """The alias leads through this wire."""
    made = Wire(sshd.port)
    sshd.trust(made.port)
    sshd.reach(made.port)
    yield made
    made.close()

"""A whole run on a board over SSH, to which something happens in the middle. It goes on, or it stops with an error that
says why and is resumed when that is mended; either way nothing that was measured is lost or paid for twice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from boards.sshd_server import ALIAS, Sshd, Wire, filled
from story.fleets import begun_again
from story.tiny import rewrite_for, write_experiment
from typer.testing import CliRunner

from opadapt.cli import app
from opadapt.measure.ssh import connection, transport
from opadapt.measure.ssh.transport import SshTransport

TIMING = "{blocks: 6, min_block_s: 0.002, min_runs: 2, warmup_s: 0.005, profile_s: 0.01}"
FACTS = f"name: loop\ndescription: loopback\ntransport: ssh\nhost: {ALIAS}\narch: host\n"


def measured(folder: Path) -> list[tuple[str, str]]:
    """What is known of candidates' latencies, in the order in which it was recorded."""
    path = folder / "journal.sqlite"
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path)) as db:
        ask = "SELECT key, result FROM trial WHERE stage = 'latency' AND result IS NOT NULL ORDER BY rowid"
        return db.execute(ask).fetchall()
    return []


class Bench:
    """A board behind a wire, and a run on it that is disturbed once it has its first results."""

    def __init__(self, sshd: Sshd, wire: Wire, folder: Path) -> None:
        self.sshd, self.wire = sshd, wire
        self.mends = contextlib.ExitStack()  # closed when what has happened is to be put right
        self.struck = False
        self.before_each: Callable[[], None] = lambda: None  # before whatever the board is asked from then on
        (folder / "loop.yaml").write_text(f"{FACTS}python: {sshd.python}\n")
        self.experiment = write_experiment(folder / "story")
        rewrite_for("loop", TIMING, self.experiment)
        self.run_folder = folder / "story/runs/story"

    def disturb(self, strike: Callable[[Bench], None], patch: pytest.MonkeyPatch) -> None:
        """Strike when the first request to measure comes after the first results."""
        asked, put = SshTransport.request, SshTransport.put

        def request(self_: SshTransport, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
            if message["do"] == "time" and not self.struck and len(measured(self.run_folder)) >= 2:
                self.struck = True
                strike(self)
            self.before_each()
            return asked(self_, message, timeout_s)

        def put_(self_: SshTransport, data: bytes, path: str) -> None:
            self.before_each()
            put(self_, data, path)

        patch.setattr(SshTransport, "request", request)
        patch.setattr(SshTransport, "put", put_)


def cut(bench: Bench) -> None:
    bench.wire.cut(for_good=True)
    bench.mends.callback(bench.wire.mend)


def kill_agent(bench: Bench) -> None:
    for pid in bench.sshd.agents():
        os.kill(pid, signal.SIGKILL)


def restart_server(bench: Bench) -> None:
    bench.sshd.stop()
    bench.sshd.start()


def replace_board(bench: Bench) -> None:
    bench.sshd.replace_host_key()

    def accept() -> None:
        (bench.sshd.client / ".ssh/known_hosts").unlink()
        bench.sshd.trust(bench.wire.port)

    bench.mends.callback(accept)


def fill_disk(bench: Bench) -> None:
    bench.before_each = bench.mends.enter_context(filled(bench.sshd.cache))

    def leave() -> None:
        bench.before_each = lambda: None

    bench.mends.callback(leave)


def lock_board(bench: Bench) -> None:
    """Another host has the board before the agent, which was killed, can begin anew."""
    kill_agent(bench)
    fcntl.flock(bench.mends.enter_context(bench.sshd.lock.open("r+")), fcntl.LOCK_EX)


# what happens -> what the run stops with; None: it goes on
FAULTS: dict[Callable[[Bench], None], str | None] = {
    cut: "nothing listens on that port",
    kill_agent: None,
    restart_server: None,
    replace_board: "HOST KEY HAS CHANGED",
    fill_disk: "no space left",
    lock_board: "another opadapt is measuring on this board",
}


@pytest.fixture
def bench(
    sshd: Sshd, wire: Wire, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    monkeypatch.setattr(connection, "PATIENCE_S", 0.5)
    monkeypatch.setattr(transport, "LINGER_S", 2.0)
    monkeypatch.chdir(tmp_path)
    if request.node.callspec.params["fault"] is fill_disk:
        request.getfixturevalue("small_disk")
    made = Bench(sshd, wire, tmp_path)
    with made.mends:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_run_goes_on_or_stops_and_is_resumed(
    bench: Bench, fault: Callable[[Bench], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.disturb(fault, monkeypatch)
    done = CliRunner().invoke(app, ["run", "--config", str(bench.experiment)])
    assert bench.struck and "Traceback" not in done.output
    reason = FAULTS[fault]
    if reason is not None:
        assert done.exit_code == 2, done.output
        assert reason in done.stderr and f"opadapt resume {bench.run_folder}" in done.stderr
        known = measured(bench.run_folder)
        assert len(known) >= 2
        bench.sshd.wait_until_clean()

        bench.mends.close()
        done = CliRunner().invoke(app, ["resume", str(bench.run_folder)])
        after = measured(bench.run_folder)
        assert after[: len(known)] == known and len(after) > len(known)
    assert done.exit_code == 0, done.output
    assert begun_again(bench.run_folder) == 0
    onnx.checker.check_model(onnx.load(bench.run_folder / "adapted.onnx"))
    bench.sshd.wait_until_clean()

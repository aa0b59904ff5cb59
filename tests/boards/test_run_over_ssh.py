"""A whole run on a board over SSH, whose connection goes for good in the middle."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

import onnx
import pytest
from boards.sshd_server import ALIAS, Sshd, Wire
from story.tiny import write_experiment
from typer.testing import CliRunner

from opadapt.cli import app
from opadapt.measure.ssh import connection, transport


def measured(folder: Path) -> list[tuple[str, str]]:
    """What is known of candidates' latencies, in the order in which it was recorded."""
    path = folder / "journal.sqlite"
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path)) as db:
        ask = "SELECT key, result FROM trial WHERE stage = 'latency' AND result IS NOT NULL ORDER BY rowid"
        return db.execute(ask).fetchall()
    return []


@pytest.mark.slow
def test_a_run_stops_with_the_board_and_goes_on_with_it(
    sshd: Sshd, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE_S", 0.5)
    monkeypatch.setattr(transport, "LINGER_S", 2.0)
    monkeypatch.chdir(tmp_path)
    facts = f"name: loop\ndescription: loopback\ntransport: ssh\nhost: {ALIAS}\narch: host\npython: {sshd.python}\n"
    Path("loop.yaml").write_text(facts)
    experiment = write_experiment(tmp_path / "story")
    text = experiment.read_text().replace('device: "null"', "device: loop")
    experiment.write_text(text + "timing: {blocks: 6, min_block_s: 0.005, warmup_s: 0.01}\n")
    folder = tmp_path / "story/runs/story"
    over = threading.Event()

    def cut_after_the_first_results() -> None:
        while not over.is_set() and len(measured(folder)) < 2:
            time.sleep(0.01)
        wire.cut(for_good=True)

    cutter = threading.Thread(target=cut_after_the_first_results)
    cutter.start()
    stopped = CliRunner().invoke(app, ["run", "--config", str(experiment)])
    over.set()
    cutter.join(60)
    assert stopped.exit_code == 2, stopped.output
    assert "nothing listens on that port" in stopped.stderr and "opadapt resume" in stopped.stderr
    assert "Traceback" not in stopped.output
    known = measured(folder)
    assert len(known) >= 2
    sshd.wait_until_clean()

    wire.mend()
    resumed = CliRunner().invoke(app, ["resume", str(folder)])
    assert resumed.exit_code == 0, resumed.output
    after = measured(folder)
    assert after[: len(known)] == known and len(after) > len(known)
    onnx.checker.check_model(onnx.load(folder / "adapted.onnx"))
    sshd.wait_until_clean()

"""Ctrl-C and a full disk at the command line: nothing finished is lost, and the message says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_experiment

from opadapt.journal import Journal
from opadapt.report.data import read_json

CLI = "import sys; from opadapt.cli import main; sys.argv = ['opadapt', *sys.argv[1:]]; main()"
GUARDED = f"if __name__ == '__main__':\n    {CLI}\n"


def start(folder: Path, *arguments: str, before: str = "") -> subprocess.Popen[str]:
    """The command line in a process group of its own, as a terminal would start it."""
    program = folder / "opadapt_main.py"
    program.write_text(before + GUARDED)
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    process = start(tmp_path, "run", "-c", str(write_experiment(tmp_path / "e")))
    folder = tmp_path / "e" / "runs" / "story"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "journal.sqlite").exists() and Journal(folder).counts().get("distil", (0,))[0] >= 3:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"opadapt resume {folder}" in errors and "Traceback" not in errors
    finished = {stage: n for stage, (n, _, _) in Journal(folder).counts().items()}
    assert finished["distil"] >= 3

    again = start(tmp_path, "resume", str(folder))
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert read_json(folder / "report.json").verdict.adapted
    assert f", with {sum(finished.values())} results in the journal" in errors
    counts = Journal(folder).counts()
    assert all(counts[stage][0] >= n for stage, n in finished.items())


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    """Files may not grow beyond 60 kB: the journal cannot be written, as on a full disk."""
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
    )
    experiment = write_experiment(tmp_path / "e")
    process = start(tmp_path, "run", "-c", str(experiment), before=limit)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert "error:" in errors and "Traceback" not in errors
    folder = tmp_path / "e" / "runs" / "story"
    again = start(tmp_path, "resume", str(folder))
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert read_json(folder / "report.json").verdict.adapted

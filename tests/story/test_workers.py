"""Workers: gone with their parent, a dead one is an error that says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opadapt.errors import RunError
from opadapt.steps.workers import Workers


def double(x: int) -> int:
    time.sleep(0.02 * (3 - x % 3))
    return 2 * x


def die(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_each_task_has_its_own_result() -> None:
    with Workers(2) as workers, workers.watched():
        begun = [workers.submit(double, x) for x in range(9)]
        assert [future.result() for future in begun] == [2 * x for x in range(9)]


def test_a_dead_worker_is_reported() -> None:
    with Workers(1) as workers, pytest.raises(RunError, match="worker process died"), workers.watched():
        workers.submit(die, 1).result()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time; from opadapt.steps.workers import Workers\n"
        "def pid(_): time.sleep(0.2); return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    w = Workers(2); begun = [w.submit(pid, i) for i in range(6)]\n"
        "    print(*{one.result() for one in begun}, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(p) for p in parent.stdout.readline().split()]
    assert pids and all(alive(p) for p in pids)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(p) for p in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(p) for p in pids)


def test_a_worker_is_not_ended_while_it_hands_over_its_result(tmp_path: Path) -> None:
    """The parent would wait for the rest of it for ever, Ctrl-C or not."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time; from opadapt.steps.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(1) as workers:\n"
        "        workers.submit(abs, -1).result(timeout=60)\n"
        "        begun = [workers.submit(bytes, 400_000_000) for _ in range(4)]\n"
        "        while not begun[0].running(): time.sleep(0.01)\n"
        "        time.sleep(float(sys.argv[1]))\n"
        "        raise KeyboardInterrupt\n"
    )
    for delay in ("0.6", "0.8", "1.0"):
        parent = subprocess.run(
            [sys.executable, str(script), delay], timeout=120, capture_output=True, text=True
        )
        assert parent.stderr.count("Traceback") == 1 and "KeyboardInterrupt" in parent.stderr, parent.stderr

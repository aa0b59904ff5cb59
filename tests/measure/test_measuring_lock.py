"""Nothing computes while something is timed: between threads and between processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from opadapt.errors import DeviceError
from opadapt.measure.lock import MeasuringLock, measuring_lock


def hold(lock: MeasuringLock, kind: str, inside: threading.Event, leave: threading.Event) -> threading.Thread:
    def work() -> None:
        with getattr(lock, kind)():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(20)
    return thread


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [("busy", "busy", True), ("busy", "quiet", False), ("quiet", "busy", False), ("quiet", "quiet", False)],
)
def test_between_threads(tmp_path: Path, first: str, second: str, together: bool) -> None:
    leave = threading.Event()
    thread = hold(MeasuringLock(tmp_path), first, threading.Event(), leave)
    impatient = MeasuringLock(tmp_path, timeout_s=0.1)
    try:
        if together:
            with getattr(impatient, second)():
                pass
        else:
            with pytest.raises(DeviceError, match="did not pause"), getattr(impatient, second)():
                pass
    finally:
        leave.set()
        thread.join(20)
    with getattr(impatient, second)():
        pass


def test_between_processes_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from opadapt.measure.lock import MeasuringLock\n"
        "with MeasuringLock(Path(sys.argv[1])).busy():\n"
        "    print('in', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    lock = MeasuringLock(tmp_path, timeout_s=0.1)
    with pytest.raises(DeviceError), lock.quiet():
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with lock.quiet():
        pass


def test_a_waiting_measurement_is_not_starved(tmp_path: Path) -> None:
    lock, stop = MeasuringLock(tmp_path), threading.Event()

    def train() -> None:
        while not stop.is_set():
            with lock.busy():
                time.sleep(0.02)

    threads = [threading.Thread(target=train) for _ in range(4)]  # at any moment one of them is inside
    for thread in threads:
        thread.start()
    try:
        with MeasuringLock(tmp_path, timeout_s=10).quiet():
            pass
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def test_reentrant_in_a_thread(tmp_path: Path) -> None:
    lock = MeasuringLock(tmp_path, timeout_s=0.2)
    with lock.quiet(), lock.quiet(), lock.busy():
        pass
    with lock.busy(), lock.busy():
        pass
    with lock.quiet():
        pass


def test_measuring_inside_ones_own_training_is_refused(tmp_path: Path) -> None:
    lock = MeasuringLock(tmp_path)
    with lock.busy(), pytest.raises(DeviceError, match="training chunk"), lock.quiet():
        pass


def test_an_error_inside_releases(tmp_path: Path) -> None:
    lock = MeasuringLock(tmp_path, timeout_s=0.2)
    for kind in (lock.busy, lock.quiet):
        with pytest.raises(KeyError), kind():
            raise KeyError
    with lock.quiet():
        pass


def test_one_lock_per_user() -> None:
    assert measuring_lock() is measuring_lock()
    assert measuring_lock().folder.stat().st_mode & 0o077 == 0

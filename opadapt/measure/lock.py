"""Nothing trains while something is timed on this machine: a readers-and-writer lock on two files.

``busy()`` is shared: every piece of work that would disturb a measurement holds it, in chunks of seconds.
``quiet()`` is exclusive: a measurement holds it. flock(2) locks belong to the open file, so they hold between
threads as well as between processes, and the kernel drops them when a process dies. A measurement that waits
keeps the gate, and new ``busy()`` chunks queue behind it: it cannot starve. POSIX only.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from opadapt.errors import DeviceError

POLL_S = 0.01
TIMEOUT_S = 3600.0


class MeasuringLock:
    """The lock in one folder; every MeasuringLock on the same folder is the same lock.

    Re-entrant in a thread, except that ``quiet()`` inside ``busy()`` raises DeviceError: it could only wait
    for itself. Raises DeviceError when the wait takes longer than ``timeout_s``, and where the files cannot be made.
    """

    def __init__(self, folder: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.folder = folder or _user_folder()
        self.timeout_s = timeout_s
        self._held = threading.local()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Exclusive: hold it while timing."""
        mode = getattr(self._held, "mode", None)
        if mode == fcntl.LOCK_SH:
            raise DeviceError(
                "this thread measures in the middle of its own training chunk", do="end busy() first"
            )
        if mode is not None:
            yield
            return
        ex = fcntl.LOCK_EX
        with self._locked("gate", ex), self._locked("work", ex), self._holding(ex):
            yield

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Shared: hold it while computing anything heavy, and let go of it every few seconds."""
        if getattr(self._held, "mode", None) is not None:
            yield
            return
        with self._locked("gate", fcntl.LOCK_SH):
            work = self._open("work", fcntl.LOCK_SH)
        try:
            with self._holding(fcntl.LOCK_SH):
                yield
        finally:
            _release(work)

    @contextmanager
    def _holding(self, mode: int) -> Iterator[None]:
        self._held.mode = mode
        try:
            yield
        finally:
            self._held.mode = None

    @contextmanager
    def _locked(self, name: str, mode: int) -> Iterator[None]:
        file = self._open(name, mode)
        try:
            yield
        finally:
            _release(file)

    def _open(self, name: str, mode: int) -> int:
        with _usable():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(file)
                    raise DeviceError(
                        f"another opadapt on this machine did not pause for {self.timeout_s:g} s",
                        expected=f"the lock {self.folder}/{name}.lock free",
                        do="wait for the other run, or end it",
                    ) from None
            except BaseException:
                os.close(file)
                raise
            time.sleep(POLL_S)


def _release(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to a process forked meanwhile
    os.close(file)


def _user_folder() -> Path:
    """One folder per user. Raises DeviceError if it belongs to someone else: a lock there proves nothing."""
    with _usable():
        folder = Path(tempfile.gettempdir()) / f"opadapt-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        others = folder.is_symlink() or folder.stat().st_uid != os.getuid()
    if others:
        raise DeviceError(f"the lock folder {folder} belongs to another user", do="remove it, or set TMPDIR")
    return folder


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(
            "the measuring lock of this machine cannot be used",
            found=str(error),
            do="make room there or mend its permissions, or set TMPDIR",
        ) from error


@cache
def measuring_lock() -> MeasuringLock:
    """This user's lock on this machine: ``with measuring_lock().busy(): ...``"""
    return MeasuringLock()

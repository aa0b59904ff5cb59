"""A connection to one host: commands, processes and files, synchronous and safe between threads.

It is made when it is first needed, kept alive, and used for everything. Once it has been there and breaks, the next
use makes it again, with growing pauses and within ``PATIENCE_S``; once closed, it stays closed until it is opened
again. Everything has a time limit. Errors:
LostDevice when the host is gone, DeviceError for anything that a second try would not change.
"""

from __future__ import annotations

import asyncio
import shlex
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

import asyncssh

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.ssh.files import Files
from opadapt.measure.ssh.login import log_in
from opadapt.measure.ssh.loop import awaited, begun, call
from opadapt.measure.ssh.process import RemoteProcess, started

T = TypeVar("T")

PATIENCE_S = 60.0  # how long a connection that was there is tried again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
MARGIN_S = 10.0  # for the loop, over the time limit of what runs in it


@dataclass(frozen=True)
class Completed:
    """A command that ended: its exit code, or the negative number of the signal that killed it."""

    code: int
    stdout: bytes
    stderr: bytes


class Connection:
    """SSH to ``alias`` or ``[user@]host[:port]``; ``timeout_s`` is for logging in and for each exchange of a file.

    ``bytes_sent`` and ``bytes_received``: contents of files, input and output of commands and processes, without
    SSH's own part (encryption, framing).
    """

    def __init__(self, host: str, timeout_s: float = 20.0) -> None:
        self.host = host
        self.timeout_s = timeout_s
        self.bytes_sent = 0
        self.bytes_received = 0
        self._lock = threading.RLock()
        self._ssh: asyncssh.SSHClientConnection | None = None
        self._files: Files | None = None
        self._was_there = False
        self._closed = threading.Event()
        self._login: Future[asyncssh.SSHClientConnection] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA256 fingerprint of the verified host key; connects if need be."""
        key = self._connected().get_server_host_key()
        return key.get_fingerprint() if key is not None else "certificate"

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:
        """Run a command to its end. Raises DeviceError if that takes longer than the limit; it is killed then where
        the server does that (OpenSSH: for every user but root), and has lost its input and output in any case."""

        async def work(ssh: asyncssh.SSHClientConnection) -> Completed:
            process = await ssh.create_process(shlex.join(command), encoding=None)
            self.bytes_sent += len(input)
            try:
                async with asyncio.timeout(timeout_s):
                    stdout, stderr = await process.communicate(input)
                    await process.wait_closed()
            except TimeoutError:
                process.kill()
                raise DeviceError(
                    f"{self.host}: a command did not end within {timeout_s:g} s", found=shlex.join(command)
                ) from None
            finally:
                process.close()
            if process.returncode is None:
                raise asyncssh.ConnectionLost("the connection ended with the command")
            return Completed(process.returncode, bytes(stdout or b""), bytes(stderr or b""))

        done = self._use(work, timeout_s)
        self.bytes_received += len(done.stdout) + len(done.stderr)
        return done

    def process(self, command: Sequence[str], beat_s: float | None = None) -> RemoteProcess:
        """Start a command that is talked to by lines; every ``beat_s`` seconds it is sent an empty one."""

        async def work(ssh: asyncssh.SSHClientConnection) -> RemoteProcess:
            return await started(ssh, shlex.join(command), self.host, self._count, beat_s)

        return self._use(work, self.timeout_s)

    def put(self, data: bytes, path: str, resume: bool = False) -> None:
        """Write a file; with ``resume`` what is there already is taken for its beginning. The folder must exist.

        A full disk raises FullDisk that says how much is needed; the file is removed again then.
        """
        self._file_use(lambda files: files.put(data, path, resume), len(data))

    def get(self, path: str) -> bytes:
        """The content of a file."""
        return self._file_use(lambda files: files.get(path), None)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder of that name; links are followed."""
        return self._file_use(lambda files: files.exists(path))

    def make_folder(self, path: str) -> None:
        """Make a folder, its parents with it; it and those that are new are for the user alone (0700)."""
        self._file_use(lambda files: files.make_folder(PurePosixPath(path)))

    def rename(self, path: str, to: str) -> None:
        """Rename a file; what has the new name already is replaced in one step."""
        self._file_use(lambda files: files.rename(path, to))

    def open(self) -> None:
        """Allow it to be used, again after it was closed."""
        self._closed.clear()

    def close(self) -> None:
        """End the connection, or the attempt to make one. May be called twice."""
        self._closed.set()
        login = self._login
        if login is not None:
            login.cancel()
        with self._lock:
            self._drop()
            self._was_there = False

    def _file_use(self, work: Callable[[Files], Coroutine[object, object, T]], size: int | None = 0) -> T:
        """``size``: of what is transferred, for the time limit; None: not known beforehand."""

        async def with_files(ssh: asyncssh.SSHClientConnection) -> T:
            if self._files is None or self._files.ssh is not ssh:
                self._files = await Files.opened(ssh, self.host, self.timeout_s, self._count)
            return await work(self._files)

        # every exchange has its own limit; this one is for all of them, at 10 kB/s or more
        return self._use(with_files, 3600.0 if size is None else 4 * self.timeout_s + size / 10_000)

    def _use(
        self, work: Callable[[asyncssh.SSHClientConnection], Coroutine[object, object, T]], limit_s: float
    ) -> T:
        ssh = self._connected()
        try:
            return call(work(ssh), limit_s + MARGIN_S)
        except TimeoutError:
            problem = f"no answer within {limit_s:g} s"
        except (OSError, asyncssh.Error) as error:
            if isinstance(error, asyncssh.ChannelOpenError) and not ssh.is_closed():
                raise DeviceError(f"{self.host}: it opens no channel", found=str(error)) from error
            problem = str(error)
        self._drop(ssh)
        raise LostDevice(f"{self.host}: the connection is lost", found=problem)

    def _count(self, sent: int, received: int) -> None:
        self.bytes_sent += sent
        self.bytes_received += received

    def _connected(self) -> asyncssh.SSHClientConnection:
        with self._lock:
            if self._ssh is None or self._ssh.is_closed():
                self._drop()
                self._ssh = self._back() if self._was_there else self._logged_in()
                self._was_there = True
            return self._ssh

    def _logged_in(self) -> asyncssh.SSHClientConnection:
        login = self._login = begun(log_in(self.host, self.timeout_s))
        if self._closed.is_set():  # asked here, since ``close`` may have looked for a login just before
            login.cancel()
        try:
            return awaited(login, 2 * self.timeout_s + MARGIN_S)
        except TimeoutError:
            if self._closed.is_set():
                raise DeviceError(f"{self.host}: the connection was closed") from None
            raise LostDevice(f"{self.host}: does not answer", found="silence") from None
        except LostDevice as lost:
            lost.given_up = not self._was_there  # what was never reached is not worth waiting for
            raise

    def _back(self) -> asyncssh.SSHClientConnection:
        """The connection that was there before, made again."""
        deadline, pause_s = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while True:
            try:
                return self._logged_in()
            except LostDevice as lost:
                if time.monotonic() + pause_s > deadline or self._closed.wait(pause_s):
                    lost.given_up = True
                    raise
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _drop(self, which: asyncssh.SSHClientConnection | None = None) -> None:
        """Forget the connection, if it still is ``which``, and end it without waiting for the host."""
        with self._lock:
            if self._ssh is None or which not in (None, self._ssh):
                return
            ssh, self._ssh, self._files = self._ssh, None, None

        async def abort() -> None:
            ssh.abort()

        call(abort(), MARGIN_S)

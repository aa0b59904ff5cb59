"""A process on a host, talked to by lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TypeVar

import asyncssh

from opadapt.errors import LostDevice
from opadapt.measure.ssh.loop import call

T = TypeVar("T")

WRITE_S = 60.0  # a host that takes nothing for so long is lost
MARGIN_S = 10.0
_TAIL = 4000  # bytes of stderr that are kept


class RemoteProcess:
    """Made by ``Connection.process``. Raises LostDevice when the connection ends, TimeoutError for silence."""

    def __init__(
        self,
        ssh: asyncssh.SSHClientConnection,
        process: asyncssh.SSHClientProcess[bytes],
        host: str,
        count: Callable[[int, int], None],
        beat_s: float | None,
    ) -> None:
        self._ssh, self._process, self._host, self._count = ssh, process, host, count
        self._pending = bytearray()
        self._stderr = bytearray()
        self._tasks = [asyncio.ensure_future(self._watch_stderr())]
        if beat_s is not None:
            self._tasks.append(asyncio.ensure_future(self._beat(beat_s)))

    @property
    def connected(self) -> bool:
        """Whether the connection is there; the process may have ended all the same."""
        return not self._ssh.is_closed()

    @property
    def code(self) -> int | None:
        """The exit code, or the negative number of a signal; None while it runs, or if nobody will ever know."""
        return self._process.returncode

    @property
    def stderr(self) -> str:
        """The end of what it wrote there."""
        return self._stderr.decode(errors="replace").strip()

    def write_line(self, line: bytes) -> None:
        """Send one line. That the process has ended is not told here, but by the reading, which knows how it ended."""

        async def work() -> None:
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()

        self._count(len(line) + 1, 0)
        try:
            self._do(work(), WRITE_S)
        except LostDevice:
            if not self.connected:
                raise

    def read_line(self, timeout_s: float) -> bytes:
        """The next line without its end; nothing at the end of the output."""

        async def work() -> bytes:
            while b"\n" not in self._pending:
                data = await self._process.stdout.read(1 << 16)
                if not data:
                    await self._process.wait_closed()  # and with it the exit code
                    return b""
                self._count(0, len(data))
                self._pending += data
            line, _, rest = self._pending.partition(b"\n")
            self._pending = rest
            return bytes(line)

        line = self._do(work(), timeout_s)
        if not line and not self.connected:
            raise LostDevice(f"{self._host}: the connection is lost")
        return line

    def close(self, timeout_s: float) -> None:
        """End its input and wait for it to end; after that long, let go of it. May be called twice."""

        async def work() -> None:
            self._process.stdin.write_eof()
            await self._process.wait_closed()

        async def let_go() -> None:
            self._process.close()
            for task in self._tasks:
                task.cancel()

        try:
            self._do(work(), timeout_s)
        except (LostDevice, TimeoutError):
            pass
        finally:
            call(let_go(), MARGIN_S)

    def _do(self, work: Coroutine[object, object, T], timeout_s: float) -> T:
        try:
            return call(work, timeout_s)
        except TimeoutError:
            raise
        except (OSError, asyncssh.Error) as error:
            raise LostDevice(f"{self._host}: the connection is lost", found=str(error)) from error

    async def _watch_stderr(self) -> None:
        try:
            while data := await self._process.stderr.read(1 << 12):
                self._stderr += data
                del self._stderr[:-_TAIL]
        except (OSError, asyncssh.Error):
            pass  # whoever waits for its output learns of it

    async def _beat(self, beat_s: float) -> None:
        """Show that somebody is there: an empty line now and then, whatever else is said."""
        with suppress(OSError, asyncssh.Error):  # it, or the connection, has ended
            while True:
                await asyncio.sleep(beat_s)
                self._process.stdin.write(b"\n")
                self._count(1, 0)


async def started(
    ssh: asyncssh.SSHClientConnection,
    command: str,
    host: str,
    count: Callable[[int, int], None],
    beat_s: float | None,
) -> RemoteProcess:
    return RemoteProcess(ssh, await ssh.create_process(command, encoding=None), host, count, beat_s)

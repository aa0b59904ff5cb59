"""One phone over adb: commands and files. Every operation is a connection of its own, all of them bounded in time."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from opadapt.errors import DeviceError, FullDisk, LostDevice
from opadapt.measure.adb.server import AdbServer, gone
from opadapt.measure.adb.streams import SHELL, SYNC, Refusal, Shell, receive, send

SILENCE_S = 30.0  # longest wait for one packet
BACK_S = 60.0  # how long a phone that was unplugged is waited for
_PAUSE_S = (0.1, 2.0)  # first and longest time between two looks whether it is back


class Ended(NamedTuple):
    """How a command on the phone ended."""

    code: int
    stdout: bytes
    stderr: bytes


class Connection:
    """To the phone with that serial number, or to the only one that is ready."""

    def __init__(self, serial: str | None = None, server: AdbServer | None = None) -> None:
        self._wanted = serial
        self._server = server
        self._serial: str | None = None

    @property
    def host(self) -> str:
        """The serial number, as far as it is known."""
        return self._serial or self._wanted or ""

    @property
    def serial(self) -> str:
        """The phone's serial number. Raises DeviceError, LostDevice when no phone, or not one alone, is ready."""
        if self._serial is None:
            self._serial = self._adb().choose(self._wanted)
        return self._serial

    def wait(self) -> None:
        """Until a phone that was there before is back. Raises LostDevice after BACK_S seconds."""
        if self._serial is None:
            return
        deadline, (pause_s, longest_s) = time.monotonic() + BACK_S, _PAUSE_S
        while True:
            try:
                state = self._adb().states().get(self._serial, "not listed by adb")
            except LostDevice as error:
                state = error.message
            if state == "device":
                return
            if time.monotonic() + pause_s > deadline:
                raise gone(f"phone {self._serial} is gone", expected="device", found=state)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    def features(self) -> frozenset[str]:
        """What the phone's adb daemon can do."""
        return self._adb().features(self.serial)

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float = SILENCE_S) -> Ended:
        """Run a command in adb's shell to its end. Raises LostDevice, after ``timeout_s`` too."""
        with self.watched():
            shell = self.shell(shlex.join(command))
            try:
                shell.write(input)
                stdout = shell.finish(timeout_s)
            finally:
                shell.close()
        if shell.code is None:
            raise LostDevice(f"phone {self.serial} is gone", found=f"in the middle of `{command[0]}`")
        return Ended(shell.code, stdout, shell.stderr)

    def shell(self, command: str) -> Shell:
        """Start a command, given as sh takes it. Use it under ``watched``."""
        return Shell(self._adb().open(self.serial, SHELL + command), SILENCE_S)

    def put(self, data: bytes, path: str) -> None:
        """Write a file, its folders too. Raises DeviceError where the phone refuses, LostDevice."""
        with self._sync() as connection:
            try:
                send(connection, path, data)
            except Refusal as error:
                raise self.refused(f"'{path}' cannot be written", str(error), len(data)) from error

    def get(self, path: str) -> bytes:
        """Read a file. Raises DeviceError where the phone refuses, LostDevice."""
        with self._sync() as connection:
            try:
                return receive(connection, path)
            except Refusal as error:
                raise self.refused(f"'{path}' cannot be read", str(error)) from error

    def holds(self, path: str, content: bytes) -> bool:
        """Whether there is a file with exactly that content."""
        with self._sync() as connection:
            try:
                return receive(connection, path) == content
            except Refusal:
                return False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A broken connection, or silence, as LostDevice."""
        try:
            yield
        except TimeoutError:
            raise LostDevice(f"phone {self.host} did not answer in time") from None
        except (OSError, EOFError) as error:
            raise LostDevice(f"phone {self.host} is gone", found=str(error)) from error

    def refused(self, what: str, why: str, size: int | None = None) -> DeviceError:
        """The error for what the phone would not do, in its own words."""
        full = "No space left" in why
        needed = f", {size} bytes needed" if full and size is not None else ""
        do = "free storage on the phone" if full else None
        kind = FullDisk if full else DeviceError
        return kind(f"phone {self.serial}: {what}", found=why.strip() + needed, do=do)

    def _adb(self) -> AdbServer:
        if self._server is None:
            self._server = AdbServer()
        return self._server

    @contextmanager
    def _sync(self) -> Iterator[socket.socket]:
        with self.watched(), self._adb().open(self.serial, SYNC) as connection:
            connection.settimeout(SILENCE_S)
            yield connection

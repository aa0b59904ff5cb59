"""How requests reach the agent: start it, put and get files, ask.

A transport moves bytes; what they mean is between ``agent_device`` and ``agent``. ``LocalTransport`` runs the
agent as a child process of this one.
"""

from __future__ import annotations

import errno
import getpass
import itertools
import json
import queue
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from opadapt.errors import DeviceError, FullDisk, LostDevice

AGENT = Path(__file__).with_name("agent.py")
END_WAIT_S = 10.0  # how long an agent may take to tidy up when its stdin is closed


class Transport(Protocol):
    """One agent at a time. Everything raises DeviceError when the device cannot be reached any more."""

    def start(self) -> None:
        """Start the agent (copying it there first where that is needed)."""

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One line there, one line back. The answer may be an error: the caller looks."""

    def put(self, data: bytes, path: str) -> None:
        """Write a file on the device; ``path`` lies in the folder that the agent's hello names."""

    def get(self, path: str) -> bytes:
        """Read a file of the device."""

    def close(self) -> None:
        """End the agent and wait until it has tidied up. May be called twice."""


class LocalTransport:
    """The agent as a subprocess with the same interpreter. ``options``: the agent's own. A folder that an agent left
    behind, because it was killed, is removed here."""

    def __init__(
        self, python: str = sys.executable, agent: Path = AGENT, options: Sequence[str] = ()
    ) -> None:
        self._command = [python, str(agent), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._numbers = itertools.count()
        self._folder: str | None = None  # the agent's, once it has said so

    @property
    def pid(self) -> int | None:
        """Process id of the running agent."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        self.close()
        pipe = subprocess.PIPE
        try:
            # a session of its own: Ctrl-C in the terminal is for opadapt, which then closes the agent's stdin
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, start_new_session=True, bufsize=0
            )
        except OSError as error:
            raise DeviceError("the agent does not start", found=str(error)) from error
        self._lines = queue.Queue()
        threading.Thread(target=_read_lines, args=(self._process, self._lines), daemon=True).start()

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        number = next(self._numbers)
        process = self._process
        if process is None or process.stdin is None:
            raise DeviceError("the agent is not running", do="start the transport first")
        try:
            process.stdin.write(json.dumps({**message, "id": number}).encode() + b"\n")
            line = self._lines.get(timeout=timeout_s)
        except (OSError, ValueError):  # its stdin is closed, there or here
            line = b""
        except queue.Empty:
            self.close()
            raise LostDevice(f"the agent did not answer within {timeout_s:g} s") from None
        if not line:
            raise self._how_it_ended(process)
        answer: dict[str, Any] = json.loads(line)
        if answer.pop("id", None) != number:
            self.close()
            raise DeviceError("the agent answered another request", expected=f"number {number}")
        self._folder = answer.get("folder", self._folder)
        return answer

    def put(self, data: bytes, path: str) -> None:
        with _files(path, "written", len(data)):
            try:
                Path(path).write_bytes(data)
            except OSError:
                Path(path).unlink(missing_ok=True)  # half a file fills the disk all the same
                raise

    def get(self, path: str) -> bytes:
        with _files(path, "read"):
            return Path(path).read_bytes()

    def close(self) -> None:
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if folder is not None:  # one that was killed could not tidy up
            shutil.rmtree(folder, ignore_errors=True)

    def _how_it_ended(self, process: subprocess.Popen[bytes]) -> DeviceError:
        """An agent that has answered may do so again once restarted; one that never has will not."""
        code = process.wait()
        if self._process is not process:
            return DeviceError("the agent was closed in the middle of a request")
        kind = DeviceError if self._folder is None else LostDevice
        self.close()
        return kind("the agent ended", expected="an answer", found=f"exit code {code}")


@contextmanager
def _files(path: str, done: str, size: int = 0) -> Iterator[None]:
    """What goes wrong with a file in the agent's folder: the disk is full, or the folder is gone."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FullDisk(
                "no space left: a file for the agent cannot be written",
                expected=f"{size} bytes for {path}",
                found=str(error.strerror),
                do="make room there, or set TMPDIR",
                kind="space",
            ) from error
        raise LostDevice(f"'{path}' cannot be {done}", found=str(error)) from error


def whoami() -> str:
    """What others read who find the board locked."""
    user = "somebody"
    with suppress(KeyError, OSError):
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def _read_lines(process: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    """Hand over every line, then an empty one for the end."""
    assert process.stdout is not None
    with process.stdout as stdout:
        pending = b""
        while data := stdout.read(1 << 16):
            *whole, pending = (pending + data).split(b"\n")
            for line in whole:
                lines.put(line)
    lines.put(b"")

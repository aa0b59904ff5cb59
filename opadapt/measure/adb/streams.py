"""Two services of a phone's adb daemon on an open connection: a command (shell protocol 2) and files (sync).

Sources: AOSP, packages/modules/adb: shell_protocol.h, daemon/shell_service.cpp, docs/dev/sync.md. Shell protocol 2
(Android 7 and newer) is the only one with an end of stdin, stderr apart and an exit code: without it a command runs
in a terminal. Every wait has a limit; failures of the connection are OSError or EOFError, for the caller to name.
"""

from __future__ import annotations

import socket
import struct
import time

SHELL = "shell,v2,raw:"  # then the command, for sh -c
SYNC = "sync:"
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_CHUNK = 1 << 16  # the most that one DATA packet may hold
_KEPT = 4000  # bytes of stderr
_PATH_BYTES = 1024


class Refusal(Exception):
    """The phone refused a file operation; says why in its own words."""


class Shell:
    """A running command. Not for several threads."""

    def __init__(self, connection: socket.socket, silence_s: float) -> None:
        self._connection = connection
        self._silence_s = silence_s
        self._stdout = b""
        self._ended = False
        self.stderr = b""
        self.code: int | None = None

    def write(self, data: bytes) -> None:
        """To the command's stdin."""
        self._connection.settimeout(self._silence_s)
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            self._connection.sendall(struct.pack("<BI", _STDIN, len(part)) + part)

    def read_line(self, timeout_s: float) -> bytes:
        """One line without its end; what is left, perhaps nothing, when the command has ended.

        Raises TimeoutError, after which only ``close`` makes sense: half a packet may have been read.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._stdout and self._take(deadline):
            pass
        line, _, self._stdout = self._stdout.partition(b"\n")
        return line

    def finish(self, timeout_s: float) -> bytes:
        """Close stdin, wait for the end, return the rest of stdout. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        if not self._ended:
            self._connection.settimeout(self._silence_s)
            self._connection.sendall(struct.pack("<BI", _CLOSE_STDIN, 0))
        while self._take(deadline):
            pass
        rest, self._stdout = self._stdout, b""
        return rest

    def close(self) -> None:
        """Without waiting: the phone ends the command with SIGHUP."""
        self._ended = True
        self._connection.close()

    def _take(self, deadline: float) -> bool:
        """Read one packet; False at the end."""
        if self._ended:
            return False
        try:
            kind, size = struct.unpack("<BI", _exactly(self._connection, 5, deadline))
            data = _exactly(self._connection, size, deadline)
        except EOFError:
            self._ended = True
            return False
        if kind == _STDOUT:
            self._stdout += data
        elif kind == _STDERR:
            self.stderr = (self.stderr + data)[-_KEPT:]
        elif kind == _EXIT:
            self.code, self._ended = data[0], True
        return not self._ended


def send(connection: socket.socket, path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file, its folders too. The connection's timeout holds for each packet. Raises Refusal."""
    try:
        _ask(connection, b"SEND", f"{path},{0o100000 | mode}")
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            connection.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
        connection.sendall(b"DONE" + struct.pack("<I", int(time.time())))
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before the end: the reason may still be there to be read
    kind, size = _answer(connection)
    if kind != b"OKAY":
        raise Refusal(_exactly(connection, size).decode(errors="replace"))


def receive(connection: socket.socket, path: str) -> bytes:
    """Read a file. Raises Refusal."""
    _ask(connection, b"RECV", path)
    data = bytearray()
    while True:
        kind, size = _answer(connection)
        if kind == b"DONE":
            return bytes(data)
        part = _exactly(connection, size)
        if kind != b"DATA":
            raise Refusal(part.decode(errors="replace"))
        data += part


def _ask(connection: socket.socket, request: bytes, text: str) -> None:
    encoded = text.encode()
    if len(encoded) > _PATH_BYTES or b"\0" in encoded:
        raise ValueError(f"not a path that adb takes: {text!r}")
    connection.sendall(request + struct.pack("<I", len(encoded)) + encoded)


def _answer(connection: socket.socket) -> tuple[bytes, int]:
    kind, size = struct.unpack("<4sI", _exactly(connection, 8))
    return kind, size


def _exactly(connection: socket.socket, size: int, deadline: float | None = None) -> bytes:
    """So many bytes, until the deadline if there is one. Raises EOFError, TimeoutError."""
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(left)
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("the connection ended")
        data += part
    return bytes(data)

"""A pretended Android phone: what its adb daemon serves, on real sockets, with a folder for its storage.

``Phone.serve`` runs one service of adbd (``shell,v2,raw:COMMAND`` or ``sync:``) on a connected socket. Behind the
shell is /bin/sh with nothing but the tools that Android has too, and ``python3`` where the phone is given one.
``FakeAdbServer`` reaches phones as the adb server does; ``fake_adbd.py`` puts one behind the real server.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# of Android 9 (AOSP, external/toybox): no getconf, no Python
TOOLS = (
    *("cat", "df", "dirname", "grep", "id", "kill", "ls", "mkdir", "mv"),
    *("rm", "sed", "sh", "sleep", "sort", "tail", "tr", "uname"),
)
FEATURES = "cmd,shell_v2,stat_v2"
UNAUTHORIZED = "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set"


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Phone:
    """``space``: bytes that may still be written; ``flip``: files arrive with their first byte changed;
    ``frozen``: services open and never say anything; ``on_data`` is called once, when a part of a file is there."""

    def __init__(self, folder: Path, python: str | None = sys.executable, state: str = "device") -> None:
        self.state = state
        self.features = FEATURES
        self.space: int | None = None
        self.flip = False
        self.frozen = False
        self.on_data: Callable[[], object] | None = None
        self.storage = folder / "storage"
        self.storage.mkdir(parents=True)
        self._tools = folder / "bin"
        self._tools.mkdir()
        for tool in TOOLS:
            (self._tools / tool).symlink_to(str(shutil.which(tool)))
        if python is not None:
            script = self._tools / "python3"
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n')
            script.chmod(0o755)
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        self.started: list[str] = []  # commands
        self.sent: list[str] = []  # files

    def serve(self, service: str, connection: socket.socket) -> None:
        """Until the service or the connection ends."""
        with self._guard:
            self._connections.add(connection)
        try:
            if self.frozen:
                while connection.recv(4096):
                    pass
            elif service.startswith("shell,v2,raw:"):
                self._shell(service.partition(":")[2], connection)
            elif service == "sync:":
                self._sync(connection)
        except (OSError, EOFError):
            pass
        finally:
            with self._guard:
                self._connections.discard(connection)
            connection.close()

    def unplug(self) -> None:
        """Every connection ends, as it does when the cable is pulled."""
        with self._guard:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _shell(self, command: str, connection: socket.socket) -> None:
        self.started.append(command)
        pipe = subprocess.PIPE
        environment = {"PATH": str(self._tools), "TMPDIR": "/data/local/tmp", "HOME": "/"}
        with subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd="/", start_new_session=True, bufsize=0,
        ) as process:  # fmt: skip
            assert process.stdin and process.stdout and process.stderr
            writing = threading.Lock()

            def say(kind: int, data: bytes) -> None:
                with writing, contextlib.suppress(OSError):
                    connection.sendall(struct.pack("<BI", kind, len(data)) + data)

            def copy(kind: int, descriptor: int) -> None:
                while data := os.read(descriptor, 4096):
                    say(kind, data)

            copies = [
                threading.Thread(target=copy, args=(kind, pipe.fileno()))
                for kind, pipe in ((1, process.stdout), (2, process.stderr))
            ]

            def end() -> None:
                for thread in copies:
                    thread.join()
                code = process.wait()
                say(3, bytes([code if code >= 0 else 0x80 | -code]))
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

            ending = threading.Thread(target=end)
            for thread in (*copies, ending):
                thread.start()
            try:
                while True:
                    kind, size = struct.unpack("<BI", exactly(connection, 5))
                    data = exactly(connection, size)
                    if kind == 0:
                        process.stdin.write(data)
                    elif kind == 4:
                        process.stdin.close()
            except (OSError, EOFError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGHUP)  # as adbd does
            ending.join()

    def _sync(self, connection: socket.socket) -> None:
        while True:
            kind, size = struct.unpack("<4sI", exactly(connection, 8))
            text = exactly(connection, size).decode()
            if kind == b"SEND":
                self._take(text.rpartition(",")[0], connection)
            elif kind == b"RECV":
                self._give(text, connection)
            else:
                return

    def _take(self, path: str, connection: socket.socket) -> None:
        data = b""
        while True:
            kind, size = struct.unpack("<4sI", exactly(connection, 8))
            if kind != b"DATA":
                break
            assert size <= 1 << 16
            data += exactly(connection, size)
            if self.on_data is not None:
                on_data, self.on_data = self.on_data, None
                on_data()
        if self.space is not None and len(data) > self.space:
            connection.sendall(_failed("write failed: No space left on device"))
            return
        self.sent.append(path)
        if self.flip:
            data = bytes([data[0] ^ 1]) + data[1:]
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)
        except OSError as error:
            connection.sendall(_failed(f"couldn't create file: {error.strerror}"))
        else:
            connection.sendall(b"OKAY" + bytes(4))

    def _give(self, path: str, connection: socket.socket) -> None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            connection.sendall(_failed(f"open failed: {error.strerror}"))
            return
        for start in range(0, len(data), 1 << 16):
            part = data[start : start + (1 << 16)]
            connection.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
        connection.sendall(b"DONE" + bytes(4))


def _failed(text: str) -> bytes:
    return b"FAIL" + struct.pack("<I", len(text)) + text.encode()


class FakeAdbServer:
    """The host's side of adb (docs/dev/services.md) for phones given by their serial numbers."""

    def __init__(self) -> None:
        self.phones: dict[str, Phone] = {}
        self.port = 0

    @contextmanager
    def running(self) -> Iterator[FakeAdbServer]:
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, EOFError):
                    outer._speak(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
                for phone in self.phones.values():
                    phone.unplug()

    def unplug(self, serial: str) -> Phone:
        phone = self.phones.pop(serial)
        phone.unplug()
        return phone

    def _speak(self, connection: socket.socket) -> None:
        command = exactly(connection, int(exactly(connection, 4), 16)).decode()
        if command == "host:version":
            _say(connection, "0029")
        elif command == "host:devices":
            _say(connection, "".join(f"{serial}\t{phone.state}\n" for serial, phone in self.phones.items()))
        elif command.startswith("host:tport:serial:"):
            phone = self._phone(connection, command.removeprefix("host:tport:serial:"))
            connection.sendall(b"OKAY" + struct.pack("<Q", 1))
            service = exactly(connection, int(exactly(connection, 4), 16)).decode()
            connection.sendall(b"OKAY")
            phone.serve(service, connection)
        elif command.startswith("host-serial:") and command.endswith(":features"):
            phone = self._phone(connection, command.removeprefix("host-serial:").removesuffix(":features"))
            _say(connection, phone.features)
        else:
            _fail(connection, f"unknown host service '{command}'")

    def _phone(self, connection: socket.socket, serial: str) -> Phone:
        phone = self.phones.get(serial)
        if phone is None:
            _fail(connection, f"device '{serial}' not found")
        elif phone.state == "unauthorized":
            _fail(connection, UNAUTHORIZED)
        elif phone.state != "device":
            _fail(connection, f"device {phone.state}")
        else:
            return phone
        raise EOFError


def _say(connection: socket.socket, text: str) -> None:
    connection.sendall(b"OKAY" + f"{len(text):04x}{text}".encode())


def _fail(connection: socket.socket, text: str) -> None:
    connection.sendall(b"FAIL" + f"{len(text):04x}{text}".encode())

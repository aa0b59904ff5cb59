"""A pretended phone behind the *real* adb server: the wire protocol of adbd over TCP.

Source: AOSP, packages/modules/adb, docs/dev/protocol.md. Messages are six little-endian words (command, two
arguments, length, checksum, magic) and data. Each WRTE is answered by an OKAY before the next may be sent.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from phone import FEATURES, Phone, exactly

VERSION = 0x01000001  # from here on checksums are not checked
MAX_DATA = 1 << 18
_HEADER = struct.Struct("<4sIIIII")
_TOKEN, _PUBLIC_KEY = 1, 3


class FakeAdbd:
    """Listens on a port of its own; ``adb connect 127.0.0.1:PORT`` reaches the phone."""

    def __init__(self, phone: Phone) -> None:
        self.phone = phone
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._hosts: list[socket.socket] = []

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[FakeAdbd]:
        thread = threading.Thread(target=self._accept)
        thread.start()
        try:
            yield self
        finally:
            self.unplug()
            thread.join()

    def unplug(self) -> None:
        """For good: nobody can connect again."""
        for connection in (self._listener, *self._hosts):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        sessions = []
        with contextlib.suppress(OSError):
            while True:
                host, _ = self._listener.accept()
                self._hosts.append(host)
                sessions.append(threading.Thread(target=_Session(host, self.phone).run))
                sessions[-1].start()
        for session in sessions:
            session.join()


class _Session:
    """One connection of an adb server."""

    def __init__(self, host: socket.socket, phone: Phone) -> None:
        self._host, self._phone = host, phone
        self._writing = threading.Lock()
        self._streams: dict[int, _Stream] = {}  # by our number

    def run(self) -> None:
        try:
            while True:
                command, first, second, size, _, _ = _HEADER.unpack(exactly(self._host, _HEADER.size))
                self._handle(command, first, second, exactly(self._host, size))
        except (OSError, EOFError):
            pass
        finally:
            for stream in list(self._streams.values()):
                stream.end()

    def say(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        word = int.from_bytes(command, "little")
        header = _HEADER.pack(command, first, second, len(data), sum(data) & 0xFFFFFFFF, word ^ 0xFFFFFFFF)
        with self._writing:
            self._host.sendall(header + data)

    def _handle(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command in (b"CNXN", b"AUTH") and self._phone.state == "unauthorized":
            if command == b"CNXN" or first != _PUBLIC_KEY:  # that one waits for the user
                self.say(b"AUTH", _TOKEN, 0, bytes(20))
        elif command == b"CNXN":
            banner = f"device::ro.product.name=fake;ro.product.model=Fake;features={FEATURES}"
            self.say(b"CNXN", VERSION, MAX_DATA, banner.encode())
        elif command == b"OPEN":
            number = len(self._streams) + 1
            self._streams[number] = _Stream(self, number, first, data.rstrip(b"\0").decode(), self._phone)
        elif command in (b"OKAY", b"WRTE", b"CLSE") and second in self._streams:
            self._streams[second].hear(command, data)


class _Stream:
    """One service: what it says goes out as WRTE, what is written to it is acknowledged when it was taken."""

    def __init__(self, session: _Session, number: int, peer: int, service: str, phone: Phone) -> None:
        self._session, self._number, self._peer = session, number, peer
        self._ours, theirs = socket.socketpair()
        self._acknowledged = threading.Semaphore(0)
        self._heard: queue.Queue[bytes | None] = queue.Queue()
        session.say(b"OKAY", number, peer)
        for target in (lambda: phone.serve(service, theirs), self._speak, self._listen):
            threading.Thread(target=target, daemon=True).start()

    def hear(self, command: bytes, data: bytes) -> None:
        if command == b"OKAY":
            self._acknowledged.release()
        elif command == b"WRTE":
            self._heard.put(data)
        else:
            self.end()

    def end(self) -> None:
        self._heard.put(None)
        self._acknowledged.release()
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    def _speak(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._ours.recv(MAX_DATA):
                self._session.say(b"WRTE", self._number, self._peer, data)
                self._acknowledged.acquire()
        with contextlib.suppress(OSError):
            self._session.say(b"CLSE", self._number, self._peer)
        self._heard.put(None)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._heard.get()) is not None:
                self._ours.sendall(data)
                self._session.say(b"OKAY", self._number, self._peer)

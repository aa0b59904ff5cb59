"""A real OpenSSH server on loopback as a board, and a wire to it that can be cut.

The server has its own host key, its own authorized keys and, by ``SetEnv``, its own home folder: nothing of the
user's is touched. The client's side is a home folder with ``.ssh`` in it. Processes are ended by their ids.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opadapt.measure.facts import Facts, load_facts

SSHD = "/usr/sbin/sshd"
CACHE = Path(".cache/opadapt")
ALIAS = "board"


def why_not() -> str | None:
    """Why no server can be started here, None if one can."""
    missing = [tool for tool in (SSHD, "ssh-keygen") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not installed (apt-get install openssh-server)"
    if os.getuid() == 0:  # where sshd separates its privileges; its packages make it at boot
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return None


def wait_for(condition: Callable[[], object], what: str, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited too long for: {what}"
        time.sleep(0.01)


def reserve_port() -> socket.socket:
    """A port that nobody else is given while the socket is open; it never listens.

    A server that sets ``SO_REUSEADDR``, as sshd does, binds to it all the same. A port that is merely free now is
    given to whoever asks next, even to the very probe that tries to connect to it.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def port_of(reserved: socket.socket) -> int:
    return int(reserved.getsockname()[1])


def make_key(path: Path) -> str:
    """A key pair; the public key's line."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.with_suffix(".pub").read_text().strip()


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[Callable[[], None]]:
    """No room on the disk of a folder, and what takes again what has become free since; by a file without a name."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:

        def fill() -> None:
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 4096)

        fill()
        yield fill


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Sshd]:
    """A board that the alias ``board`` leads to; HOME is its client's meanwhile. Skips the test where there can be
    none."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    server = Sshd(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(server.client))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        server.start()
        try:
            yield server
        finally:
            server.close()


class Sshd:
    """One board: ``home`` is its user's, ``client`` the home folder of whoever connects."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.client = folder, folder / "home", folder / "client"
        self.home.mkdir(parents=True)
        (self.client / ".ssh").mkdir(parents=True)
        self._reserved = reserve_port()
        self.port = port_of(self._reserved)
        self.host_key = make_key(folder / "host_key")
        (folder / "authorized_keys").write_text(make_key(self.client / ".ssh/id_ed25519") + "\n")
        self.lock = folder / "board.lock"
        self._write_python()
        self._write_config()
        self.trust(self.port)
        self.reach(self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def cache(self) -> Path:
        return self.home / CACHE

    def facts(self) -> Facts:
        """A device type that fits this machine."""
        changes = {"transport": "ssh", "host": ALIAS, "python": str(self.python)}
        return load_facts("local").model_copy(update=changes)

    def _write_python(self) -> None:
        """The board's interpreter: this one, its lock the test's own instead of the machine's."""
        self.python = self.folder / "python"
        self.python.write_text(
            "#!/bin/sh\n"
            f'case " $* " in *" --token "*) set -- "$@" --board-lock "{self.lock}";; esac\n'
            f'exec "{sys.executable}" "$@"\n'
        )
        self.python.chmod(0o755)

    def _write_config(self) -> None:
        lines = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "SetEnv": f"HOME={self.home}",
            "Subsystem": "sftp internal-sftp",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PidFile": "none",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            "MaxStartups": "100",
        }
        (self.folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in lines.items()))

    def trust(self, port: int, key: str | None = None) -> None:
        """Let the client know this key, or the server's, for a port."""
        with (self.client / ".ssh/known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {key or self.host_key}\n")

    def reach(self, port: int) -> None:
        """Let the alias lead to a port."""
        lines = (
            f"Host {ALIAS}",
            "  HostName 127.0.0.1",
            f"  Port {port}",
            f"  User {getpass.getuser()}",
            "  IdentityFile ~/.ssh/id_ed25519",
        )
        (self.client / ".ssh/config").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        log = self.folder / "sshd.log"
        log.touch()
        said = len(log.read_text())
        command = [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(log)]
        self._process = subprocess.Popen(command, start_new_session=True)

        def listens() -> bool:
            # by its own word: a connection could be answered by what is left of the server before it
            assert self._process is not None and self._process.poll() is None, log.read_text()
            return f"Server listening on 127.0.0.1 port {self.port}" in log.read_text()[said:]

        wait_for(listens, "sshd")

    def stop(self) -> None:
        """End the server and the connections that it holds; what they started is left to itself."""
        process, self._process = self._process, None
        if process is None:
            return
        ours = [pid for pid in descendants(process.pid) if command_line(pid)[:1] == ["sshd:"]]
        process.terminate()
        process.wait(30)
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(self._is_closed, "the end of sshd")

    def _is_closed(self) -> bool:
        """Nothing listens: a child that has just been forked holds its parent's listening socket for a moment."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0

    def close(self) -> None:
        """Stop for good: the port is anybody's."""
        self.stop()
        self._reserved.close()

    def replace_host_key(self) -> str:
        """Begin anew with another host key, as a board does whose system was written anew; its line, which nobody
        knows yet."""
        self.stop()
        (self.folder / "host_key").unlink()
        self.host_key = make_key(self.folder / "host_key")
        self.start()
        return self.host_key

    def agents(self) -> list[int]:
        """Process ids of agents and their children on this board."""
        return [pid for pid in processes() if any(str(self.cache) in part for part in command_line(pid))]

    def left(self) -> list[str]:
        """Everything below the board's home but the agent's file, which is meant to stay."""
        found = [path for path in self.home.rglob("*") if path not in (self.cache, *self.cache.parents)]
        meant = [path for path in found if path.name == "sessions" or path.match("agent-*.py")]
        return [str(path) for path in found if path not in meant or (path.is_dir() and any(path.iterdir()))]

    def wait_until_clean(self, seconds: float = 180.0) -> None:
        """No process and no stray file is left on the board."""
        end = time.monotonic() + seconds
        while self.agents() or self.left():
            assert time.monotonic() < end, f"left on the board: {self.agents()} {self.left()}"
            time.sleep(0.02)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace(" ", "\0").split("\0")
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children] + [d for child in children for d in descendants(int(child))]


class Wire:
    """TCP from a port of its own to a server, counting, and cut or silenced when the test says so."""

    def __init__(self, target: int, delay_s: float = 0.0) -> None:
        self.sent = 0  # bytes from the client to the server
        self._delay_s = delay_s  # of every byte, each way
        self._target = target
        self._cut_at: int | None = None
        self._flow = threading.Event()
        self._silenced: list[threading.Event] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening: socket.socket | None = None
        self._reserved = reserve_port()
        self.port = port_of(self._reserved)
        self.mend()

    def mend(self) -> None:
        """Accept connections."""
        listening = socket.create_server(("127.0.0.1", self.port))
        self._listening = listening
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def cut(self, for_good: bool = False) -> None:
        """Break all connections; ``for_good`` refuses new ones, too."""
        with self._lock:
            if for_good and self._listening is not None:
                with contextlib.suppress(OSError):
                    self._listening.shutdown(socket.SHUT_RDWR)
                self._listening.close()
                self._listening = None
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._open.clear()

    def cut_after(self, size: int) -> None:
        """Break the connections when the client has sent so many bytes more; once."""
        self._cut_at = self.sent + size

    def silence(self) -> None:
        """Let nothing more through the connections that there are; both ends still believe in them."""
        self._silenced.append(self._flow)
        self._flow = threading.Event()

    def silence_new(self) -> None:
        """Let nothing through the connections that are still to come, either."""
        self._silenced.append(self._flow)

    def close(self) -> None:
        self.cut(for_good=True)
        self._reserved.close()
        for flow in self._silenced:
            flow.set()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    if self._listening is not listening:
                        near.close(), far.close()
                        return
                    self._open.update((near, far))
                for source, sink in ((near, far), (far, near)):
                    ways = (source, sink, sink is far, self._flow)
                    threading.Thread(target=self._pump, args=ways, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool, flow: threading.Event) -> None:
        late: queue.Queue[tuple[float, bytes]] = queue.Queue()
        if self._delay_s:
            threading.Thread(target=_delayed, args=(late, sink), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if flow in self._silenced:
                    flow.wait()
                    return
                if counted:
                    self.sent += len(data)
                    if self._cut_at is not None and self.sent >= self._cut_at:
                        self._cut_at = None
                        self.cut()
                        return
                if self._delay_s:
                    late.put((time.monotonic() + self._delay_s, data))
                else:
                    sink.sendall(data)
        late.put((0.0, b""))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _delayed(late: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
    """Send what comes when it is due, up to an empty piece."""
    with contextlib.suppress(OSError):
        while True:
            due, data = late.get()
            if not data:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            sink.sendall(data)

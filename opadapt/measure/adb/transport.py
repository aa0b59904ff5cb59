"""The agent on an Android phone, through adb: no app, no root, no network.

The agent runs in adb's shell, its file and its sessions under ``/data/local/tmp``, the one place where that user may
write. Android has no Python, so a phone measures only when its device file names an interpreter (``python``) that
adb's shell can start and that has numpy and onnxruntime; a phone without one is told apart at once. What stands in
for the agent must speak its protocol (``opadapt/measure/agent.py``) on stdin and stdout.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.adb.connection import Connection
from opadapt.measure.adb.server import AdbServer
from opadapt.measure.adb.streams import Shell
from opadapt.measure.facts import Facts
from opadapt.measure.transport import AGENT, END_WAIT_S, whoami

FOLDER = "/data/local/tmp/opadapt"
LINGER_S = 60.0  # how long the agent keeps its files for us when the phone was unplugged
VERIFY_S = 120.0  # longest wait until the phone has hashed a file
_VERSION = "import sys; print(*sys.version_info[:2], sep='.')"


class AdbTransport:
    """Transport to the phone with that serial number; an empty one: the device file's, or the only phone."""

    def __init__(
        self, host: str, facts: Facts, server: AdbServer | None = None, folder: str | None = None
    ) -> None:
        self.connection = Connection(host or facts.host, server)
        self._python = facts.python
        self._folder = folder or FOLDER
        self._shell: Shell | None = None
        self._answered = False
        self._numbers = itertools.count()
        self._token = secrets.token_hex(16)

    @property
    def host(self) -> str:
        """The serial number, as far as it is known."""
        return self.connection.host

    def start(self) -> None:
        self._drop()
        self.connection.wait()
        if "shell_v2" not in self.connection.features():
            raise DeviceError(
                f"phone {self.host}: its adb is too old",
                expected="Android 7 or newer (adb's feature shell_v2)",
                do="use a newer phone",
            )
        self._find_python()
        command = [self._python, self._placed(), "--token", self._token, "--linger", f"{LINGER_S:g}"]
        command += ["--board-lock", f"{self._folder}/board.lock", "--who", whoami()]
        with self.connection.watched():
            self._shell = self.connection.shell("exec " + shlex.join(command))
        self._answered = False

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        shell, number = self._shell, next(self._numbers)
        if shell is None:
            raise LostDevice(f"phone {self.host}: the agent is not running")
        with self._dropping(), self.connection.watched():
            with suppress(
                BrokenPipeError, ConnectionResetError
            ):  # how it ended may still be there to be read
                shell.write(json.dumps({**message, "id": number}).encode() + b"\n")
            line = shell.read_line(timeout_s)
            if not line:
                raise self._how_it_ended(shell)
            try:
                answer: dict[str, Any] = json.loads(line)
                given = answer.pop("id", None)
            except (ValueError, AttributeError):
                text = line[:200].decode(errors="replace")
                raise DeviceError(
                    f"phone {self.host}: not an answer of the agent", expected="one line of JSON", found=text
                ) from None
            if given != number:
                raise DeviceError("the agent answered another request", expected=f"number {number}")
        self._answered = True
        return answer

    def put(self, data: bytes, path: str) -> None:
        """Write a file in the agent's folder; it has its name only once the agent has found it whole. adb cannot
        go on with half a file: after a broken connection all of it is sent again."""
        digest = hashlib.sha256(data).hexdigest()
        found = ""
        for _ in range(2):
            self.connection.put(data, f"{path}.part")
            answer = self.request({"do": "verify", "path": path, "sha256": digest}, VERIFY_S)
            if "error" not in answer:
                return
            found = answer["error"]["message"]
        raise DeviceError(
            f"phone {self.host}: a file arrives changed", expected=f"sha256 {digest}", found=found
        )

    def get(self, path: str) -> bytes:
        return self.connection.get(path)

    def close(self) -> None:
        shell, self._shell = self._shell, None
        if shell is None:
            return
        try:
            shell.write(b'{"do": "bye"}\n')  # without it, the agent would expect us back
            shell.finish(END_WAIT_S)
        except (OSError, EOFError):
            pass  # it is gone, or stuck: closing the connection ends it
        finally:
            shell.close()

    def _find_python(self) -> None:
        """Raises DeviceError where there is no interpreter."""
        found = self.connection.run([self._python, "-c", _VERSION])
        if found.code != 0:
            text = (found.stderr or found.stdout).decode(errors="replace").strip()
            raise DeviceError(
                f"phone {self.host}: nothing there can run the agent",
                expected=f"'{self._python}' in adb's shell: Python 3.9 or newer with numpy and onnxruntime",
                found=text or f"exit code {found.code}",
                do="Android ships no Python: name one in a device file of your own (python: /path/to/python3), "
                'or run sshd in Termux and measure over ssh (README, "A phone over adb")',
            )

    def _placed(self) -> str:
        """The path of the agent on the phone, copied there unless it is there unharmed."""
        content = AGENT.read_bytes()
        path = f"{self._folder}/agent-{hashlib.sha256(content).hexdigest()}.py"
        if not self.connection.holds(path, content):
            part = f"{path.removesuffix('.py')}.{self._token}.part"  # another run may be copying it too
            self.connection.put(content, part)
            arrived = self.connection.holds(part, content)
            done = self.connection.run(["mv", "-f", part, path] if arrived else ["rm", "-f", part])
            if not arrived:
                raise DeviceError(f"phone {self.host}: '{part}' is not what was sent", do="try another cable")
            if done.code != 0:
                why = done.stderr.decode(errors="replace")
                raise self.connection.refused(f"'{path}' cannot be written", why)
        return path

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """After a failure the agent is left alone: it goes by itself."""
        try:
            yield
        except DeviceError:
            self._drop()
            raise

    def _drop(self) -> None:
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.close()

    def _how_it_ended(self, shell: Shell) -> DeviceError:
        """An agent that has answered may do so again once restarted; one that never has will not."""
        if shell.code is None:
            return LostDevice(f"phone {self.host} is gone", found="the connection ended")
        kind = LostDevice if self._answered else DeviceError
        text = f"exit code {shell.code}\n{shell.stderr.decode(errors='replace')}"
        return kind(f"phone {self.host}: the agent ended", expected="an answer", found=text.strip())

"""The agent on a board, over SSH.

Its file lies on the board under its own hash and travels only when it is not there. What it does and what it leaves
behind is the agent's affair (``agent.py``): it is told a token, and an agent started later with the same token
takes over the files of one that lost its connection. So a broken connection costs the request that was under way,
and an upload goes on where it stopped.

A host that vanishes (its lid is shut, its power or its Wi-Fi goes) closes nothing, and no server asks for it of its
own accord. So the agent is sent a sign of life every ``BEAT_S`` seconds and takes ``SILENCE_S`` without one for the
end of the connection: a minute later the board is free for everybody, the same user's next process included. A token
kept in the run's folder would let that process alone take over, and nobody if the host never comes back.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.facts import Facts
from opadapt.measure.ssh.connection import Connection
from opadapt.measure.ssh.files import no_space
from opadapt.measure.ssh.process import RemoteProcess
from opadapt.measure.transport import AGENT, END_WAIT_S, whoami

CACHE = ".cache/opadapt"  # below the board user's home
VENV_PYTHON = "venv/bin/python"  # below that: what `opadapt devices check --install` sets up
LINGER_S = 60.0  # how long an agent that has lost its host keeps the files
BEAT_S, SILENCE_S = 10.0, 60.0
VERIFY_S = 120.0  # to hash an upload on a slow card
SHORT_S = 30.0
_NOISE = 100  # lines at most that a login shell may say before the agent does


class SshTransport:
    """Transport to the agent on one host. ``facts.python`` runs it, unless opadapt set up an environment there."""

    def __init__(self, host: str, facts: Facts) -> None:
        self.host = host
        self.connection = Connection(host)
        self.token = secrets.token_hex(16)
        self._python = facts.python
        self._process: RemoteProcess | None = None
        self._answered = False
        self._uploads: set[str] = set()  # begun, and perhaps there in part
        self._numbers = itertools.count()

    def start(self) -> None:
        self._let_go()
        self.connection.open()
        home = self._home()
        agent = self._delivered(home)
        own = f"{home}/{CACHE}/{VENV_PYTHON}"
        python = own if self.connection.exists(own) else self._python
        options = ["--token", self.token, "--linger", f"{LINGER_S:g}", "--silence", f"{SILENCE_S:g}"]
        options += ["--board-lock", "--who", whoami()]
        self._process = self.connection.process([python, agent, *options], BEAT_S)
        self._answered = False

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        process, number = self._process, next(self._numbers)
        if process is None:
            raise DeviceError(f"{self.host}: the agent is not running", do="start the transport first")
        try:
            return self._exchanged(process, {**message, "id": number}, timeout_s)
        except (LostDevice, TimeoutError) as error:
            if self._process is not process:
                raise DeviceError(f"{self.host}: closed in the middle of a request") from error
            self._let_go()
            if isinstance(error, LostDevice):
                raise
            raise LostDevice(f"{self.host}: the agent did not answer within {timeout_s:g} s") from None

    def put(self, data: bytes, path: str) -> None:
        """Write a file in the agent's folder; it has its name only once the agent has found it whole."""
        digest = hashlib.sha256(data).hexdigest()
        found = ""
        for _ in range(2):  # an upload that goes on from something else than its beginning starts anew
            begun = path in self._uploads
            self._uploads.add(path)
            self.connection.put(data, f"{path}.part", resume=begun)
            answer = self.request({"do": "verify", "path": path, "sha256": digest}, VERIFY_S)
            self._uploads.discard(path)
            if "error" not in answer:
                return
            found = answer["error"]["message"]
        raise DeviceError(f"{self.host}: a file arrives changed", expected=f"sha256 {digest}", found=found)

    def get(self, path: str) -> bytes:
        return self.connection.get(path)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(DeviceError, TimeoutError):  # without a goodbye it lingers, and goes all the same
                self._exchanged(process, {"do": "bye", "id": next(self._numbers)}, END_WAIT_S)
            process.close(END_WAIT_S)
        self._uploads.clear()
        self.connection.close()

    def _home(self) -> str:
        """The board user's home folder."""
        done = self.connection.run(["sh", "-c", 'printf "\\n%s" "$HOME"'], timeout_s=SHORT_S)
        home = done.stdout.decode(errors="replace").rpartition("\n")[2]
        if done.code != 0 or not home.startswith("/"):
            raise DeviceError(
                f"{self.host}: no shell that runs commands",
                expected="a POSIX shell and a home folder",
                found=done.stderr.decode(errors="replace").strip() or f"exit code {done.code}, '{home}'",
            )
        return home

    def _delivered(self, home: str) -> str:
        """The agent's path on the board, copied there unless it is there unharmed."""
        content = AGENT.read_bytes()
        folder = f"{home}/{CACHE}"
        name = f"agent-{hashlib.sha256(content).hexdigest()}"
        path, part = f"{folder}/{name}.py", f"{folder}/{name}.{self.token}.part"
        self.connection.make_folder(folder)
        if not self.connection.exists(path) or self.connection.get(path) != content:
            self.connection.put(content, part)
            self.connection.rename(part, path)
        return path

    def _exchanged(
        self, process: RemoteProcess, message: Mapping[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        process.write_line(json.dumps(message).encode())
        for _ in range(_NOISE):
            line = process.read_line(timeout_s)
            if not line and process.code is not None:
                raise self._how_it_ended(process)
            answer = _answer(line)
            if answer is None and self._answered:
                raise LostDevice(f"{self.host}: not an answer of the agent", found=repr(line[:200]))
            if answer is not None:
                self._answered = True
                if answer.pop("id", None) == message["id"]:
                    return answer
        raise DeviceError(f"{self.host}: the agent does not answer", found=repr(line[:200]))

    def _how_it_ended(self, process: RemoteProcess) -> DeviceError:
        """An agent that has answered may do so again once restarted; one that never has will not."""
        found = f"exit code {process.code}" + (f"\n{process.stderr}" if process.stderr else "")
        if self._answered:
            return LostDevice(f"{self.host}: the agent ended", expected="an answer", found=found)
        if "No space left" in process.stderr:
            return no_space(self.host, f"~/{CACHE}", "room for the agent's files", process.stderr)
        missing = process.code in (126, 127)
        return DeviceError(
            f"{self.host}: the agent does not start",
            expected=f"'{self._python}', Python 3.9 or newer",
            found=found,
            do="install Python there, or name another (python: in the device file)" if missing else None,
        )

    def _let_go(self) -> None:
        """Leave an agent alone: it goes by itself."""
        process, self._process = self._process, None
        if process is not None:
            process.close(0.0)


def _answer(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None

"""The adb server on this machine, the phones that it knows, and connections to their services.

adbutils finds and starts the server and speaks its protocol (AOSP, packages/modules/adb, docs/dev/services.md);
this module is the only one that imports it, and turns its failures into errors that say what to do.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from opadapt.errors import DeviceError, LostDevice

CONNECT_S = 20.0  # to reach the server and have it open a service on the phone; also its own start
DEFAULT_PORT = 5037
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

# state as `adb devices` tells it -> what to do; in the first three the phone is there and does not let us in
_CLOSED: Mapping[str, str] = MappingProxyType(
    {
        "unauthorized": "unlock the phone and accept 'Allow USB debugging' for this computer, then try again",
        "authorizing": "unlock the phone, accept 'Allow USB debugging', then try again",
        "no": "let this user open USB devices: install Android's udev rules, or run the adb server as root",
    }
)
_AWAY: Mapping[str, str] = MappingProxyType(
    {
        "connecting": "wait a moment and try again",
        "offline": "unplug the phone and plug it in again, or run `adb reconnect offline`",
        "recovery": "start Android on the phone",
        "bootloader": "start Android on the phone",
        "sideload": "start Android on the phone",
    }
)
_PLUG_IN = "plug it in and switch on 'USB debugging' in its developer options"


def gone(message: str, **parts: str | None) -> LostDevice:
    """A LostDevice that is not worth another try at once."""
    lost = LostDevice(message, **parts)
    lost.given_up = True
    return lost


def _adbutils() -> Any:
    """The library, which is optional. Raises DeviceError."""
    try:
        import adbutils
    except ImportError as error:
        raise DeviceError(
            "phones need adbutils, which is not installed", do="pip install 'opadapt[android]'"
        ) from error
    return adbutils


class AdbServer:
    """The server at ``host:port``: by default where ``ANDROID_ADB_SERVER_HOST`` and ``_PORT`` say, as for adb."""

    def __init__(self, host: str | None = None, port: int | None = None) -> None:
        self.host = host or os.environ.get("ANDROID_ADB_SERVER_HOST") or "127.0.0.1"
        self.port = port or _port(os.environ.get("ANDROID_ADB_SERVER_PORT", ""))

    def choose(self, serial: str | None) -> str:
        """The serial number, if that phone is ready; of the only phone without one.

        Raises LostDevice if it is not there, DeviceError if it is and keeps us out, or if there are several.
        """
        states = self.states()
        wanted = serial or os.environ.get("ANDROID_SERIAL") or None
        ready = [name for name, state in states.items() if state == "device"]
        listed = ", ".join(f"{name} ({state})" for name, state in sorted(states.items())) or "none"
        if wanted is None and not states:
            raise gone("no phone is connected", found="adb lists none", do=_PLUG_IN)
        if wanted is None and len(ready) > 1:
            raise DeviceError("several phones are connected", found=listed, do="name one: TYPE@SERIAL")
        name = wanted or (ready or list(states))[0]
        if name not in states:
            raise gone(
                f"no phone '{name}'", expected="a serial number that adb lists", found=listed, do=_PLUG_IN
            )
        state = states[name]
        if state in _CLOSED:
            raise DeviceError(f"phone {name} keeps us out", found=state, do=_CLOSED[state])
        if state != "device":
            do = _AWAY.get(state, "see `adb devices -l`")
            raise gone(f"phone {name} is not ready", expected="device", found=state, do=do)
        return name

    def states(self) -> dict[str, str]:
        """Serial number and state of every phone. Raises LostDevice without a server."""
        with _translated("the adb server"):
            return {phone.serial: phone.state for phone in self._client().list()}

    def features(self, serial: str) -> frozenset[str]:
        """What the phone's adb daemon can do. Raises LostDevice."""
        with _translated(f"phone {serial}"):
            found = self._client().device(serial).get_features()
            return frozenset(str(found).split(","))

    def open(self, serial: str, service: str) -> socket.socket:
        """A connection to one service of the phone, its timeout CONNECT_S. Raises LostDevice."""
        with _translated(f"phone {serial}"):
            connection = self._client().device(serial).open_transport(timeout=CONNECT_S)
            try:
                connection.send_command(service)
                connection.check_okay()
            except BaseException:
                connection.conn.close()
                raise
            found: socket.socket = connection.conn
            return found

    def _client(self) -> Any:
        library = _adbutils()
        self._started(library)
        return library.AdbClient(self.host, self.port, socket_timeout=CONNECT_S)

    def _started(self, library: Any) -> None:
        """Start the server unless it answers. adbutils would do it too, but print to the terminal."""
        problem = self._silent()
        if problem is None:
            return
        if self.host in _LOOPBACK:
            problem = _start(library, self.port) or self._silent()
        if problem is not None:
            raise gone(
                f"no adb server answers at {self.host}:{self.port}",
                found=problem,
                do="install Android's platform tools, then run `adb start-server`",
            )

    def _silent(self) -> str | None:
        """Why nobody answers, None if somebody does."""
        try:
            socket.create_connection((self.host, self.port), 3.0).close()
        except OSError as error:
            return str(error)
        return None


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise DeviceError("wrong ANDROID_ADB_SERVER_PORT", expected="a port number", found=repr(text))
    return int(text)


def _start(library: Any, port: int) -> str | None:
    """Start a server on this machine; what adb said if it did not start."""
    with tempfile.TemporaryFile() as said:  # a pipe would stay open in the server
        try:
            command = [library.adb_path(), "-P", str(port), "start-server"]
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
            # a session of its own: the server is to outlive this terminal's Ctrl-C
            done = subprocess.run(command, timeout=CONNECT_S, check=False, start_new_session=True, **options)
        except (OSError, subprocess.SubprocessError, library.AdbError) as error:
            return str(error)
        said.seek(0)
        text = said.read()[-2000:].decode(errors="replace").strip()
        return None if done.returncode == 0 else text or f"exit code {done.returncode}"


@contextmanager
def _translated(who: str) -> Iterator[None]:
    """adbutils' failures as ours."""
    failures = (_adbutils().AdbError, OSError, EOFError, ValueError)
    try:
        yield
    except failures as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise LostDevice(f"{who} does not answer", found=text, do="see `adb devices -l`") from error

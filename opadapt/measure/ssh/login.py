"""From a host as the user writes it to a connection that is encrypted, verified and logged in.

``~/.ssh/config`` is obeyed as ``ssh`` would (asyncssh reads it): HostName, User, Port, IdentityFile, IdentityAgent,
ProxyJump, ProxyCommand, HostKeyAlias, UserKnownHostsFile, algorithms. Not obeyed: StrictHostKeyChecking, because host
keys are always verified (``trust``), and ForwardAgent, because no board needs the user's keys. Jump hosts are
logged in to here, one by one, since asyncssh would verify them by its own rules.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import asyncssh

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.address import Host, split_host
from opadapt.measure.ssh.trust import GLOBAL_FILES, USER_FILES, Trusted, refusal, trusted

KEEPALIVE_S = 10.0  # a connection that is silent for three times that is lost
KEEPALIVE_COUNT = 3
MAX_JUMPS = 8
_SWITCHED_ON = "see that it is on and in the network"


async def log_in(host: str, timeout_s: float) -> asyncssh.SSHClientConnection:
    """A connection to ``alias`` or ``[user@]host[:port]``.

    Raises LostDevice if the host cannot be reached, DeviceError if it is another one than known_hosts says, if it
    is not known, or if it accepts no key of the user's.
    """
    return await _hop(split_host(host), host, None, timeout_s, ())


async def _hop(
    host: Host,
    label: str,
    via: asyncssh.SSHClientConnection | None,
    timeout_s: float,
    passed: tuple[Host, ...],
) -> asyncssh.SSHClientConnection:
    """Log in to one host, through ``via`` or through the jump hosts that its own configuration names."""
    if len(passed) > MAX_JUMPS or host in passed:
        names = " -> ".join(h.name for h in (*passed, host))
        raise DeviceError(f"{label}: its ProxyJump goes in circles", found=names, do="mend ~/.ssh/config")
    options = _configured(host, label)
    try:
        for jump in _jumps(options, host, via):
            via = await _hop(jump, f"{label}, by way of {jump.name}", via, timeout_s, (*passed, host))
        connection = await _authenticated(host, label, options, via, timeout_s)
    except BaseException:
        if via is not None:
            via.abort()
        raise
    if via is not None:
        connection.set_tunnel(via)  # closed with this one
    return connection


def _configured(host: Host, label: str) -> asyncssh.SSHClientConnectionOptions:
    """What the user's configuration says about a host. Nothing is connected with these options."""
    config = Path.home() / ".ssh" / "config"
    try:
        return asyncssh.SSHClientConnectionOptions(
            config=[config] if config.is_file() else [],
            host=host.name,
            port=host.port if host.port is not None else (),
            username=host.user if host.user is not None else (),
            client_keys=None,
            known_hosts=b"",
        )
    except (ValueError, OSError, asyncssh.Error) as error:
        raise DeviceError(f"{label}: {config} cannot be used", found=str(error), do="mend it") from error


def _jumps(
    options: asyncssh.SSHClientConnectionOptions, host: Host, via: asyncssh.SSHClientConnection | None
) -> list[Host]:
    if via is not None or not isinstance(options.tunnel, str):
        return []
    jumps = [split_host(jump) for jump in options.tunnel.split(",")]
    return [] if [jump.name for jump in jumps] == [host.name] else jumps  # `Host *` with a ProxyJump


def _list(options: asyncssh.SSHClientConnectionOptions, key: str, default: Sequence[str]) -> list[str]:
    return list(cast("Sequence[str]", options.config.get(key, default)))


class _Witness(asyncssh.SSHClient):
    """Keeps the host key that was not among the trusted ones; trusts none."""

    def __init__(self) -> None:
        self.offered: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.offered = key
        return False


async def _authenticated(
    host: Host,
    label: str,
    options: asyncssh.SSHClientConnectionOptions,
    via: asyncssh.SSHClientConnection | None,
    timeout_s: float,
) -> asyncssh.SSHClientConnection:
    user_files = _list(options, "UserKnownHostsFile", USER_FILES)
    global_files = _list(options, "GlobalKnownHostsFile", GLOBAL_FILES)
    known = trusted(options.host, options.port, options.host_key_alias, user_files, global_files)
    keys = [Path(file).expanduser() for file in _list(options, "IdentityFile", ())]
    witness = _Witness()
    try:
        return await asyncssh.connect(
            host.name,
            port=options.port,
            username=options.username,
            config=[Path.home() / ".ssh" / "config"] if (Path.home() / ".ssh" / "config").is_file() else [],
            canonicalize_hostname=False,
            tunnel=via,
            client_factory=lambda: witness,
            known_hosts=(known.keys, known.authorities, known.revoked),
            server_host_key_algs=known.kinds,
            x509_trusted_certs=None,
            client_keys=[key for key in keys if key.is_file()],  # as ssh passes over those that are missing
            ignore_encrypted=True,  # those are used through the agent
            agent_forwarding=False,
            request_pty=False,
            connect_timeout=timeout_s,
            login_timeout=timeout_s,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVE_COUNT,
        )
    except (OSError, ValueError, asyncssh.Error) as error:
        where = f"{options.username}@{options.host}, port {options.port}"
        raise _explained(error, f"{label} ({where})", _login(host), known, witness.offered) from error


def _login(host: Host) -> str:
    """Arguments of ``ssh``."""
    port = f"-p {host.port} " if host.port is not None else ""
    return port + (f"{host.user}@{host.name}" if host.user else host.name)


def _explained(
    error: Exception, label: str, login: str, known: Trusted, offered: asyncssh.SSHKey | None
) -> DeviceError:
    text = str(error)
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return refusal(label, login, known, offered, text)
        case asyncssh.PermissionDenied():
            return DeviceError(
                f"{label}: it accepts no key of yours",
                found=text,
                do=f"send it your key with `ssh-copy-id {login}`, or name another one (IdentityFile in "
                "~/.ssh/config); a key with a passphrase has to be in ssh-agent (ssh-add)",
            )
        case socket.gaierror():
            return LostDevice(
                f"{label}: no host of that name",
                found=text,
                do="give its address (--host pi@10.0.0.7), or an alias of ~/.ssh/config",
            )
        case TimeoutError():
            return LostDevice(f"{label}: does not answer", found="silence", do=_SWITCHED_ON)
        case OSError() if error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in text:
            return LostDevice(
                f"{label}: nothing listens on that port",
                found=text,
                do="start its SSH server (Raspberry Pi: sudo raspi-config, Interface Options, SSH)",
            )
        case OSError() | asyncssh.ConnectionLost():
            return LostDevice(f"{label}: cannot be reached", found=text, do=_SWITCHED_ON)
        case _:
            return DeviceError(f"{label}: no connection", found=f"{type(error).__name__}: {text}")

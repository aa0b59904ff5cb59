"""Which device is meant: ``TYPE``, ``TYPE@HOST`` or ``TYPE@HOST,HOST,...``.

The type is a name (``rpi4``) or the path of a ``.yaml`` of facts. A host is what ssh takes: an alias of
``ssh_config`` or ``[user@]name[:port]``, so the *first* ``@`` divides (``rpi4@pi@10.0.0.7``); after a path, the
first one that follows ``.yaml``. Where the host is given apart (``--host``) the text is the type alone.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from opadapt.errors import ConfigError

_FORM = "TYPE, TYPE@HOST or TYPE@HOST,HOST, such as rpi4 or rpi4@pi@10.0.0.7"
_HOST_FORM = "an ssh alias or [user@]host[:port]"
_PATH = re.compile(r"(.*?\.ya?ml)(?:@(.*))?", re.DOTALL)
_USER = re.compile(r"[^\s@:,/\[\]-][^\s@:,/\[\]]*")
_HOST = re.compile(r"(?P<name>\[[^\s@,\[\]/]+\]|[^\s@,:/\[\]-][^\s@,:/\[\]]*)(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class Address:
    """A device type, and the hosts where devices of it are; no hosts: the type's own."""

    type: str
    hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.type}@{','.join(self.hosts)}" if self.hosts else self.type


@dataclass(frozen=True)
class Host:
    """The parts of ``[user@]name[:port]``; the brackets around an IPv6 address are gone."""

    name: str
    user: str | None = None
    port: int | None = None


def parse_device(text: str, host: str | None = None) -> Address:
    """The device that ``--device`` and ``--host`` (one, or several with commas) name. Raises ConfigError."""
    kind, hosts = split_device(text)
    if not kind:
        raise ConfigError("no device type", expected=_FORM, found=repr(text))
    if hosts is not None and host is not None:
        raise ConfigError(
            "the host is given twice",
            expected="--host, or @ in the device",
            found="both",
            do=f"leave out one of them: --device {kind} --host ...",
        )
    given = host if hosts is None else hosts
    if given is None:
        return Address(kind)
    found = tuple(check_host(part) for part in given.split(","))
    for name in found:
        if found.count(name) > 1:
            raise ConfigError("a host is named twice", expected="each board once", found=name)
    return Address(kind, found)


def split_device(text: str) -> tuple[str, str | None]:
    """The type and the text of its hosts, unchecked; None where there is no ``@`` for hosts."""
    path = _PATH.fullmatch(text)
    if path is not None:
        return path[1], path[2]
    kind, at, hosts = text.partition("@")
    return kind, hosts if at else None


def check_host(text: str) -> str:
    """The text, if it is an ssh alias or ``[user@]host[:port]``. Raises ConfigError."""
    split_host(text)
    return text


def split_host(text: str) -> Host:
    """The parts of ``[user@]host[:port]``; a bare IPv6 address has no port. Raises ConfigError."""
    before, at, rest = text.rpartition("@")
    if ":" in before:  # a password: it is not to be shown again
        raise ConfigError(
            "a host with a password",
            expected=_HOST_FORM,
            found="a ':' before the '@'",
            do="use an ssh key; opadapt takes no passwords",
        )
    user_fits = _USER.fullmatch(before) is not None if at else True
    if user_fits and _is_ipv6(rest):
        return Host(rest, before or None)
    match = _HOST.fullmatch(rest)
    port = int(match["port"]) if match is not None and match["port"] else None
    bracketed = match is not None and match["name"].startswith("[")
    fits = match is not None and user_fits and (port is None or 0 < port < 65536)
    if match is None or not fits or (bracketed and not _is_ipv6(match["name"][1:-1])):
        raise ConfigError("not a host", expected=_HOST_FORM, found=repr(text))
    return Host(match["name"].strip("[]"), before or None, port)


def _is_ipv6(text: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False

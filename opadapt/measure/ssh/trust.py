"""Whose host keys are trusted: the user's ``known_hosts`` and the system's, read as OpenSSH reads them.

Stricter than asyncssh in three ways. A host is looked up by its name alone, never by the address it resolves to; a
``UserKnownHostsFile none`` means that nothing is known, not that nothing is verified; X.509 is out. Nothing is
ever added to these files here: an unknown key is shown, and accepting it is left to ``ssh``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from opadapt.errors import DeviceError

SSH_PORT = 22
USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
# kinds of keys in the order in which OpenSSH's client asks for them: ``ssh`` then shows the same fingerprint
KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
_SIGNED = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}  # else a key is signed with what it is called
_NAMES = re.compile(r"^(\s*(?:@\S+\s+)?)([^\s|@#]\S*)", re.MULTILINE)  # of a line that is not hashed
_SERVER_FILES = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}  # else ecdsa


@dataclass(frozen=True)
class Trusted:
    """What is known of one host. ``name``: as known_hosts calls it; ``own``: whether it has keys under that very
    name, port included."""

    name: str
    files: tuple[str, ...]
    keys: Sequence[asyncssh.SSHKey]
    authorities: Sequence[asyncssh.SSHKey]
    revoked: Sequence[asyncssh.SSHKey]
    own: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of host keys to ask for: known ones first, then the others, to see what has become of it. None
        for asyncssh's own choice, which has certificates."""
        kinds = [k for key in self.keys for k in _SIGNED.get(key.get_algorithm(), (key.get_algorithm(),))]
        return () if self.authorities else tuple(dict.fromkeys((*kinds, *KINDS)))


def trusted(
    host: str, port: int, alias: str | None, user_files: Sequence[str], global_files: Sequence[str]
) -> Trusted:
    """Everything known of a host, which may have a HostKeyAlias; files that are missing know nothing. Names are
    compared in lower case. Raises DeviceError for a malformed file."""
    host, port = (alias.lower(), SSH_PORT) if alias else (host.lower(), port)
    name = host if port == SSH_PORT else f"[{host}]:{port}"
    paths = [Path(file).expanduser() for file in (*user_files, *global_files)]
    known = asyncssh.SSHKnownHosts()
    for path in paths:
        try:
            known.load(_NAMES.sub(_in_lower_case, path.read_text(errors="replace")))
        except OSError:
            continue
        except ValueError as error:
            raise DeviceError(f"{path}: not a file of known hosts", found=str(error)) from error
    keys, authorities, revoked = known.match(name, "", None)[:3]
    own = bool(keys or authorities)
    if not own and name != host:  # an entry without a port speaks for every port, as it does for ssh
        keys, authorities, also_revoked = known.match(host, "", None)[:3]
        revoked = [*revoked, *also_revoked]
    return Trusted(name, tuple(str(path) for path in paths), keys, authorities, revoked, own)


def _in_lower_case(names: re.Match[str]) -> str:
    return names[1] + names[2].lower()


def shown(key: asyncssh.SSHKey) -> str:
    """A key as ``ssh`` shows it: its kind and its SHA256 fingerprint."""
    return f"{key.get_algorithm()} {key.get_fingerprint()}"


def refusal(label: str, login: str, known: Trusted, offered: asyncssh.SSHKey | None, why: str) -> DeviceError:
    """Why a host key was not accepted. ``login``: the arguments that make ``ssh`` go to the same host."""
    files = known.files[0] if known.files else "known_hosts"
    found = why if offered is None else shown(offered)
    kind = "..." if offered is None else _SERVER_FILES.get(offered.get_algorithm(), "ecdsa")
    own_key = f"`ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub` on the board itself"
    if offered is None and "key is revoked" in why:  # asyncssh refuses such a key without showing it
        return DeviceError(
            f"{label}: its host key is revoked, nothing was sent",
            expected="a key that is not marked @revoked in " + " or ".join(known.files),
            found=found,
            do="do not connect: whoever has that key may answer in its place. Give the board a new host key",
        )
    if known.own:
        return DeviceError(
            f"{label}: THE HOST KEY HAS CHANGED: another machine answers, or somebody in between. Nothing was sent",
            expected=", ".join(map(shown, known.keys)) or f"a certificate of an authority in {files}",
            found=found,
            do=f"only if the board was set up anew: compare with {own_key}, then "
            f"`ssh-keygen -R '{known.name}'` and accept the new key with `ssh {login}`",
        )
    return DeviceError(
        f"{label}: unknown host key, nothing was sent",
        expected=f"a key of '{known.name}' in {files}",
        found=found,
        do=f"compare it with {own_key}; if they are equal, accept it by `ssh {login}` once",
    )

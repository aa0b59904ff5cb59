"""The boards of ``scripts/emulated_board``, shared by the test processes: each is used by one test at a time.

``OPADAPT_TEST_BOARD`` names the home folder whose ``.ssh/config`` has them, as the script prints it (`home`), and
``OPADAPT_TEST_PORTS`` the ports of those that are the tests': there may be others. Their aliases tell what they are:
``emulated-PORT`` has numpy and onnxruntime, ``bare-PORT`` has neither.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from opadapt.measure.timing import Timing

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "emulated_board"
TYPE = "generic-aarch64"
WAIT_S = 1200.0  # for a board that another test process uses
SHORTEST = Timing(
    blocks=6, min_block_s=0.001, min_runs=1, warmup_s=0.0, profile_s=0.001, timeout_s=600
)  # an emulator's latencies mean nothing: as few runs as there may be


def home() -> Path:
    """The folder that stands for the user's home; skips the test where there is none."""
    named = os.environ.get("OPADAPT_TEST_BOARD")
    if not named:
        pytest.skip(
            "no emulated board: OPADAPT_TEST_BOARD is not set (scripts/emulated_board build, start, home)"
        )
    return Path(named)


def aliases(kind: str) -> list[str]:
    """The boards of that kind that are the tests', dead ones, too."""
    ports = os.environ.get("OPADAPT_TEST_PORTS", "").split()
    if not ports:
        pytest.fail(
            "OPADAPT_TEST_BOARD is set, and OPADAPT_TEST_PORTS does not say which of its boards to use"
        )
    text = (home() / ".ssh" / "config").read_text()
    known = {port_of(alias): alias for alias in re.findall(r"^Host (\w+-\d+)$", text, flags=re.MULTILINE)}
    if missing := [port for port in ports if port not in known]:
        pytest.fail(f"no boards on ports {' '.join(missing)} (scripts/emulated_board start PORT)")
    return [known[port] for port in ports if known[port] == f"{kind}-{port}"]


def port_of(alias: str) -> str:
    return alias.rpartition("-")[2]


def alive(alias: str) -> bool:
    return _script("pid", port_of(alias), check=False).returncode == 0


@contextmanager
def taken(count: int = 1, kind: str = "emulated") -> Iterator[list[str]]:
    """So many boards for oneself, by their aliases, and the home folder that leads to them as HOME."""
    found = aliases(kind)
    if len(found) < count:
        pytest.skip(f"{len(found)} of {count} boards '{kind}' are the tests' (OPADAPT_TEST_PORTS)")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home()))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        yield _locked(stack, found, count)


def _locked(stack: ExitStack, names: list[str], count: int) -> list[str]:
    """Locks on that many that live. All or none, so that two tests cannot wait for each other. Only under its lock a
    board is looked at: who has it may have ended it for a while."""
    end = time.monotonic() + WAIT_S
    while True:
        with ExitStack() as tried:
            mine: list[str] = []
            dead: list[str] = []
            for name in names:
                lock = FileLock(home() / f"{name}.lock")
                try:
                    tried.enter_context(lock.acquire(timeout=0))
                except Timeout:
                    continue
                (mine if alive(name) else dead).append(name)
                if len(mine) == count:
                    stack.enter_context(tried.pop_all())
                    return mine
        if len(names) - len(dead) < count:
            pytest.fail(f"{count} boards are needed, and of {', '.join(names)} are dead: {', '.join(dead)}")
        assert time.monotonic() < end, f"no {count} boards became free within {WAIT_S:g} s"
        time.sleep(0.1)


def on_board(alias: str, *command: str) -> str:
    """What a command prints there, by the system's own ssh: a look from outside opadapt."""
    ssh = ["ssh", "-F", str(home() / ".ssh" / "config"), "-o", "BatchMode=yes", alias, *command]
    return subprocess.run(ssh, capture_output=True, text=True, check=True, timeout=120).stdout


def leftovers(alias: str) -> list[str]:
    """Processes of opadapt and files of its sessions on a board."""
    listed = on_board(
        alias,
        'grep -la "[o]padapt/agent" /proc/[0-9]*/cmdline 2>/dev/null;'
        "find ~/.cache/opadapt/sessions -mindepth 1 2>/dev/null; find ~ -name '*.part'; true",
    )
    return listed.split("\n")[:-1]


def kill(alias: str) -> None:
    """The board is gone, as if its plug was pulled."""
    os.kill(int(_script("pid", port_of(alias)).stdout), 9)


def revive(alias: str) -> None:
    """The board starts again, with the files it had."""
    _script("start", port_of(alias))


def _script(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPADAPT_BOARD": str(home().parent)}
    return subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=check, timeout=300
    )

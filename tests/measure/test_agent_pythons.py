"""The agent under every Python that it is made for: what it does itself needs the standard library alone."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from opadapt.measure.agent import BoardLock
from opadapt.measure.transport import AGENT, LocalTransport

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
WAIT_S = 60.0


def interpreter(version: str) -> str:
    """A Python of that version; skips the test where there is none."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for path in (shutil.which(f"python{version}"), *kept):
        if path is not None:
            command = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:
                return str(path)
    pytest.skip(f"no Python {version} on the PATH or in ~/.pyenv/versions")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_protocol(tmp_path: Path, version: str) -> None:
    agent, lock = tmp_path / "agent.py", tmp_path / "board.lock"
    shutil.copy(AGENT, agent)
    options = ["--token", "t", "--linger", "60", "--board-lock", str(lock), "--who", "anna@desk"]
    transport = LocalTransport(interpreter(version), agent, options)
    transport.start()
    hello = transport.request({"do": "hello"}, WAIT_S)
    assert "error" not in hello or "No module named" in hello["error"]["message"]
    assert hello["sha256"] == hashlib.sha256(AGENT.read_bytes()).hexdigest() and hello["files"] == {}
    folder = Path(hello["folder"])
    assert folder == tmp_path / "sessions" / "t"
    assert (BoardLock(lock, "ben@desk").take() or "").startswith("anna@desk, since ")

    data = b"x" * 3_000_000
    path = folder / hashlib.sha256(data).hexdigest()
    for content, told in ((data[1:], "error"), (data, "verified")):
        path.with_name(f"{path.name}.part").write_bytes(content)
        assert told in transport.request({"do": "verify", "path": str(path), "sha256": path.name}, WAIT_S)
    assert path.read_bytes() == data
    assert transport.request({"do": "forget", "paths": [str(path)]}, WAIT_S) == {"removed": 1}
    assert transport.request({"do": "bye"}, WAIT_S) == {"gone": True}
    transport.close()
    assert not folder.exists() and not lock.read_text()

"""``opadapt devices`` against a real OpenSSH server."""

from __future__ import annotations

import getpass
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from boards.sshd_server import ALIAS, Sshd, make_key
from typer.testing import CliRunner

from opadapt.cli import app
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.check import install as install_module
from opadapt.measure.facts import load_facts
from opadapt.measure.ssh.transport import SshTransport


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["devices", *arguments])


@pytest.fixture
def board(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """The server, and a type ``loop`` for it in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(install_module, "BOARD_LOCK", sshd.lock)
    lines = f"name: loop\ndescription: loopback\ntransport: ssh\nhost: {ALIAS}\narch: host\npython: {sshd.python}\n"
    Path("loop.yaml").write_text(lines)
    return sshd


def findings(path: str) -> dict[str, dict[str, Any]]:
    (found,) = json.loads(Path(path).read_text())["boards"]
    return {finding["item"]: finding for finding in found["findings"]}


def test_check_looks_and_measures_and_leaves_nothing(board: Sshd) -> None:
    result = call("check", "loop", "--json", "out.json")
    found = findings("out.json")
    assert result.exit_code == (2 if any(f["verdict"] == "bad" for f in found.values()) else 0), result.output
    key = board.folder / "host_key.pub"
    assert found["host key"]["verdict"] == "ok" and found["host key"]["found"].startswith("SHA256:")
    assert key.exists()
    assert found["python"]["found"].split(",")[0] == ".".join(map(str, sys.version_info[:3]))
    assert found["onnxruntime"]["verdict"] == "ok"
    assert "between two sessions" in found["noise floor"]["found"], found["noise floor"]
    board.wait_until_clean()


def test_an_unknown_host_key_is_shown_and_not_accepted(board: Sshd) -> None:
    known = board.client / ".ssh/known_hosts"
    known.unlink()
    result = call("check", "loop")
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert (
        "unknown host key" in result.stderr and "SHA256:" in result.stderr and "accept it by" in result.stderr
    )
    assert not known.exists() and not board.cache.exists()


def test_a_changed_host_key_is_said_loudly(board: Sshd) -> None:
    (board.client / ".ssh/known_hosts").unlink()
    board.trust(board.port, make_key(board.folder / "other"))
    result = call("check", "loop")
    assert result.exit_code == 2 and "HAS CHANGED" in result.stderr and result.stdout == ""


def test_nobody_answers(board: Sshd) -> None:
    board.stop()
    result = call("check", "loop")
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert result.stdout == "" and f"error: {ALIAS}" in result.stderr


def test_init_of_a_host_that_has_no_type_yet(board: Sshd) -> None:
    result = call("init", ALIAS, "mine")
    assert result.exit_code == 0, result.output
    facts = load_facts("mine")
    assert (facts.transport, facts.host) == ("ssh", ALIAS)
    assert facts.cores is not None and facts.cores >= 1 and "uname -m" in Path("mine.yaml").read_text()
    assert not board.cache.exists()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that pip knows: wheels of a numpy and an onnxruntime that do nothing."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name, version in (("numpy", "2.0.0"), ("onnxruntime", "0.0.1")):
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", f"__version__ = '{version}'\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")


def test_nothing_is_installed_under_a_measurement(board: Sshd, index: None) -> None:
    with AgentDevice(board.facts(), SshTransport(ALIAS, board.facts()), 1) as device:
        result = call("check", "loop", "--install", "--json", "out.json")
        assert device.conditions()["threads"] == 1  # the agent is as it was
    assert result.exit_code == 2 and "another opadapt is measuring or installing" in result.stderr
    assert f"{getpass.getuser()}@" in result.stderr and "wait for it to end" in result.stderr
    assert findings("out.json")["connection"]["verdict"] == "bad"
    board.wait_until_clean()


def test_install_sends_wheels_and_makes_the_environment(board: Sshd, index: None) -> None:
    result = call("check", "loop", "--install", "--json", "out.json")
    found = findings("out.json")
    assert found["python"]["found"].endswith("~/.cache/opadapt/venv/bin/python, set up by --install"), (
        result.output
    )
    assert (found["onnxruntime"]["verdict"], found["onnxruntime"]["found"]) == ("ok", "0.0.1, numpy 2.0.0")
    # which measures nothing, being no onnxruntime: the finding says so, the environment stays
    assert result.exit_code == 2 and found["noise floor"]["verdict"] == "bad"
    assert {path.name for path in board.cache.iterdir()} - {"venv", "sessions"} == {
        path.name for path in board.cache.glob("agent-*.py")
    }
    shutil.rmtree(board.cache / "venv")
    board.wait_until_clean()

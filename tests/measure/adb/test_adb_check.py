"""``devices check`` of a phone: the same look through adb's shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from phone import FakeAdbServer, Phone
from typer.testing import CliRunner

from opadapt.cli import app
from opadapt.measure.adb import transport as transport_module


@pytest.fixture
def phone(adb: FakeAdbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    """The phone of the type ``mine`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\ndescription: a phone\ntransport: adb\narch: host\n")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb.port))
    monkeypatch.setattr(transport_module, "FOLDER", str(adb.phones["one"].storage))
    return adb.phones["one"]


def check() -> Any:
    return CliRunner().invoke(app, ["devices", "check", "mine"])


def test_a_phone_with_python_is_measured(phone: Phone) -> None:
    result = check()
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mine"), result.output
    version = ".".join(map(str, sys.version_info[:3]))
    assert any(line.startswith(f"ok    python: {version}") for line in lines), result.output
    assert any(line.startswith("ok    onnxruntime: ") for line in lines)
    assert "noise floor: " in result.stdout and "between two sessions" in result.stdout


def test_a_phone_without_python_says_what_there_is_instead(
    adb: FakeAdbServer, phone: Phone, tmp_path: Path
) -> None:
    adb.phones["one"] = Phone(tmp_path / "bare", python=None)
    result = check()
    assert result.exit_code == 2
    assert "bad   python: no python3" in result.stdout and "Termux" in result.stdout
    assert "sudo" not in result.stdout and "apt" not in result.stdout


def test_install_is_not_for_phones(phone: Phone) -> None:
    result = CliRunner().invoke(app, ["devices", "check", "mine", "--install"])
    assert result.exit_code == 2 and "boards over ssh" in result.stderr

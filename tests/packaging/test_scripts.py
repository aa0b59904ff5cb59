"""The scripts: valid executable bash, and free of anything that belongs to one machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [f"scripts/{name}" for name in ("install", "quickstart", "test", "check", "emulated_board")] + [
    ".ci/run"
]


@pytest.mark.parametrize("name", [*COMMANDS, "scripts/_env.sh", ".ci/boards.sh"])
def test_is_valid_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_is_executable_and_stops_at_the_first_error(name: str) -> None:
    path = ROOT / name
    assert os.access(path, os.X_OK)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines


def test_ci_runs_the_documented_test_command_last() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line]
    assert commands[-1] == "bash scripts/test"
    assert "bash scripts/test" in (ROOT / "README.md").read_text()


def test_says_what_is_missing_where_there_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "cat", "cksum"):
        found = subprocess.run(["bash", "-c", f"command -v {tool}"], capture_output=True, text=True)
        (tmp_path / "bin" / tool).symlink_to(found.stdout.strip())
    environment = {"PATH": str(tmp_path / "bin"), "OPADAPT_VENV": str(tmp_path / "venv")}
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "quickstart"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_ready_environment_is_left_alone(tmp_path: Path) -> None:
    """With the stamp of the present pyproject.toml nothing is installed, and a changed stamp is noticed."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text("#!/usr/bin/env bash\necho called >&2\nexit 3\n")
    python.chmod(0o755)
    source = f"source {ROOT / 'scripts' / '_env.sh'}; "
    environment = {**os.environ, "OPADAPT_VENV": str(venv)}

    def bash(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", source + text], env=environment, capture_output=True, text=True)

    bash('_fingerprint >"$VENV/.opadapt-dev"')
    assert bash("ensure_environment dev").returncode == 0
    assert bash("ensure_environment run").returncode == 0
    (venv / ".opadapt-dev").write_text("of another pyproject.toml\n")
    done = bash("ensure_environment dev")
    assert done.returncode == 1 and "called" in done.stderr


def test_the_static_checks_are_left_out_only_where_they_have_just_been_done(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for tool in ("python", "lint-imports"):
        (venv / "bin" / tool).write_text(f'#!/usr/bin/env bash\necho {tool} "$@"\n')
        (venv / "bin" / tool).chmod(0o755)
    environment = {**os.environ, "OPADAPT_VENV": str(venv)}
    fingerprint = f"source {ROOT}/scripts/_env.sh; _fingerprint"
    stamp = subprocess.run(["bash", "-c", fingerprint], env=environment, capture_output=True, text=True)
    (venv / ".opadapt-dev").write_text(stamp.stdout)

    def test(**checked: str) -> list[str]:
        command = ["bash", str(ROOT / "scripts" / "test"), "tests/ir"]
        done = subprocess.run(command, env=environment | checked, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    whole = test(OPADAPT_CHECKED="")
    assert {"python -m ruff check .", "python -m mypy", "lint-imports"} <= {line.strip() for line in whole}
    assert whole[-1].startswith("python -m pytest ") and whole[-1].endswith(" tests/ir")
    assert test(OPADAPT_CHECKED="/another/checkout") == whole
    assert test(OPADAPT_CHECKED=str(ROOT)) == whole[-1:]


def test_ci_leaves_the_static_checks_out_of_the_tests_only_after_doing_them() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    (marked,) = [number for number, line in enumerate(lines) if "OPADAPT_CHECKED" in line]
    assert lines[marked - 1] == "bash scripts/check" and lines[marked].startswith(
        'export OPADAPT_CHECKED="$PWD"'
    )

"""The scripts: valid executable bash, and free of anything that belongs to one machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["scripts/quickstart", "scripts/test", "scripts/check", "scripts/emulated_board", ".ci/run"]


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


def test_ci_goes_on_without_emulated_boards_where_there_can_be_none(tmp_path: Path) -> None:
    """Here for want of root: the reason is told, the tests are told nothing of boards, and nothing is built."""
    (tmp_path / "id").write_text("#!/bin/sh\n[ $1 = -u ] && echo 1000 || echo somebody\n")
    (tmp_path / "id").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "OPADAPT_BOARD": f"{tmp_path}/board",
    }
    environment.pop("OPADAPT_TEST_BOARD", None)
    text = (
        'set -euo pipefail; source .ci/boards.sh; begin_boards; start_boards; echo "<${OPADAPT_TEST_BOARD-}>"'
    )
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "no emulated board here: it needs root (mounts and chroot), and this is user somebody" in done.stdout
    )
    assert done.stdout.endswith("its tests are skipped\n<>\n")
    assert not (tmp_path / "board").exists()


def test_ci_fails_where_an_emulated_board_could_be_but_is_not(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "emulated_board").write_text('[ "$1" = packages ] || { echo broken; exit 1; }\n')
    text = f"set -euo pipefail; source {ROOT}/.ci/boards.sh; begin_boards; start_boards; echo went on"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "broken" in done.stdout and "went on" not in done.stdout

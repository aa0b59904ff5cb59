"""What .ci/boards.sh does about the emulated boards, with tools that only pretend: it fails where there could be boards
and are none, it ends what it began, and it leaves the boards of other runs alone."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOT_USER = {"id": "echo 0", "apt-get": "echo E: broken >&2; exit 100", "dpkg-query": "exit 1", "sleep": ""}
# an emulated_board whose boards are files, and which says what it is asked for
BOARDS = """echo "$*" >>asked
case "$1" in
  packages) echo debootstrap ;;
  home) echo "$HOMES" ;;
  start) touch "board-$2" ;;
  stop) rm -f "board-$2" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder whose scripts/emulated_board pretends; a user without root, unless the tools say otherwise."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    board(tmp_path, BOARDS)
    tools(tmp_path, {"id": "echo 1000"})
    return tmp_path


def board(checkout: Path, text: str) -> None:
    (checkout / "scripts" / "emulated_board").write_text(text)


def tools(checkout: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        tool = checkout / "bin" / name
        tool.write_text(f"#!/bin/sh\necho {name} $* >>{checkout}/calls\n{text}\n")
        tool.chmod(0o755)


def calls(checkout: Path, name: str) -> list[str]:
    return [line for line in (checkout / "calls").read_text().splitlines() if line.startswith(name)]


def ci(checkout: Path, text: str, *, homes: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run commands of .ci/boards.sh as .ci/run does. ``homes``: the folder that the boards' users share."""
    whole = f"set -euo pipefail; source {ROOT}/.ci/boards.sh; {text}"
    environment = {
        **os.environ,
        "PATH": f"{checkout}/bin:{os.environ['PATH']}",
        "HOMES": str(homes or checkout / "home"),
    }
    environment.pop("OPADAPT_TEST_BOARD", None)
    return subprocess.run(
        ["bash", "-c", whole], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60
    )


def test_goes_on_without_boards_where_there_can_be_none(checkout: Path, tmp_path: Path) -> None:
    """Here for want of root: the reason is told, the tests are told nothing of boards, and nothing is built."""
    tools(checkout, {"id": "[ $1 = -u ] && echo 1000 || echo somebody"})
    board(checkout, f'OPADAPT_BOARD={tmp_path}/board exec bash {ROOT}/scripts/emulated_board "$@"\n')
    done = ci(checkout, 'begin_boards; start_boards; echo "<${OPADAPT_TEST_BOARD-}>"')
    assert done.returncode == 0, done.stderr
    assert (
        "no emulated board here: it needs root (mounts and chroot), and this is user somebody" in done.stdout
    )
    assert done.stdout.endswith("its tests are skipped\n<>\n")
    assert not (tmp_path / "board").exists()


def test_fails_where_a_board_could_be_but_is_not(checkout: Path) -> None:
    board(checkout, '[ "$1" = packages ] || { echo broken; exit 1; }\n')
    done = ci(checkout, "begin_boards; start_boards; echo went on")
    assert done.returncode == 1 and "broken" in done.stdout and "went on" not in done.stdout


def test_fails_where_the_packages_cannot_be_installed_though_there_could_be_boards(checkout: Path) -> None:
    """apt is asked several times, with pauses; its last word is shown, and the tests do not go green without boards."""
    board(checkout, 'case "$1" in packages) echo debootstrap ;; *) exit 3 ;; esac\n')
    tools(checkout, {**ROOT_USER, "unshare": ""})
    done = ci(checkout, "begin_boards; start_boards; echo went on")
    assert done.returncode == 1 and "went on" not in done.stdout
    assert "E: broken" in done.stdout
    assert "apt-get does not install what the boards need: openssh-server debootstrap" in done.stdout
    installs = [call for call in calls(checkout, "apt-get") if call.startswith("apt-get install")]
    assert len(installs) == 4 and all(call.endswith("openssh-server debootstrap") for call in installs)
    assert calls(checkout, "sleep") == ["sleep 10", "sleep 30", "sleep 60", "sleep 0"]


def test_goes_on_where_the_packages_cannot_be_installed_and_no_board_could_be_either(checkout: Path) -> None:
    board(checkout, 'case "$1" in packages) echo debootstrap ;; *) echo no namespaces; exit 3 ;; esac\n')
    tools(checkout, {**ROOT_USER, "unshare": "exit 1"})
    done = ci(checkout, "begin_boards; start_boards; echo went on")
    assert done.returncode == 0 and "no namespaces" in done.stdout and done.stdout.endswith("went on\n")


def test_packages_that_are_there_are_not_asked_for(checkout: Path) -> None:
    tools(checkout, {**ROOT_USER, "dpkg-query": "echo installed; echo installed", "unshare": ""})
    done = ci(checkout, "begin_boards; start_boards")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not calls(checkout, "apt-get")


def test_an_interruption_before_the_boards_are_made_ends_their_making(checkout: Path) -> None:
    making = "trap 'touch ended; exit' TERM; touch begun; while :; do sleep 0.05; done"
    board(checkout, f'case "$1" in packages) echo debootstrap ;; build) {making} ;; esac\n')
    done = ci(checkout, "begin_boards; until [[ -e begun ]]; do sleep 0.05; done; false")
    assert done.returncode == 1
    assert (checkout / "ended").exists()


def test_boards_are_ended_with_the_run(checkout: Path) -> None:
    done = ci(checkout, 'begin_boards; start_boards; ls board-*; echo "$OPADAPT_TEST_PORTS"')
    assert done.returncode == 0, done.stderr
    ports = done.stdout.splitlines()[-1].split()
    assert len(set(ports)) == 4
    assert [line for line in done.stdout.splitlines() if line.startswith("board-")] == [
        f"board-{p}" for p in ports
    ]
    assert f"start {ports[-1]} bare\n" in (checkout / "asked").read_text()
    assert not list(checkout.glob("board-*"))


PRINT = 'begin_boards; start_boards >&2; echo "$OPADAPT_TEST_PORTS"'


def test_two_runs_at_once_have_ports_of_their_own(checkout: Path) -> None:
    """Even of one checkout, whose path gives the same ports; what another run has is not stopped."""
    inner = f"bash -c 'set -euo pipefail; source {ROOT}/.ci/boards.sh; {PRINT}'"
    done = ci(checkout, f"{PRINT}; {inner} 8>&-; ls board-*")
    assert done.returncode == 0, done.stderr
    first, second, *left = done.stdout.splitlines()
    assert not set(first.split()) & set(second.split())
    assert left == [f"board-{port}" for port in first.split()]


def test_what_a_killed_run_has_left_is_stopped_and_its_ports_are_taken_again(checkout: Path) -> None:
    killed = ci(checkout, f"{PRINT}; kill -KILL $$")
    assert killed.returncode == -9 and len(list(checkout.glob("board-*"))) == 4
    again = ci(checkout, f"{PRINT}; ls board-* | wc -l")
    assert again.stdout.splitlines() == [killed.stdout.strip(), "4"]


def test_ports_that_somebody_listens_on_are_passed_over(checkout: Path) -> None:
    first = ci(checkout, PRINT).stdout.split()
    with socket.create_server(("127.0.0.1", int(first[2]))):
        second = ci(checkout, PRINT).stdout.split()
    assert len(second) == 4 and not set(first) & set(second)

"""scripts/emulated_board where something goes wrong: what it makes is whole or not there. Its tools only pretend, all
but the namespaces, so these tests are skipped where this computer can have no such board."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from boards.sshd_server import command_line, processes, wait_for

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "emulated_board"
# what each tool does with its arguments: a tree with a Python and with wheels appears, as far as the script looks
TOOLS = {
    "apt-get": "echo http://mirror.invalid/debian $(. /etc/os-release; echo $VERSION_CODENAME) main",
    "debootstrap": 'for root; do case "$root" in /*) break ;; esac; done\n'
    'mkdir -p "$root/usr/bin" "$root/home/pi"; ln -s python3.0 "$root/usr/bin/python3"',
    "chroot": "",
    "python3": 'mkdir -p "$3/bin"; printf "#!/bin/sh\\n$PIP\\n" >"$3/bin/pip"; chmod +x "$3/bin/pip"',
}


class Board:
    """A call of the script with pretended tools, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self.pretend(**TOOLS)
        path = f"{folder}/bin:{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "OPADAPT_BOARD": str(folder / "board"),
            "PATH": path,
            "PIP": "exit 0",
        }

    def pretend(self, **texts: str) -> None:
        for name, text in texts.items():
            tool = self.folder / "bin" / name
            tool.write_text(f"#!/bin/sh\necho {name} >>{self.folder}/calls\n{text}\n")
            tool.chmod(0o755)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        command = [str(SCRIPT), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def call(self, *arguments: str) -> tuple[int, str]:
        """Its exit code and what it said."""
        process = self.begin(*arguments)
        _, told = process.communicate(timeout=60)
        if process.returncode == 3:
            pytest.skip(told.strip())
        return process.returncode, told

    def trees(self) -> list[Path]:
        return [path for path in (self.folder / "board").iterdir() if path.name.startswith(("tree", "new"))]

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().split()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    code, told = made.call("start", "20999")
    assert code == 1 and "do: scripts/emulated_board build" in told
    return made


def test_a_whole_tree_is_made_once(board: Board) -> None:
    assert board.call("build")[0] == 0
    (tree,) = board.trees()
    assert (tree / "opadapt-complete").exists()
    made = board.calls()
    code, told = board.call("build")
    assert code == 0 and "are ready in" in told and board.calls() == made


def test_a_debootstrap_that_fails_ends_the_build(board: Board) -> None:
    """Late, when there is a tree already and nothing that comes after it would notice."""
    board.pretend(debootstrap=f"{TOOLS['debootstrap']}\necho E: mirror went away; exit 1")
    code, told = board.call("build")
    assert code == 1 and "E: mirror went away" in told and "build.log" in told
    assert "python3" not in board.calls() and board.trees() == []


def test_a_pip_that_fails_ends_the_build(board: Board) -> None:
    board.environment["PIP"] = "echo ERROR: no such wheel; exit 1"
    code, told = board.call("build")
    assert code == 1 and "ERROR: no such wheel" in told and board.trees() == []


def test_a_user_that_cannot_be_made_ends_the_build(board: Board) -> None:
    board.pretend(chroot='case "$*" in *useradd*) echo useradd: no; exit 1 ;; esac')
    code, told = board.call("build")
    assert code == 1 and "useradd: no" in told and board.trees() == []


def test_an_interrupted_build_ends_what_it_began_and_leaves_nothing(board: Board) -> None:
    seconds = f"{time.time():.6f}"  # a mark to know the process by

    def running() -> bool:
        return any(command_line(pid) == ["sleep", seconds, ""] for pid in processes())

    board.pretend(debootstrap=f"{TOOLS['debootstrap']}\nsleep {seconds}")
    process = board.begin("build")
    wait_for(running, "debootstrap")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    wait_for(lambda: not running(), "the end of debootstrap")
    assert board.trees() == []


@pytest.mark.parametrize(("running", "wanted"), [("full", "bare"), ("bare", "full")])
def test_a_board_of_the_other_kind_on_a_port_is_not_taken_for_the_wanted_one(
    board: Board, running: str, wanted: str
) -> None:
    assert board.call("build")[0] == 0
    folder = board.folder / "board" / "boards" / "20999"
    folder.mkdir(parents=True)
    (folder / "kind").write_text(f"{running}\n")
    began = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    (folder / "pid").write_text(f"{os.getpid()} {began}\n")  # this process stands for the board
    code, told = board.call("start", "20999", wanted)
    assert code == 1
    assert f"a {running} board runs on port 20999. do: scripts/emulated_board stop 20999" in told
    code, told = board.call("start", "20999", running)
    assert code == 0 and "runs on port 20999 already" in told
    assert (folder / "kind").read_text() == f"{running}\n"

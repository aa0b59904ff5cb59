"""``--install``: the environment is made by this machine's own Python in a folder that stands for the board's home.

The wheels are tiny ones made here; pip is the real one, kept from any index.
"""

from __future__ import annotations

import hashlib
import sys
import time
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from opadapt.errors import DeviceError
from opadapt.measure.agent import BoardLock
from opadapt.measure.check import install as install_module
from opadapt.measure.check.board import Board, board_of
from opadapt.measure.check.install import fetch, install, pip_download
from opadapt.measure.check.probe import Done, LocalRunner, probe
from opadapt.measure.facts import BadVersion, Facts

HOST = metadata.version("onnxruntime")
PLATFORM = "manylinux2014_aarch64"


def facts(*bad: str) -> Facts:
    known = tuple(BadVersion(specifier=b, reason="crashes", fix="another") for b in bad)
    return Facts(name="b", description="", transport="ssh", arch="host", bad_onnxruntime=known)


def wheel(
    folder: Path, name: str, version: str, tag: str = "py3-none-any", files: Mapping[str, str] | None = None
) -> Path:
    """A wheel whose package tells its version; ``files``: more entries, or others."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    entries = {
        f"{name}/__init__.py": f"__version__ = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/RECORD": "",
        **(files or {}),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry, text in entries.items():
            file.writestr(entry, text)
    return path


class Home(LocalRunner):
    """A board whose home is a folder here; remembers what was sent."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        super().__init__({"PATH": "/usr/bin:/bin", "HOME": str(home)})
        self.cache = home / ".cache/opadapt"
        self.sent: list[str] = []

    def put(self, data: bytes, path: str) -> None:
        self.sent.append(path)
        super().put(data, path)

    def board(self) -> Board:
        return board_of(probe(self, sys.executable))


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The board's lock: the test's own."""
    path = tmp_path / "board.lock"
    monkeypatch.setattr(install_module, "BOARD_LOCK", path)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def brings(*wheels: Callable[[Path], Path]) -> Callable[..., None]:
    def download(requirements: Sequence[str], version: str, platforms: Sequence[str], folder: Path) -> None:
        for make in wheels:
            make(folder)

    return download


def numpy_wheel(folder: Path) -> Path:
    return wheel(folder, "numpy", "2.2.6")


def ort_wheel(folder: Path) -> Path:
    return wheel(folder, "onnxruntime", HOST)


GOOD = brings(numpy_wheel, ort_wheel)


def test_makes_an_environment_that_is_then_found(home: Home) -> None:
    notes: list[str] = []
    install(home.board(), facts(), home, notes.append, GOOD)
    board = home.board()
    assert board.venv is not None and board.venv.failure is None
    assert (board.venv.onnxruntime, board.venv.numpy) == (HOST, "2.2.6")
    assert board.venv.path == str(home.cache / "venv/bin/python")
    assert board.venv.version == sys.version_info[:3]
    assert [path.name for path in home.cache.iterdir()] == ["venv"]
    assert notes[-1] == f"numpy 2.2.6, onnxruntime {HOST}"


def test_sees_nothing_of_the_boards_own_packages(home: Home) -> None:
    install(home.board(), facts(), home, lambda _: None, GOOD)
    done = home.run([str(home.cache / "venv/bin/python"), "-c", "import rich"], timeout_s=60)
    assert b"ModuleNotFoundError" in done.stderr


def test_takes_the_place_of_an_environment(home: Home) -> None:
    install(home.board(), facts(), home, lambda _: None, GOOD)
    (home.cache / "venv/old-file").touch()
    newer = brings(numpy_wheel, lambda folder: wheel(folder, "onnxruntime", "9.9.9"))
    install(home.board(), facts(), home, lambda _: None, newer)
    assert not (home.cache / "venv/old-file").exists()
    board = home.board()
    assert board.venv is not None and board.venv.onnxruntime == "9.9.9"


def test_what_does_not_import_leaves_the_old_environment(home: Home) -> None:
    install(home.board(), facts(), home, lambda _: None, GOOD)
    killed = {"onnxruntime/__init__.py": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"}

    def bad(folder: Path) -> Path:
        return wheel(folder, "onnxruntime", "1.2.3", files=killed)

    with pytest.raises(DeviceError, match=r"onnxruntime 1\.2\.3 does not run on b") as raised:
        install(home.board(), facts(), home, lambda _: None, brings(numpy_wheel, bad))
    assert "bad_onnxruntime" in (raised.value.do or "") and raised.value.found == "exit code -4"
    board = home.board()
    assert board.venv is not None and board.venv.onnxruntime == HOST and board.venv.failure is None
    assert [path.name for path in home.cache.iterdir()] == ["venv"]


def test_nobodys_interpreter_is_exchanged_under_a_measurement(home: Home, lock: Path) -> None:
    install(home.board(), facts(), home, lambda _: None, GOOD)
    home.sent.clear()
    agents = BoardLock(lock, "anna@desk")
    assert agents.take() is None  # and so the installation before has let go of it
    newer = brings(numpy_wheel, lambda folder: wheel(folder, "onnxruntime", "9.9.9"))
    with pytest.raises(DeviceError, match="another opadapt is measuring") as raised:
        install(home.board(), facts(), home, lambda _: None, newer)
    assert "anna@desk, since 20" in (raised.value.found or "")
    board = home.board()
    assert board.venv is not None and board.venv.onnxruntime == HOST
    assert not home.sent and [path.name for path in home.cache.iterdir()] == ["venv"]
    agents.release()
    install(home.board(), facts(), home, lambda _: None, newer)
    board = home.board()
    assert board.venv is not None and board.venv.onnxruntime == "9.9.9"


def test_two_installations_exclude_each_other(home: Home, tmp_path: Path) -> None:
    """The first one waits in the middle of its trial."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    waits = (
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n__version__ = '{HOST}'\n"
    )

    def slow(folder: Path) -> Path:
        return wheel(folder, "onnxruntime", HOST, files={"onnxruntime/__init__.py": waits})

    board = home.board()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(install, board, facts(), home, lambda _: None, brings(numpy_wheel, slow))
        try:
            while not begun.exists():
                assert not first.done(), first.result()
                time.sleep(0.01)
            with pytest.raises(DeviceError, match="installing on this board") as raised:
                install(board, facts(), home, lambda _: None, GOOD)
        finally:
            go.touch()
        first.result(60)
    assert ", installing, since 20" in (raised.value.found or "")
    found = home.board().venv
    assert found is not None and found.failure is None and found.onnxruntime == HOST


def test_wheels_travel_once(home: Home) -> None:
    board = home.board()
    made = [numpy_wheel(home.cache / "made"), ort_wheel(home.cache / "made")]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in made]
    (home.cache / "wheels").mkdir()
    (home.cache / "wheels" / hashes[0]).write_bytes(made[0].read_bytes())  # from an install that was cut off
    (home.cache / "wheels" / hashes[1]).write_bytes(b"half of it")

    def download(requirements: Sequence[str], version: str, platforms: Sequence[str], folder: Path) -> None:
        folder.mkdir(parents=True)
        for path in made:
            (folder / path.name).write_bytes(path.read_bytes())

    install(board, facts(), home, lambda _: None, download)
    assert home.sent == [str(home.cache / "wheels" / hashes[1])]


@pytest.mark.parametrize("name", ["../../../../outside.py", "/tmp/outside.py", "a/../../../../../outside.py"])
def test_a_wheel_cannot_write_outside_of_its_folder(home: Home, tmp_path: Path, name: str) -> None:
    def bad(folder: Path) -> Path:
        path = ort_wheel(folder)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(name, "")
        return path

    with pytest.raises(DeviceError) as raised:
        install(home.board(), facts(), home, lambda _: None, brings(numpy_wheel, bad))
    assert "outside of its folder" in (raised.value.found or "")
    assert not list(tmp_path.rglob("outside.py")) and not Path("/tmp/outside.py").exists()
    assert home.board().venv is None and not (home.cache / "venv.new").exists()


def test_data_folders_of_a_wheel(home: Home) -> None:
    def other(folder: Path) -> Path:
        texts = {"purelib/inside.py": "x = 1\n", "scripts/tool": "", "data/man": ""}
        return wheel(folder, "other", "1", files={f"other-1.data/{k}": v for k, v in texts.items()})

    install(home.board(), facts(), home, lambda _: None, brings(numpy_wheel, ort_wheel, other))
    site = next((home.cache / "venv/lib").glob("python3*")) / "site-packages"
    assert (site / "inside.py").read_text() == "x = 1\n"
    assert not [p for p in site.rglob("*") if p.name in ("tool", "man")]


def test_a_wheel_that_arrives_damaged(home: Home) -> None:
    class Bad(Home):
        def put(self, data: bytes, path: str) -> None:
            super().put(data[:-1], path)

    bad = Bad(home.cache.parents[1] / "other")
    with pytest.raises(DeviceError) as raised:
        install(bad.board(), facts(), bad, lambda _: None, GOOD)
    assert "damaged" in (raised.value.found or "")


@pytest.mark.parametrize(
    ("board", "python", "text"),
    [
        ({"base": None}, {}, "sudo apt install python3"),
        ({}, {"version": (3, 8, 10)}, "name its path as 'python'"),
        ({}, {"bits": 32}, "name its path as 'python'"),
        ({}, {"has": frozenset({"zlib"})}, "python3-venv"),
        ({"glibc": None}, {}, "another system"),
        ({"disk_free_bytes": 1000}, {}, "remove something"),
    ],
)
def test_boards_that_cannot_have_it(
    home: Home, board: dict[str, Any], python: dict[str, Any], text: str
) -> None:
    found = home.board()
    assert found.base is not None
    changed = {"base": replace(found.base, **python), **board}
    with pytest.raises(DeviceError) as raised:
        install(replace(found, **changed), facts(), home, lambda _: None, GOOD)
    assert text in (raised.value.do or "")
    assert not home.sent and not (home.cache / "venv").exists()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    numpy_wheel(folder)
    return folder


def versions(wheels: list[Path]) -> dict[str, str]:
    return dict(path.name.split("-")[:2] for path in wheels)


def test_pip_is_asked_for_the_boards_python_and_platform(index: Path, tmp_path: Path) -> None:
    wheel(index, "onnxruntime", "1.0", f"cp39-cp39-{PLATFORM}")
    wheel(index, "onnxruntime", "3.0", f"cp311-cp311-{PLATFORM}")
    wheel(index, "onnxruntime", "4.0", "cp39-cp39-manylinux_2_99_aarch64")
    wheel(index, "onnxruntime", "5.0", "cp39-cp39-win_amd64")
    found = fetch(facts(), "3.9", [PLATFORM], tmp_path / "out", pip_download)
    assert versions(found) == {"numpy": "2.2.6", "onnxruntime": "1.0"}


def test_this_machines_version_comes_first_and_a_bad_one_never(index: Path, tmp_path: Path) -> None:
    for version in ("99.0", "98.0", HOST, "0.5"):
        wheel(index, "onnxruntime", version)
    same = fetch(facts(), "3.11", [PLATFORM], tmp_path / "a", pip_download)
    assert versions(same)["onnxruntime"] == HOST
    other = fetch(facts(f"=={HOST}", ">=98.5"), "3.11", [PLATFORM], tmp_path / "b", pip_download)
    assert versions(other)["onnxruntime"] == "98.0"
    with pytest.raises(DeviceError) as raised:
        fetch(facts(">=0"), "3.11", [PLATFORM], tmp_path / "c", pip_download)
    assert raised.value.do is not None


def test_pip_that_finds_nothing(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no wheels of onnxruntime") as raised:
        fetch(facts(), "3.11", [PLATFORM], tmp_path / "out", pip_download)
    assert "No matching distribution" in (raised.value.found or "")
    assert "PIP_FIND_LINKS" in (raised.value.do or "")


def test_a_python_without_pip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    python = str(tmp_path / "bare/bin/python")
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(DeviceError, match="has no pip") as raised:
        fetch(facts(), "3.11", [PLATFORM], tmp_path / "out", pip_download)
    assert raised.value.found == python and "ensurepip" in (raised.value.do or "")


def test_a_board_that_runs_out_of_room(home: Home) -> None:
    class Full(Home):
        def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Done:
            if b"zipfile" in input:
                return Done(1, b"", b"Traceback\nOSError: [Errno 28] No space left on device: 'x'\n")
            return super().run(command, input=input, timeout_s=timeout_s)

    full = Full(home.cache.parents[1] / "full")
    with pytest.raises(DeviceError, match="cannot be made") as raised:
        install(full.board(), facts(), full, lambda _: None, GOOD)
    assert "No space left" in (raised.value.found or "") and "disk" in (raised.value.do or "")

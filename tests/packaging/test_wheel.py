"""The wheel: what it contains, and that an installation finds every shipped file, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

import opadapt
from opadapt import resources

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Runs inside the empty environment: prints each shipped file's digest, and where the modules came from.
PROBE = """
import hashlib, json, sys
from opadapt import resources
found = {
    kind: {n: hashlib.sha256(resources.shipped(kind, n).read_bytes()).hexdigest()
           for n in resources.shipped_names(kind)}
    for kind in resources.KINDS
}
print(json.dumps({"found": found, "file": resources.__file__, "version": sys.modules["opadapt"].__version__}))
"""

# Runs with the libraries of the tests and the package of the wheel: every shipped file that a user can name, read.
READ = """
import json, opadapt
from opadapt.experiment import load_experiment
from opadapt.measure.facts import load_facts
from opadapt.resources import shipped, shipped_names
from opadapt.search.space import load_space
def named(kind):
    return [n for n in shipped_names(kind) if n.endswith(".yaml") and not n.startswith("rules/")]
def stems(kind):
    return [n.removesuffix(".yaml") for n in named(kind)]
read = {
    "configs": [str(load_experiment(shipped("configs", n)).model) for n in named("configs")],
    "devices": [load_facts(n).name for n in stems("devices")],
    "search_space": [len(load_space(n).rules) for n in stems("search_space")],
}
print(json.dumps({"read": read, "file": opadapt.__file__}))
"""


def call(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    call([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT], ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    call([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-qq"]
    call([*pip, wheel], folder)
    return python


def checkout_digests(kind: str) -> dict[str, str]:
    folder = ROOT / kind
    files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_only_top_level_names_are_the_package_and_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"opadapt", f"opadapt-{PROJECT['version']}.dist-info"}


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    """Grammars and templates too, and nothing that lies around such as caches."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if n.startswith("opadapt/") and "/_shipped/" not in n}
    files = (p for p in (ROOT / "opadapt").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    assert packed == {p.relative_to(ROOT).as_posix() for p in files}


def test_licence_and_type_marker_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (licence,) = [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert "opadapt/py.typed" in names


def test_the_installed_wheel_finds_every_shipped_file_with_the_standard_library_alone(
    installed: Path,
) -> None:
    seen = json.loads(call([installed, "-I", "-c", PROBE], installed.parent))
    assert Path(seen["file"]).is_relative_to(installed.parents[1])
    assert seen["version"] == PROJECT["version"]
    for kind in resources.KINDS:
        expected = checkout_digests(kind)
        assert expected, f"{kind}: nothing to ship"
        assert seen["found"][kind] == expected, kind


def test_what_the_wheel_ships_can_be_used(installed: Path, tmp_path: Path) -> None:
    (package,) = installed.parents[1].glob("lib/python*/site-packages")
    home = {"PYTHONPATH": str(package), "XDG_CONFIG_HOME": str(tmp_path)}
    seen = json.loads(call([sys.executable, "-c", READ], tmp_path, **home))
    assert Path(seen["file"]).is_relative_to(package)
    assert set(seen["read"]["devices"]) >= {"local", "null", "rpi4"}
    assert seen["read"]["configs"] and seen["read"]["search_space"]
    shipped = [m for m in seen["read"]["configs"] if Path(m).exists()]
    assert shipped and all(Path(m).is_relative_to(package) for m in shipped)  # the quickstart's own model


def test_one_version_everywhere() -> None:
    assert opadapt.__version__ == PROJECT["version"] == version("opadapt")
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()

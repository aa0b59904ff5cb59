"""Everything that opadapt imports is declared: CI tests in an environment that holds the development tools, too."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# imports that are not named as what brings them; an onnx model is made of protobuf's messages
BRINGS = {"PIL": "pillow", "google": "onnx", "ruamel": "ruamel.yaml"}
ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all imports, those inside functions, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_every_import_is_declared() -> None:
    names = {name for path in (ROOT / "opadapt").rglob("*.py") for name in imported(path)}
    others = names - set(sys.stdlib_module_names) - {"opadapt"}
    assert {"torch", "onnxruntime", "asyncssh"} <= others
    assert {canonicalize_name(BRINGS.get(name, name)) for name in others} <= declared()

"""Everything that opadapt imports is declared: CI tests in an environment that holds the development tools, too."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BROUGHT = {"protobuf": "onnx"}  # by what is declared: an onnx model is made of its messages
ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]
    names: set[str] = {canonicalize_name(Requirement(one).name) for one in requirements}
    return names | {brought for brought, by in BROUGHT.items() if by in names}


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
    brings = packages_distributions()
    undeclared = {n for n in others if not declared() & set(map(canonicalize_name, brings.get(n, [])))}
    assert not undeclared

"""Python entry points, ``module:function`` or ``file.py:function``: the user's code, named in a config."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opadapt.errors import ConfigError


def is_entry_point(text: str) -> bool:
    """Whether the text has the form ``module:function`` or ``file.py:function``."""
    place, colon, function = text.rpartition(":")
    if not colon or not function.isidentifier():
        return False
    return place.endswith(".py") or all(part.isidentifier() for part in place.split("."))


def load_entry_point(text: str) -> Callable[..., Any]:
    """The function that an entry point names. Raises ConfigError where it cannot be imported or called."""
    if not is_entry_point(text):
        raise ConfigError("not an entry point", expected="module:function or file.py:function", found=text)
    place, _, name = text.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, OSError, SyntaxError) as error:
        raise ConfigError(f"cannot import the entry point {text}", found=f"{error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = ", ".join(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
        raise ConfigError(f"no function '{name}' in {place}", expected=f"one of: {names}", found=name)
    return function  # type: ignore[no-any-return]


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError("entry point file is missing", expected="a Python file", found=str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""What ships with opadapt: the data files, and the working version of ONNX.

``search_space/``, ``devices/`` and ``configs/`` lie beside the package in a checkout and inside it, in
``_shipped/``, in a wheel (see pyproject.toml, ``force-include``). Needs the standard library alone.
"""

from __future__ import annotations

from pathlib import Path

from opadapt.errors import ConfigError

# Opset 20 is the first with Gelu; a newer one would ask more of the ONNX Runtime on a board and gain nothing here.
# 9..19 come up through onnx's own adapters; 21 and newer come down: nearly all of their changes are new types,
# and the few new or changed operators (GroupNormalization, RMSNormalization, Attention) have a definition in
# older ones that ships with onnx.
WORKING_OPSET = 20
WORKING_IR_VERSION = 9

KINDS = ("configs", "devices", "search_space")
_PACKAGE = Path(__file__).resolve().parent


def _folder(kind: str) -> Path:
    """The folder of a kind: the wheel's where it exists, else the checkout's. Raises ConfigError."""
    if kind not in KINDS:
        raise ConfigError("no such kind of shipped file", expected=", ".join(KINDS), found=repr(kind))
    for folder in (_PACKAGE / "_shipped" / kind, _PACKAGE.parent / kind):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the shipped folder '{kind}' is missing",
        expected=f"{_PACKAGE / '_shipped' / kind}, or {_PACKAGE.parent / kind} in a checkout",
        found="neither",
        do="install opadapt again",
    )


def shipped_names(kind: str) -> list[str]:
    """Names of the shipped files of a kind, sorted, such as ``quickstart/quickstart.yaml``.

    Files that begin with a dot or an underscore are left out. Raises ConfigError for an unknown kind, or
    where the installation lacks the folder.
    """
    folder = _folder(kind)
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(file.as_posix() for file in files if not any(part[0] in "._" for part in file.parts))


def shipped(kind: str, name: str) -> Path:
    """The path of one shipped file, by the name that ``shipped_names`` gives.

    Raises ConfigError for an unknown kind or name; a name that leads out of the folder is not looked up.
    """
    folder = _folder(kind)
    parts = name.split("/")
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise ConfigError(
            f"{kind}: not the name of a shipped file",
            expected="a relative name without '..', such as quickstart/quickstart.yaml",
            found=repr(name),
        )
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ConfigError(
            f"{kind}: no shipped file '{name}'",
            expected=", ".join(shipped_names(kind)) or "a file (none is shipped)",
            found=name,
        )
    return path

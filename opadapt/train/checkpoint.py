"""Fine-tuning state on disk: written whole or not at all, read without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from opadapt.errors import RunError, first_line

FORMAT = 3


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically. Raises RunError."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}", found=first_line(error), do="free space on the disk"
        ) from error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts of them, atomically. Raises RunError."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise RunError(
            f"cannot write {path}", found=first_line(error), do="free space on the disk"
        ) from error


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state of the same training, None where none was saved. Raises RunError for another's or a broken one."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunError(
            f"cannot read the checkpoint {path}",
            found=first_line(error),
            do="delete it to start again",
        ) from error
    found = (state.get("format"), state.get("fingerprint"))
    if found != (FORMAT, fingerprint):
        raise RunError(
            f"{path} belongs to another fine-tuning",
            expected=f"format {FORMAT}, models, data, config and seed {fingerprint[:12]}",
            found=f"format {found[0]}, {str(found[1])[:12]}",
            do="delete it, or use another folder",
        )
    return state

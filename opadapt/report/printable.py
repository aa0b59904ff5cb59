"""Text that is safe on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line without control characters: a name inside a model cannot steer the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

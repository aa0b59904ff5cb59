"""Text that is safe on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line without control characters: a name inside a model cannot steer the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def short(name: str, length: int = 60) -> str:
    """A long name without its middle: both ends of a node's name tell something."""
    if len(name) <= length:
        return name
    tail = (length - 3) * 2 // 3
    return name[: length - 3 - tail] + "..." + name[-tail:]

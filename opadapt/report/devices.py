"""Device types and the state of boards as people read them: tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from opadapt.errors import ConfigError, RunError, first_line
from opadapt.measure.check.checkup import Checkup
from opadapt.measure.facts import Facts, load_facts
from opadapt.report.printable import printable
from opadapt.report.terminal import shown, table
from opadapt.yamlfile import write_yaml

SCHEMA_VERSION = 1
_STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}
_REACHED = {"null": "cost model", "local": "this machine", "ssh": "ssh", "adb": "adb"}


def print_list(devices: Mapping[str, Path], console: Console) -> None:
    """One line per type; a file that cannot be read is listed with the reason."""
    rows = [_listed(name, path) for name, path in devices.items()]
    if console.is_terminal:
        columns = [("name", False), ("arch", False), ("reached", False), ("description", False)]
        console.print(table("device types", columns, rows))
        return
    for row in rows:
        _plain(console, "  ".join(row))


def _listed(name: str, path: Path) -> tuple[str, str, str, str]:
    try:
        facts = load_facts(name)
    except ConfigError as error:
        return name, "?", "?", f"cannot be used: {error.message} ({path})"
    reached = _REACHED[facts.transport] + (f" {facts.host}" if facts.host else "")
    mark = "(experimental) " if facts.experimental else ""
    return name, facts.arch, reached, mark + facts.description


def print_facts(facts: Facts, path: Path, console: Console) -> None:
    """Where the file lies, the file with its comments (they say where each fact is from), and the defaults."""
    _plain(console, f"# {path}")
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        _plain(console, line)
    values = facts.model_dump(mode="json")
    defaults = {key: value for key, value in values.items() if key not in facts.model_fields_set}
    _plain(console, "# not in the file, so:")
    for line in write_yaml(defaults).splitlines():
        _plain(console, f"# {line}")


def print_checkup(checkup: Checkup, console: Console) -> None:
    """The findings, then what to do about those that are not ok, commands on lines of their own."""
    title = checkup.device + (f" at {checkup.host}" if checkup.host else "")
    if not console.is_terminal:
        _plain(console, title)
        for f in checkup.findings:
            _plain(console, f"{f.verdict:<5} {f.item}: {f.found}")
            for line in (f.remedy, f.command):
                if line is not None:
                    _plain(console, f"      do: {line}")
        return
    rows = [(shown(f.verdict, _STYLES[f.verdict]), f.item, f.found) for f in checkup.findings]
    console.print(table(title, [("", False), ("", False), ("found", False)], rows))
    for f in checkup.findings:
        if f.remedy is not None:
            console.print()
            console.print(shown(f"{f.item}: {f.remedy}", _STYLES[f.verdict]))
            if f.command is not None:
                _plain(console, f"    {f.command}")  # not wrapped, so that it can be copied


def checkup_values(checkups: Sequence[Checkup]) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {"schema_version": SCHEMA_VERSION, "boards": [checkup.values() for checkup in checkups]}


def write_checkups(checkups: Sequence[Checkup], path: Path) -> None:
    """Write the JSON. Raises RunError."""
    text = json.dumps(checkup_values(checkups), indent=2, allow_nan=False) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {path}", found=first_line(error)) from error


def _plain(console: Console, text: str) -> None:
    console.print(printable(text), soft_wrap=True, markup=False, highlight=False, emoji=False)

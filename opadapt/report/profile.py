"""The profile of a model as a ranked table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from opadapt.errors import RunError, first_line
from opadapt.measure.profile import Profile
from opadapt.measure.rank import Ranked
from opadapt.report import wording
from opadapt.report.terminal import shown, table

SCHEMA_VERSION = 1


def print_profile(profile: Profile, ranked: Sequence[Ranked], top: int, console: Console) -> None:
    """The worst ``top`` nodes, and how much of the wall time the nodes account for."""
    op_types = {node.name: node.op_type for node in profile.nodes}
    rows = [
        (
            number,
            wording.short(row.name),
            op_types[row.name],
            wording.seconds(row.latency_s),
            wording.percent(row.latency_share),
            wording.count(row.parameters),
            wording.count(row.macs),
        )
        for number, row in enumerate(ranked[:top], start=1)
    ]
    columns = [("#", True), ("node", False), ("operator", False), ("latency", True)]
    columns += [("share", True), ("params", True), ("MACs", True)]
    console.print(shown(f"latency {wording.latency(profile.wall)} at batch 1", "bold"))
    console.print(table(f"worst {len(rows)} of {len(ranked)} nodes", columns, rows))
    console.print(shown(f"{wording.percent(profile.covered)} of the wall time is attributed to nodes"))
    if profile.unattributed:
        names = ", ".join(f"{name} ({wording.seconds(s)})" for name, s in profile.unattributed[:5])
        more = len(profile.unattributed) - 5
        console.print(shown(f"not attributed: {names}" + (f" and {more} more" if more > 0 else "")))


def profile_values(
    profile: Profile, ranked: Sequence[Ranked], model: Path, device: str, threads: int
) -> dict[str, Any]:
    """What ``--json`` writes: latencies in seconds, nodes worst first."""
    op_types = {node.name: node.op_type for node in profile.nodes}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": str(model),
        "device": device,
        "threads": threads,
        "latency_s": asdict(profile.wall),
        "covered": profile.covered,
        "nodes": [{"op_type": op_types[row.name], **asdict(row)} for row in ranked],
        "unattributed": [{"kernel": name, "latency_s": s} for name, s in profile.unattributed],
        "conditions": dict(profile.conditions),
    }


def write_profile(values: dict[str, Any], path: Path) -> None:
    """Write the JSON. Raises RunError."""
    try:
        path.write_text(json.dumps(values, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {path}", found=first_line(error)) from error

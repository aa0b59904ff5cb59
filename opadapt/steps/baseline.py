"""The profile of a model on the device: un-profiled wall time, and wall time by node."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from opadapt.journal import content_key
from opadapt.measure.profile import NodeCost, Profile, profile
from opadapt.measure.timing import Estimate
from opadapt.model.graph import Model
from opadapt.model.save import at_batch
from opadapt.steps.context import Context


def measure(context: Context, model: Model, tag: str) -> Profile:
    """Profile a model once; a resumed run reads it from the journal."""
    context.progress.stage(f"profile the {tag} model on {context.experiment.device}")
    digest = hashlib.sha256(at_batch(model, 1).SerializeToString()).hexdigest()
    key = content_key(context.measured_on, digest, context.experiment.timing.key())
    row = context.journal.once(
        "profile", key, lambda: _row(profile(context.device, model, context.experiment.timing))
    )
    found = _profile(row)
    board = found.conditions.get("board")
    context.progress.note(
        f"{tag}: {found.wall.value * 1e3:.3f} ms{f' on {board}' if board else ''}, "
        f"{found.covered:.1%} of it attributed to nodes"
    )
    return found


def _row(found: Profile) -> dict[str, Any]:
    return dataclasses.asdict(found)


def _profile(row: dict[str, Any]) -> Profile:
    nodes = tuple(NodeCost(**node) for node in row.pop("nodes"))
    return Profile(**{**row, "wall": Estimate(**row["wall"]), "nodes": nodes})

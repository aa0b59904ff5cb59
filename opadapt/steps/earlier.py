"""Results of earlier runs: what another run of the same model, data and seed has paid for is not paid for again."""

from __future__ import annotations

import sqlite3
from importlib.metadata import version
from pathlib import Path

from opadapt.experiment import Experiment
from opadapt.journal import Journal, content_key, noted

STAGES = ("latency", "distil", "damage")  # their keys say everything else that they depend on
SUBJECT = "subject"
FORMAT = 2  # of those results: counted up when code changes what they come out as (initial weights, for one)


def subject(experiment: Experiment, contents: str) -> str:
    """Names what the results of ``STAGES`` depend on beside their keys. ``contents``: digest of model and data."""
    search = experiment.search
    settings = (
        None
        if experiment.data is None
        else experiment.data.model_dump(mode="json", exclude={"path", "x", "y"}),
        experiment.metric.model_dump(mode="json"),
        (search.activation_samples, search.probe_samples),
        (experiment.seed, version("opadapt"), FORMAT),
    )
    return content_key(contents, settings)


def borrow(journal: Journal, experiment: Experiment, contents: str) -> int:
    """Take over the results of all other runs of the same subject in the folder of runs; returns how many.

    Done once, when a run begins: a resumed run must see what the first one saw.
    """
    name = subject(experiment, contents)
    journal.fix(SUBJECT, name)
    if not experiment.reuse:
        return 0

    def take() -> int:
        return sum(
            _from(journal, other) for other in _siblings(journal.folder) if noted(other, SUBJECT) == name
        )

    return int(journal.once("borrowed", name, take))


def _siblings(folder: Path) -> list[Path]:
    return sorted(p for p in folder.parent.iterdir() if p.is_dir() and p.resolve() != folder.resolve())


def _from(journal: Journal, other: Path) -> int:
    try:
        return journal.borrow(other, STAGES)
    except sqlite3.Error:  # damaged, or of another version
        return 0

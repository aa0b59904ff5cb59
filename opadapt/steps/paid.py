"""Work for the worker processes that is paid for once: through the journal, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from opadapt.steps.context import Context


class Timed(Protocol):
    """A worker's result: anything that says how long it took."""

    @property
    def seconds(self) -> float: ...


def paid_once(
    context: Context,
    stage: str,
    keys: Sequence[str],
    work: Callable[[Any], Timed],
    task: Callable[[int], Any],
    row: Callable[[int, Any], Mapping[str, object]],
    doing: str,
) -> list[Any]:
    """The journal's row for every key; what it lacks is computed by ``work`` on ``task(i)`` and stored as
    ``row(i, result)``. Tasks are made a chunk at a time: each holds a model."""
    journal, workers = context.journal, context.workers
    missing = [i for i, key in enumerate(keys) if journal.find(stage, key) is None]
    done = len(keys) - len(missing)
    for start in range(0, len(missing), workers.chunk):
        chunk = missing[start : start + workers.chunk]
        for i in chunk:
            journal.start(stage, keys[i])
        results = workers.map(work, [task(i) for i in chunk])
        for i, result in zip(chunk, results, strict=True):
            journal.finish(stage, keys[i], row(i, result), result.seconds)
            done += 1
            context.progress.advance(done, doing)
    return [journal.find(stage, key) for key in keys]

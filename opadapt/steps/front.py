"""The models of a run that made several: each exported and measured as adapted.onnx is, and kept if it is worth it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import inf
from pathlib import Path

from opadapt.errors import ModelError
from opadapt.model.graph import Model
from opadapt.model.save import export, write_atomic
from opadapt.report.data import AccuracyFacts, LatencyFacts, PointFacts
from opadapt.steps.accuracy import accuracy, check_test
from opadapt.steps.attempt import Accepted
from opadapt.steps.context import Context
from opadapt.steps.final import compare_files, warn_if_hot
from opadapt.steps.folding import folded
from opadapt.steps.history import History
from opadapt.train.data import Dataset

ADAPTED = "adapted.onnx"
FOLDER = "front"
_OURS = re.compile(r"\d+\.\d\dx(-\d+)?\.onnx")  # other files are the user's


def front(
    context: Context,
    dataset: Dataset,
    model: Model,
    latency: LatencyFacts,
    found: AccuracyFacts,
    history: History,
) -> tuple[PointFacts, ...]:
    """The adapted model and those of the others that are worth it, fastest first; nothing where one was made alone.

    ``latency`` and ``found`` are those of the adapted ``model``, which stays in any case. The others are written to
    front/, named after their speed-up; what a run before a resumed one has left there goes.
    """
    points: list[PointFacts] = []
    if history.points:
        adapted = PointFacts(
            path=ADAPTED,
            latency_s=latency.adapted_s,
            speedup=latency.speedup,
            validation=found.validation,
            test=found.test,
            replacements=len(history.replacements),
        )
        others = [point for point in history.points if point.model.digest != model.digest]
        measured = [_measured(context, dataset, one, number) for number, one in enumerate(others, start=1)]
        points = _undominated(
            context, [adapted, *(p for p in measured if p is not None)], found.higher_is_better
        )
        points = _written(context.folder, points)
        for point in points:
            if point.path != ADAPTED:
                check_test(context, found, point.test, point.path)
    kept = {context.folder / point.path for point in points}
    for file in (context.folder / FOLDER).glob("*.onnx"):
        if file not in kept and _OURS.fullmatch(file.name):
            file.unlink()
    return tuple(points)


def _measured(context: Context, dataset: Dataset, point: Accepted, number: int) -> PointFacts | None:
    """Exported into the cache, which is the path, and measured; None where that cannot be done, or it is no faster than
    the original beyond the noise."""
    final = folded(context, point.model, f"model {number} of the front")
    path = context.cache / f"point{number}.onnx"
    context.progress.stage(f"export model {number} of the front")
    try:
        export(final, path, context.experiment.opset)
    except ModelError as error:
        context.warn(f"model {number} of the front is left out: {error.message}")
        return None
    measured = compare_files(context, path)
    warn_if_hot(context, measured.state)
    latency = measured.latency
    if not latency.is_gain:
        context.warn(
            f"a model of {latency.speedup.value:.2f}x is left out: it is not faster beyond the noise"
        )
        return None
    scores = accuracy(context, dataset, final)
    return PointFacts(
        path=str(path),
        latency_s=latency.adapted_s,
        speedup=latency.speedup,
        validation=scores.validation,
        test=scores.test,
        replacements=len(point.offers),
    )


def _undominated(context: Context, points: Sequence[PointFacts], higher_is_better: bool) -> list[PointFacts]:
    """The points, fastest first, without those that another beats: no slower, and no worse on validation."""
    sign, best = 1 if higher_is_better else -1, -inf
    kept: list[PointFacts] = []
    for point in sorted(points, key=lambda p: (-p.speedup.value, -sign * p.validation.adapted)):
        value = sign * point.validation.adapted
        if value > best or point.path == ADAPTED:
            kept.append(point)
        else:
            context.warn(
                f"a model of {point.speedup.value:.2f}x is left out: another one is no slower and no worse on "
                "validation"
            )
        if kept[-1].path == ADAPTED and len(kept) > 1:
            worse = " and no worse on validation" if value <= best else ""
            context.warn(f"a model in {FOLDER}/ is no slower than {ADAPTED}{worse}")
        best = max(best, value)
    return kept


def _written(folder: Path, points: Sequence[PointFacts]) -> list[PointFacts]:
    """The points with the paths that they have in the run folder from now on."""
    written: list[PointFacts] = []
    used: Counter[str] = Counter()
    for point in points:
        path = ADAPTED
        if point.path != ADAPTED:
            speed = f"{point.speedup.value:.2f}x"
            used[speed] += 1
            path = f"{FOLDER}/{speed}{f'-{used[speed]}' if used[speed] > 1 else ''}.onnx"
            write_atomic(folder / path, Path(point.path).read_bytes())
        written.append(point.model_copy(update={"path": path}))
    return written

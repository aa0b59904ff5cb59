#!/usr/bin/env python3
"""Latency against accuracy: a run's result beside what its user would try instead, in one measurement.

    python scripts/bench/frontier.py runs/NAME [runs/NAME ...] [--smaller other.onnx ...] [--pruning 0.5 0.75]
        [--minutes 40] [--out build/frontier]

The runs are finished opadapt runs of one model; their data, metric and device are used. Against the original: the
smaller networks given, the original pruned by Torch-Pruning and fine-tuned for as many minutes by opadapt's own
fine-tuning (or as many as the first run's fine-tuning took), opadapt's results, and static int8 quantisation of each.
All are timed in blocks that alternate, in one request, and judged on the same test images, paired with the original.
Prints a table; writes frontier.json and frontier.png into ``--out``. A trained pruned network is kept there and not
trained again. Needs the packages of the dependency group "bench".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import altair as alt
import numpy as np
import onnx
from pruned import pruned
from quantised import int8
from rich.console import Console
from rich.table import Table

from opadapt.experiment import Experiment, open_run
from opadapt.journal import JOURNAL_FILE
from opadapt.measure.opening import open_device
from opadapt.measure.timing import compare_many, faster, floor_of, in_processes, median_latency
from opadapt.model.load import load
from opadapt.steps.final import PROCESSES
from opadapt.train.accept import Tolerance, judge
from opadapt.train.data import Dataset, load_data
from opadapt.train.evaluate import predict
from opadapt.train.finetune import finetune
from opadapt.train.metrics import make_metric

CALIBRATION = 512  # training samples whose ranges int8 takes


@dataclass(frozen=True)
class Entry:
    """A network to compare. ``kind`` names the method."""

    name: str
    kind: str
    proto: onnx.ModelProto


@dataclass(frozen=True)
class Row:
    """What was measured: speed-up over the original with its interval, and points lost on the test data."""

    name: str
    kind: str
    latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    metric: float
    lost: float
    lost_low: float
    lost_high: float
    beyond_noise: bool


def batch_of_one(proto: onnx.ModelProto) -> bytes:
    """The model with its free dimensions set to 1."""
    pinned = onnx.ModelProto()
    pinned.CopyFrom(proto)
    for value in [*pinned.graph.input, *pinned.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.dim_value = 1
    del pinned.graph.value_info[:]
    return pinned.SerializeToString()


def training_minutes(run: Path) -> float:
    """How long the fine-tunings of a run took."""
    with sqlite3.connect(f"file:{run / JOURNAL_FILE}?mode=ro", uri=True) as journal:
        (seconds,) = journal.execute("SELECT SUM(seconds) FROM trial WHERE stage = 'finetune'").fetchone()
    return float(seconds or 0) / 60


def peers(
    experiment: Experiment,
    dataset: Dataset,
    original: onnx.ModelProto,
    ratios: list[float],
    minutes: float,
    out: Path,
) -> Iterator[Entry]:
    """The original pruned at each ratio and fine-tuned like an adapted model."""
    for ratio in ratios:
        shape = tuple(d.dim_value or 1 for d in original.graph.input[0].type.tensor_type.shape.dim)
        student = pruned(original, shape, ratio)
        digest = hashlib.sha256(student.SerializeToString()).hexdigest()[:8]
        kept = out / f"pruned-{ratio:g}-{minutes:.0f}min-{digest}.onnx"
        if not kept.exists():
            folder = out / f"training-{ratio:g}-{minutes:.0f}min-{digest}"
            folder.mkdir(exist_ok=True)
            config = experiment.finetune.model_copy(
                update={"minutes": minutes, "epochs": None, "features": ()}
            )
            metric = make_metric(experiment.metric)
            result = finetune(student, original, dataset, config, folder, metric=metric, seed=experiment.seed)
            onnx.save(result.proto, kept)
        yield Entry(f"pruned {ratio:.0%}", "Torch-Pruning", onnx.load(kept))


def measured(experiment: Experiment, dataset: Dataset, entries: list[Entry]) -> tuple[list[Row], float]:
    """Every network against the first one, and the noise floor of this measurement."""
    with open_device(experiment.device, experiment.timing.threads, experiment.host) as device:
        models = [batch_of_one(e.proto) for e in entries]
        timing = in_processes(experiment.timing, PROCESSES)
        times = device.time([models[0], *models], timing)  # the first twice: the noise floor
    floor, speedups = floor_of(times), compare_many(times)[1:]
    metric, rng = make_metric(experiment.metric), np.random.default_rng(experiment.seed)
    outputs = [predict(e.proto, dataset.test, dataset.preprocess) for e in entries]
    rows = []
    for number, (entry, speedup, made) in enumerate(zip(entries, speedups, outputs, strict=True)):
        found = judge(metric, made, outputs[0], dataset.test.labels, Tolerance(points=0), rng)
        rows.append(
            Row(
                entry.name,
                entry.kind,
                median_latency(times, number + 1).value * 1e3,
                *(speedup.value, speedup.low, speedup.high),
                found.candidate,
                *(found.loss, found.low, found.high),
                faster(speedup, floor),
            )
        )
    return rows, floor


def show(rows: list[Row], floor: float) -> None:
    table = Table("network", "ms", "speed-up", "", "metric", "points lost", "")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.latency_ms:.3f}",
            f"{row.speedup:.2f}x",
            f"{row.speedup_low:.2f}-{row.speedup_high:.2f}",
            f"{row.metric:.2f}",
            f"{row.lost:+.2f}",
            f"{row.lost_low:+.2f} to {row.lost_high:+.2f}",
        )
    console = Console(width=80)
    console.print(table)
    console.print(f"noise floor {floor:.1%}; intervals of 95 %; one request, blocks alternating")


def picture(rows: list[Row], file: Path) -> None:
    values = alt.Data(values=[asdict(row) for row in rows])  # type: ignore[no-untyped-call]
    base = alt.Chart(values).encode(
        x=alt.X("speedup:Q", title="speed-up over the original", scale=alt.Scale(zero=False)),
        color=alt.Color("kind:N", title=None),
    )
    points = base.mark_point(filled=True, size=80).encode(
        y=alt.Y("lost:Q", title="points lost on the test data", scale=alt.Scale(reverse=True))
    )
    bars = base.mark_rule().encode(y="lost_low:Q", y2="lost_high:Q")
    names = base.mark_text(align="left", dx=7, dy=-7).encode(y="lost:Q", text="name:N")
    (bars + points + names).properties(width=620, height=400).save(file, scale_factor=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--smaller", type=Path, nargs="*", default=[])
    parser.add_argument("--pruning", type=float, nargs="*", default=[])
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--out", type=Path, default=Path("build/frontier"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    experiment = open_run(given.runs[0])
    model = load(given.runs[0] / "original.onnx", experiment.shapes)
    if experiment.data is None:
        parser.error(f"{given.runs[0]} had no data: nothing can be judged")
    dataset = load_data(experiment.data, model)
    minutes = given.minutes or training_minutes(given.runs[0])
    entries = [Entry("original", "original", onnx.load(given.runs[0] / "original.onnx"))]
    entries += [Entry(file.stem, "smaller network", onnx.load(file)) for file in given.smaller]
    entries += peers(experiment, dataset, model.proto, given.pruning, minutes, given.out)
    entries += [Entry(run.name, "opadapt", onnx.load(run / "adapted.onnx")) for run in given.runs]
    few = dataset.train.take(slice(0, CALIBRATION))
    samples = next(iter(dataset.preprocess.numpy(few.inputs).values()))
    entries += [Entry(f"{e.name} int8", f"{e.kind}, int8", int8(e.proto, samples)) for e in list(entries)]
    rows, floor = measured(experiment, dataset, entries)
    show(rows, floor)
    written = {"noise_floor": floor, "minutes": minutes, "rows": [asdict(row) for row in rows]}
    (given.out / "frontier.json").write_text(json.dumps(written, indent=2))
    picture(rows, given.out / "frontier.png")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()

"""Geometry of the page's charts: numbers in, SVG coordinates out (user units, origin top left).

The templates only draw what is computed here. Inline SVG needs no script and no network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opadapt.report import wording
from opadapt.report.data import FrontPoint, OperatorCost, Report, TrainingPoint

BARS_SHOWN = 30
WIDTH, HEIGHT = 360.0, 220.0  # of the plotting area of a scatter or line chart
BAR_WIDTH, ROW_HEIGHT = 420.0, 30.0
_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A labelled position along an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """Two bars of one operator, before and after."""

    label: str
    y: float
    before: float
    after: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point of a scatter; ``kind`` is a CSS class."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Line:
    """A polyline; ``number`` picks its colour."""

    points: str
    number: int
    label: str


@dataclass(frozen=True)
class Chart:
    """A scatter or line chart."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Scale:
    """A linear map from data to positions, with round ticks."""

    low: float
    high: float
    length: float
    flipped: bool = False  # the y axis of SVG points down

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round((1 - share if self.flipped else share) * self.length, 2)

    def ticks(self, label: Callable[[float], str]) -> tuple[Tick, ...]:
        step = _round_step((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(Tick(self(i * step), label(i * step)) for i in range(first, last + 1))


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, not below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def scale(values: Sequence[float], length: float, *, zero: bool = False, flipped: bool = False) -> Scale:
    """A scale that holds all values with a little room; ``zero`` makes it begin at 0."""
    low, high = (0.0 if zero else min(values)), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Scale(low if zero else low - room, high + room, length, flipped)


def operator_bars(operators: Sequence[OperatorCost]) -> tuple[Bar, ...]:
    """The slowest operators before or after, worst first, one row each; fused ones, which take no time, are left
    out."""
    timed = [o for o in operators if max(o.latency_before_s, o.latency_after_s) > 0]
    worst = sorted(timed, key=lambda o: -max(o.latency_before_s, o.latency_after_s))[:BARS_SHOWN]
    longest = max((max(o.latency_before_s, o.latency_after_s) for o in worst), default=0.0) or 1.0
    return tuple(
        Bar(
            f"{o.op_type} {o.name}",
            row * ROW_HEIGHT,
            round(o.latency_before_s / longest * BAR_WIDTH, 2),
            round(o.latency_after_s / longest * BAR_WIDTH, 2),
            f"{wording.seconds(o.latency_before_s)} -> {wording.seconds(o.latency_after_s)}",
        )
        for row, o in enumerate(worst)
    )


def fronts(points: Sequence[FrontPoint]) -> tuple[Chart, ...]:
    """Latency against the error of the region's output, one chart per group, in order of appearance."""
    groups = dict.fromkeys(p.group for p in points)
    return tuple(_front(group, [p for p in points if p.group == group]) for group in groups)


def _front(group: str, points: Sequence[FrontPoint]) -> Chart:
    positive = [p.damage for p in points if p.damage > 0]
    floor = min(positive, default=1e-6) / 2  # an exact program has damage 0: drawn at the bottom

    def height(damage: float) -> float:
        return math.log10(max(damage, floor))

    x = scale([p.latency_s for p in points], WIDTH, zero=True)
    y = scale([height(p.damage) for p in points], HEIGHT, flipped=True)
    marks = tuple(
        Mark(
            x(p.latency_s),
            y(height(p.damage)),
            "chosen" if p.chosen else "front" if p.on_front else "other",
            f"{p.label}: {wording.left(p.latency_s)}, error {wording.digits(p.damage)}, "
            f"{wording.count(p.parameters)} parameters",
        )
        for p in points
    )
    x_ticks, y_ticks = x.ticks(wording.seconds), y.ticks(lambda v: wording.digits(10**v, 2))
    return Chart(group, "latency", "NMSE of the output (log scale)", x_ticks, y_ticks, marks)


def models(report: Report) -> Chart | None:
    """Speed-up against the metric, a mark per model of the run and one for the original; None where it made one."""
    if not report.points or report.accuracy is None:
        return None
    metric, unit = report.accuracy.metric, report.accuracy.unit
    split, first = report.points[0].split
    marked = [
        (1.0, first.original, "other", f"the original: {metric} {wording.score(first.original, unit)}"),
        *(
            (
                p.speedup.value,
                p.split[1].adapted,
                "front",
                f"{p.path}: {wording.speedup(p.speedup)}, {metric} {wording.score(p.split[1].adapted, unit)}",
            )
            for p in report.points
        ),
    ]
    x = scale([speedup for speedup, *_ in marked], WIDTH)
    y = scale([value for _, value, *_ in marked], HEIGHT, flipped=True)
    marks = tuple(Mark(x(speedup), y(value), kind, text) for speedup, value, kind, text in marked)
    label = f"{metric} on {split}"
    x_ticks, y_ticks = x.ticks(lambda v: f"{wording.digits(v)}x"), y.ticks(wording.digits)
    return Chart("models of this run", "speedup", label, x_ticks, y_ticks, marks)


def training(points: Sequence[TrainingPoint]) -> tuple[Chart, ...]:
    """Loss over epochs and, where it was read, the metric; a line per attempt."""
    charts = [_curves("loss", points, [p.loss for p in points])] if points else []
    read = [p for p in points if p.metric is not None]
    if read:
        charts.append(_curves("metric on validation", read, [p.metric for p in read if p.metric is not None]))
    return tuple(charts)


def _curves(title: str, points: Sequence[TrainingPoint], values: Sequence[float]) -> Chart:
    x = scale([p.epoch for p in points], WIDTH, zero=True)
    y = scale(values, HEIGHT, flipped=True)
    lines = []
    for number, attempt in enumerate(dict.fromkeys(p.attempt for p in points)):
        own = sorted((p.epoch, v) for p, v in zip(points, values, strict=True) if p.attempt == attempt)
        text = " ".join(f"{x(epoch)},{y(value)}" for epoch, value in own)
        lines.append(Line(text, number, f"attempt {attempt}"))
    return Chart(title, "epoch", title, x.ticks(wording.digits), y.ticks(wording.digits), lines=tuple(lines))

"""Numbers and names as people read them, the same on the terminal and in the page."""

from __future__ import annotations

from opadapt.measure.timing import Estimate
from opadapt.report.data import AccuracyFacts, Report, Scores
from opadapt.report.printable import short

__all__ = [
    "count",
    "difference",
    "digits",
    "final_board",
    "headline",
    "latency",
    "left",
    "percent",
    "points",
    "relative",
    "score",
    "seconds",
    "short",
    "speedup",
]

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def digits(value: float, significant: int = 3) -> str:
    """Three significant digits, never in exponent form for ordinary sizes: 0.00123, 1.23, 123, 1234."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    text = f"{value:.{significant}g}"
    return f"{value:.0f}" if "e" in text else text


def seconds(value: float) -> str:
    """``0.00123`` -> ``"1.23 ms"``."""
    if value == 0:
        return "0"
    size, unit = next(((s, u) for s, u in _TIMES if abs(value) >= s), _TIMES[-1])
    return f"{digits(value / size)} {unit}"


def left(value: float) -> str:
    """The latency of a region that runs another program. What is saved is measured in the whole model: at 0, it was at
    least what had been attributed to the region."""
    return "~0" if value == 0 else seconds(value)


def count(value: int) -> str:
    """``1234567`` -> ``"1.23M"``."""
    size, unit = next(((s, u) for s, u in _COUNTS if abs(value) >= s), (1.0, ""))
    return f"{digits(value / size)}{unit}"


def percent(share: float) -> str:
    """``0.1234`` -> ``"12.3 %"``."""
    return f"{100 * share:.1f} %"


def relative(ratio: float) -> str:
    """``1.034`` -> ``"+3.4 %"``."""
    return f"{100 * (ratio - 1):+.1f} %"


def latency(estimate: Estimate) -> str:
    """``"1.23 ms (1.21 to 1.26)"``: all three in the unit of the value."""
    size, unit = next(((s, u) for s, u in _TIMES if estimate.value >= s), _TIMES[-1])
    value, low, high = (digits(x / size) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} {unit} ({low} to {high})"


def speedup(estimate: Estimate) -> str:
    """``"2.13x (2.10 to 2.16)"``."""
    return f"{estimate.value:.2f}x ({estimate.low:.2f} to {estimate.high:.2f})"


def score(value: float, unit: str) -> str:
    """``"91.73 %"``, ``"2.51 BPM"``, ``"0.93"``."""
    return f"{value:.2f} {unit}".rstrip()


def points(value: float, unit: str) -> str:
    """A difference in the unit of a metric: points of those that are per cent, ``"1.00 points"``, ``"0.50 BPM"``."""
    return score(value, "points" if unit == "%" else unit)


def difference(scores: Scores) -> str:
    """``"-0.42 (-0.71 to -0.13)"``: adapted minus original."""
    d = scores.difference
    return f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})"


def headline(report: Report) -> str:
    """One sentence: what came out."""
    if not report.verdict.adapted:
        return "Nothing was replaced: the export runs as the original does."
    parts = [f"{report.latency.speedup.value:.2f}x as fast on {report.device.name}"]
    if not report.latency.is_gain:
        parts.append("which the noise of the measurement does not tell from 1x")
    if report.accuracy is not None:
        parts.append(_accuracy_words(report.accuracy))
    return ", ".join(parts) + "."


def final_board(report: Report) -> str | None:
    """Where both models were compared in the end; None for a device that has no boards."""
    board = report.device.conditions.get("board")
    return None if board is None else f"the exported file and the original were compared on {board}"


def _accuracy_words(accuracy: AccuracyFacts) -> str:
    scores, split = (accuracy.test, "test") if accuracy.test else (accuracy.validation, "validation")
    unit = f" {accuracy.unit}" if accuracy.unit else ""
    return f"{accuracy.metric} {scores.original:.2f} -> {scores.adapted:.2f}{unit} on {split}"

"""The report as rich tables, 80 columns wide. Names of a model are shown as they are, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from opadapt.report import state, wording
from opadapt.report.data import AccuracyFacts, Report
from opadapt.report.printable import printable

_REASONS_SHOWN = 12


def shown(text: object, style: str = "") -> Text:
    """Text for rich: no markup is read in it, no control character leaves it."""
    return Text(printable(str(text)), style=style, overflow="fold")


def table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; ``columns`` are (header, is a number). Cells are text, or Text with its style."""
    result = Table(title=shown(title, "bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for header, is_number in columns:
        result.add_column(shown(header, "dim"), justify="right" if is_number else "left", no_wrap=is_number)
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else shown(cell) for cell in row))
    return result


def print_report(report: Report, console: Console) -> None:
    """Summary, what was replaced, what was refused, and what to keep in mind."""
    parts = [part for section in _SECTIONS if (part := section(report)) is not None]
    for part in parts:
        console.print(part)
        console.print()


def _headline(report: Report) -> RenderableType:
    style = "bold green" if report.verdict.adapted else "bold yellow"
    return Group(shown(wording.headline(report), style), shown(report.verdict.reason))


def _summary(report: Report) -> RenderableType:
    before, after, latency = report.original, report.adapted, report.latency
    rows: list[Sequence[object]] = [
        ("latency", wording.latency(latency.original_s), wording.latency(latency.adapted_s)),
        ("parameters", wording.count(before.parameters), wording.count(after.parameters)),
        ("MACs", *("unknown" if m.macs is None else wording.count(m.macs) for m in (before, after))),
        ("nodes", before.nodes, after.nodes),
    ]
    if report.accuracy is not None:
        rows[1:1] = _accuracy_rows(report.accuracy)
    if report.energy is not None:
        rows.insert(
            1, ("energy", state.joules(report.energy.original_j), state.joules(report.energy.adapted_j))
        )
    facts = table(
        f"{report.name}: {report.device.name}, {report.device.threads} thread(s)",
        [("", False), ("original", True), ("adapted", True)],
        rows,
    )
    lines = [
        f"speedup {wording.speedup(latency.speedup)}, noise floor {wording.percent(latency.noise_floor)}"
        + (f", target {report.verdict.target}" if report.verdict.target else "")
        + {True: ": reached", False: ": not reached", None: ""}[report.verdict.target_reached]
    ]
    if report.verdict.bound is not None:
        lines.append(f"bound by {report.verdict.bound}")
    if report.accuracy is None:
        lines.append("no data was given: only exact replacements were allowed")
    else:
        lines += [
            f"difference on {split} {wording.difference(scores)}" for split, scores in report.accuracy.splits
        ]
    lines += state.lines(report)
    return Group(facts, *(shown(line) for line in lines))


def _accuracy_rows(accuracy: AccuracyFacts) -> Iterator[Sequence[object]]:
    for split, scores in accuracy.splits:
        values = (wording.score(v, accuracy.unit) for v in (scores.original, scores.adapted))
        by = " against reference" if split == "validation" and accuracy.reference is not None else ""
        yield (f"{accuracy.metric}, {split} ({scores.samples}){by}", *values)


def _points(report: Report) -> RenderableType | None:
    if not report.points:
        return None
    return table(
        "models of this run, fastest first",
        [
            ("file", False),
            ("speedup", True),
            (f"difference on {report.points[0].split[0]}", True),
            ("regions", True),
        ],
        (
            (p.path, wording.speedup(p.speedup), wording.difference(p.split[1]), p.replacements)
            for p in report.points
        ),
    )


def _replacements(report: Report) -> RenderableType | None:
    if not report.replacements:
        return None
    return table(
        f"{len(report.replacements)} region(s) replaced",
        [("region", False), ("by", False), ("latency", True), ("parameters", True), ("damage", True)],
        (
            (
                wording.short(r.region),
                r.rule,
                f"{wording.seconds(r.latency_before_s)} -> {wording.left(r.latency_after_s)}",
                f"{wording.count(r.parameters_before)} -> {wording.count(r.parameters_after)}",
                wording.digits(r.damage),
            )
            for r in report.replacements
        ),
    )


def _attempts(report: Report) -> RenderableType | None:
    if not report.attempts:
        return None
    return table(
        "assembled, fine-tuned and judged",
        [("round", True), ("aim", True), ("regions", True), ("got", True), ("", False), ("why", False)],
        (
            (
                f"{a.round}.{a.attempt}",
                f"{a.aim_speedup:.2f}x",
                a.replacements,
                "-" if a.speedup is None else f"{a.speedup:.2f}x",
                shown("accepted", "green") if a.accepted else shown("refused", "yellow"),
                a.reason,
            )
            for a in report.attempts
        ),
    )


def _boards(report: Report) -> RenderableType | None:
    if not report.boards:
        return None
    rows = [
        (
            board.host,
            board.requests,
            "-" if board.latency_s is None else wording.seconds(board.latency_s),
            "-" if board.relative is None else wording.relative(board.relative),
            board.dropped or "",
        )
        for board in report.boards
    ]
    columns = [
        ("board", False),
        ("requests", True),
        ("original", True),
        ("against all", True),
        ("lost", False),
    ]
    final = wording.final_board(report)
    return Group(table(f"{len(rows)} boards", columns, rows), *([shown(final)] if final else []))


def _refusals(report: Report) -> RenderableType | None:
    if not report.refusals:
        return None
    ordered = sorted(report.refusals, key=lambda r: -r.count)
    rows: list[Sequence[object]] = [(r.count, r.stage, r.reason) for r in ordered[:_REASONS_SHOWN]]
    if rest := ordered[_REASONS_SHOWN:]:
        rows.append((sum(r.count for r in rest), "", f"{len(rest)} further reasons: see report.html"))
    title = f"{sum(r.count for r in ordered)} candidates refused"
    return table(title, [("count", True), ("stage", False), ("reason", False)], rows)


def _unexpanded(report: Report) -> RenderableType | None:
    if not report.unexpanded:
        return None
    ordered = sorted(report.unexpanded, key=lambda u: (u.op_type, u.reason))
    counts = [
        (len(list(members)), *key) for key, members in groupby(ordered, key=lambda u: (u.op_type, u.reason))
    ]
    title = "operators without a program (left as they are)"
    return table(title, [("count", True), ("operator", False), ("reason", False)], counts)


def _warnings(report: Report) -> RenderableType | None:
    if not report.warnings:
        return None
    return Group(*(shown(f"warning: {text}", "yellow") for text in report.warnings))


_SECTIONS = (
    _headline,
    _summary,
    _points,
    _replacements,
    _attempts,
    _boards,
    _refusals,
    _unexpanded,
    _warnings,
)

"""The report as one HTML page that needs nothing else: no script, no network, charts as inline SVG."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from opadapt.errors import RunError, first_line
from opadapt.report import charts, state, wording
from opadapt.report.data import Report


def render_html(report: Report) -> str:
    """The page. Every text of the report is escaped: a model's names can hold anything."""
    environment = Environment(
        loader=PackageLoader("opadapt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2")
    return page.render(
        report=report,
        wording=wording,
        state=state,
        bars=charts.operator_bars(report.operators),
        models=charts.models(report),
        fronts=charts.fronts(report.front),
        training=charts.training(report.training),
        sizes=charts,
    )


def write_html(report: Report, path: Path) -> None:
    """Write the page; a reader sees the old file or the new one. Raises RunError."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(render_html(report), encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}", found=first_line(error)) from error

"""The terminal summary and the HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.dom import minidom

import pytest
from rich.console import Console

from opadapt.measure.timing import Estimate
from opadapt.report import charts, wording
from opadapt.report.data import (
    BoardFacts,
    OperatorCost,
    PointFacts,
    Report,
    Scores,
    TrainingPoint,
    read_json,
)
from opadapt.report.html import render_html, write_html
from opadapt.report.terminal import print_report

HERE = Path(__file__).parent
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def sample() -> Report:
    return read_json(HERE / "sample_report.json")


def _empty(report: Report) -> Report:
    """A run that replaced nothing, had no data and no target."""
    lists = (
        "points",
        "replacements",
        "operators",
        "front",
        "training",
        "attempts",
        "refusals",
        "unexpanded",
        "warnings",
    )
    verdict = report.verdict.model_copy(update={"adapted": False, "target": None, "target_reached": None})
    return report.model_copy(update=dict.fromkeys(lists, ()) | {"accuracy": None, "verdict": verdict})


def _terminal(report: Report) -> str:
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as capture:
        print_report(report, console)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def test_terminal_report_at_80_columns(sample: Report, request: pytest.FixtureRequest) -> None:
    golden = HERE / "terminal_80.txt"
    text = _terminal(sample)
    if request.config.getoption("--update-golden"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 80


def test_names_cannot_steer_the_terminal(sample: Report) -> None:
    text = _terminal(sample)
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text.replace("\n", "").replace(" ", "")


def test_a_run_without_result_says_so(sample: Report) -> None:
    for text in (_terminal(_empty(sample)), render_html(_empty(sample))):
        assert "Nothing was replaced" in text
        assert "only exact replacements were allowed" in text


def test_boards_of_a_fleet_are_compared(sample: Report) -> None:
    boards = (
        BoardFacts(host="a", requests=7, latency_s=0.00123, relative=0.98, dropped=None),
        BoardFacts(host="pi@b:2222", requests=1, latency_s=0.00131, relative=1.044, dropped=None),
        BoardFacts(host=EVIL, requests=0, latency_s=None, relative=None, dropped="no answer for 15 s"),
    )
    device = sample.device.model_copy(update={"conditions": {"board": "pi@b:2222"}})
    report = sample.model_copy(update={"boards": boards, "device": device})
    text, page = _terminal(report), render_html(report)
    assert max(map(len, text.splitlines())) <= 80
    for shown in ("3 boards", "1.23 ms", "-2.0 %", "+4.4 %", "compared on pi@b:2222"):
        assert shown in text and (shown in page or shown == "3 boards")
    assert "no answer" in text and "no answer for 15 s" in page and EVIL not in page
    assert "boards" not in _terminal(sample) and "<h2>Boards" not in render_html(sample)


def _with_points(report: Report, test: bool = True, evil: str = "front/1.20x.onnx") -> Report:
    """A run that made three models; the last file is called as told."""

    def scores(value: float) -> Scores:
        difference = Estimate(value - 91.5, value - 91.9, value - 91.1)
        return Scores(samples=4990, original=91.5, adapted=value, difference=difference)

    def point(path: str, speedup: float, value: float, replacements: int) -> PointFacts:
        return PointFacts(
            path=path,
            latency_s=Estimate(1.23e-3 / speedup, 1.2e-3 / speedup, 1.26e-3 / speedup),
            speedup=Estimate(speedup, speedup - 0.05, speedup + 0.05),
            validation=scores(value),
            test=scores(value + 0.1) if test else None,
            replacements=replacements,
        )

    points = (
        point("adapted.onnx", 2.13, 90.6, 14),
        point("front/1.53x.onnx", 1.53, 91.02, 9),
        point(evil, 1.2, 91.3, 4),
    )
    return report.model_copy(update={"points": points})


def test_models_of_a_run_are_a_table_fastest_first(sample: Report) -> None:
    text = _terminal(_with_points(sample))
    start = text.index("models of this run, fastest first")
    assert [" ".join(line.split()) for line in text[start:].split("\n\n")[0].splitlines()] == [
        "models of this run, fastest first",
        "file speedup difference on test regions",
        "adapted.onnx 2.13x (2.08 to 2.18) -0.80 (-1.20 to -0.40) 14",
        "front/1.53x.onnx 1.53x (1.48 to 1.58) -0.38 (-0.78 to +0.02) 9",
        "front/1.20x.onnx 1.20x (1.15 to 1.25) -0.10 (-0.50 to +0.30) 4",
    ]
    assert max(map(len, text.splitlines())) <= 80
    without_test = _terminal(_with_points(sample, test=False))
    assert "difference on validation" in without_test and "-0.90 (-1.30 to -0.50)" in without_test
    assert "models of this run" not in _terminal(sample)


def test_models_of_a_run_are_a_chart(sample: Report) -> None:
    page, evil = render_html(_with_points(sample)), f"{EVIL}[bold]\x1b[31m"
    assert "<h2>Models of this run, fastest first</h2>" in page
    (picture,) = re.findall(r"<svg[^>]*models of this run.*?</svg>", page, re.DOTALL)
    svg = minidom.parseString(picture).documentElement
    assert svg is not None
    assert svg.getAttribute("aria-label") == "models of this run: top1 on test over speedup"
    left, top, width, height = map(float, svg.getAttribute("viewBox").split())
    circles = svg.getElementsByTagName("circle")
    places = [(float(c.getAttribute("cx")), float(c.getAttribute("cy"))) for c in circles]
    assert all(left <= x <= left + width and top <= y <= top + height for x, y in places)
    # from the fastest to the slowest and to the original: ever further left and higher
    (original, *models) = places
    for along in zip(*models, original, strict=True):
        assert list(along) == sorted(set(along), reverse=True)
    texts = [c.getElementsByTagName("title")[0].firstChild.data for c in circles]  # type: ignore[union-attr]
    assert texts[:2] == [
        "the original: top1 91.50 %",
        "adapted.onnx: 2.13x (2.08 to 2.18), top1 90.70 %",
    ]
    assert "Models of this run" not in render_html(sample)

    report = _with_points(sample, evil=evil)
    page, text = render_html(report), _terminal(report)
    assert EVIL not in page and "\x1b" not in text and "script" not in _seen(page)
    # in the table and in the chart
    assert page.count("&lt;script&gt;") == render_html(_with_points(sample)).count("&lt;script&gt;") + 2


class _Tags(HTMLParser):
    """Counts tags, and checks that those which need an end have one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _seen(page: str) -> set[str]:
    tags = _Tags()
    tags.feed(page)
    assert not tags.open
    return tags.seen


def test_page_names_points_where_points_are_meant(sample: Report) -> None:
    page = render_html(sample)
    assert sample.accuracy is not None and sample.accuracy.unit == "%"
    assert f"Tolerance: {sample.accuracy.tolerance:.2f} points" in page


def test_page_escapes_every_name_and_needs_nothing_else(sample: Report) -> None:
    page = render_html(sample)
    tags = _Tags()
    tags.feed(page)
    assert not tags.open
    assert "script" not in tags.seen
    assert not tags.links
    assert EVIL not in page
    # region, node list, program, bar label and tip, front title and mark, refusal, operator without program
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 9
    assert not re.search(r"https?://", page)


def test_charts_are_well_formed_and_inside_their_frame(sample: Report) -> None:
    pictures = re.findall(r"<svg.*?</svg>", render_html(sample), re.DOTALL)
    assert len(pictures) == 1 + 2 + 2  # operators; a front per group; loss and metric
    for picture in pictures:
        svg = minidom.parseString(picture).documentElement
        assert svg is not None
        left, top, width, height = map(float, svg.getAttribute("viewBox").split())
        for circle in svg.getElementsByTagName("circle"):
            assert left <= float(circle.getAttribute("cx")) <= left + width
            assert top <= float(circle.getAttribute("cy")) <= top + height
        for line in svg.getElementsByTagName("polyline"):
            for point in line.getAttribute("points").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT


def test_bars_are_proportional_and_worst_first() -> None:
    costs = [
        OperatorCost(name=f"n{i}", op_type="Conv", latency_before_s=i * 1e-4, latency_after_s=0.5e-4)
        for i in range(1, 41)
    ]
    bars = charts.operator_bars(costs)
    assert len(bars) == charts.BARS_SHOWN
    assert bars[0].label == "Conv n40" and bars[0].before == charts.BAR_WIDTH
    assert bars[1].before == pytest.approx(charts.BAR_WIDTH * 39 / 40, abs=0.01)


def test_one_reading_and_equal_values_still_make_a_chart() -> None:
    chart = charts.training([TrainingPoint(attempt=1, epoch=0.0, loss=0.0)])[0]
    assert chart.lines[0].points == "0.0,110.0"
    assert charts.training([]) == ()


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (wording.seconds(0.001234), "1.23 ms"),
        (wording.seconds(2.5e-7), "0.25 µs"),
        (wording.seconds(0), "0"),
        (wording.count(999), "999"),
        (wording.count(1_234_567), "1.23M"),
        (wording.digits(123456.0), "123456"),
        (wording.digits(0.00001234), "1.2e-05"),
        (wording.score(2.514, "BPM"), "2.51 BPM"),
        (wording.score(0.934, ""), "0.93"),
        (wording.short("abcdefghijklmnop", 10), "abc...mnop"),
    ],
)
def test_wording(made: str, text: str) -> None:
    assert made == text


def test_page_is_written_whole(sample: Report, tmp_path: Path) -> None:
    write_html(sample, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_html(sample)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missed_target_names_what_bound(sample: Report) -> None:
    bound = f"tolerance: at 3.02x {EVIL}"
    verdict = sample.verdict.model_copy(update={"target": "3x", "target_reached": False, "bound": bound})
    report = sample.model_copy(update={"verdict": verdict})
    assert f"bound by tolerance: at 3.02x {EVIL}" in _terminal(report)
    page = render_html(report)
    assert "bound by tolerance: at 3.02x &lt;script&gt;" in page and EVIL not in page

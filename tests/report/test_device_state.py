"""What people read of the device's state and of energy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from opadapt.report import state
from opadapt.report.data import Report, read_json
from opadapt.report.html import render_html
from opadapt.report.terminal import print_report

SAMPLE = Path(__file__).with_name("sample_report.json")


@pytest.fixture
def sample() -> Report:
    return read_json(SAMPLE)


def with_state(report: Report, **changes: Any) -> Report:
    assert report.device.state is not None
    device = report.device.model_copy(update={"state": report.device.state.model_copy(update=changes)})
    return report.model_copy(update={"device": device})


def pages(report: Report) -> tuple[str, str]:
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as capture:
        print_report(report, console)
    return capture.get(), render_html(report)


def test_both_pages_tell_state_and_energy(sample: Report) -> None:
    for text in pages(sample):
        assert "device: 52 -&gt; 63 °C".replace("-&gt;", "->") in text.replace("-&gt;", "->")
        assert "2 block(s) thrown away and repeated" in text
        assert "waited 12.3 s to cool down" in text
        assert "4.31 mJ" in text and "2.02 mJ" in text and "ina226 channel 1" in text
    assert "-53 %" in pages(sample)[1]


def test_what_is_not_known_is_not_said(sample: Report) -> None:
    device = sample.device.model_copy(update={"state": None, "conditions": {}})
    for text in pages(sample.model_copy(update={"device": device, "energy": None})):
        for word in ("°C", "MHz", "throttling", "waited", "energy", " mJ"):
            assert word not in text


def test_missing_energy_is_explained_where_a_source_was_named(sample: Report) -> None:
    why = "rapl package-0: cannot be read (by root only?)"
    device = sample.device.model_copy(update={"conditions": {"power_missing": why}})
    for text in pages(sample.model_copy(update={"device": device, "energy": None})):
        assert f"no energy: {why}" in text and " mJ" not in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"discarded_blocks": 0}, "throttling: none while it was measured"),
        ({"too_hot": True}, "waited 12.3 s to cool down, and it was still hot"),
        ({"temperature_c": (None, None), "governor": None, "pinned": ()}, "device: 600 -> 1500 MHz"),
        (
            {"temperature_c": (60.0, 60.2)},
            "device: 60 °C, 600 -> 1500 MHz, governor ondemand, pinned to 2, 3",
        ),
    ],
)
def test_lines(sample: Report, changes: dict[str, Any], expected: str) -> None:
    assert expected in list(state.lines(with_state(sample, **changes)))


def test_a_silent_board_claims_no_absence_of_throttling(sample: Report) -> None:
    changed = with_state(sample, discarded_blocks=0, watched=False, waited_s=0.0)
    lines = list(state.lines(changed))
    assert "throttling: the device does not tell" in lines and not any("waited" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"), [(0.00431, "4.31 mJ"), (2.5, "2.5 J"), (42e-6, "42 µJ"), (3e-7, "0.3 µJ")]
)
def test_joules(value: float, text: str) -> None:
    assert state.joules(value) == text


def test_reports_from_before_are_still_read(tmp_path: Path, sample: Report) -> None:
    old = json.loads(SAMPLE.read_text())
    del old["energy"], old["device"]["state"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(old))
    found = read_json(path)
    assert found.energy is None and found.device.state is None and found.latency == sample.latency


def test_facts_are_told_in_words_and_only_what_is_known() -> None:
    conditions: dict[str, Any] = {
        "cpu": "AMD EPYC",
        "threads": 1,
        "before.clock_mhz": "[600, 1500]",
        "after.clock_mhz": "[]",
        "after.load_average": "[1.4892578125, 0.0]",
        "after.governor": None,
        "too_hot": False,
        "throttling_watched": True,
        "waited_s": 0.0,
        "before.temperature_c.thermal_zone0:cpu-thermal": 61.234567,
        "energy.seconds": 3.5,
        "board_software": "1.20240529",
    }
    assert dict(state.facts(conditions)) == {
        "cpu": "AMD EPYC",
        "threads": "1",
        "clocks in MHz before": "600, 1500",
        "load average after": "1.49, 0.0",
        "throttling watched": "yes",
        "too hot": "no",
        "seconds waited": "0",
        "°C of thermal_zone0:cpu-thermal before": "61.2",
        "board software": "1.20240529",
    }

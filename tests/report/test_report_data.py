"""The report as JSON: read back as written, and nothing else accepted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from opadapt.errors import RunError
from opadapt.measure.timing import Estimate
from opadapt.report.data import LatencyFacts, PointFacts, Report, flat_conditions, read_json, write_json

SAMPLE = Path(__file__).with_name("sample_report.json")


def test_round_trip(tmp_path: Path) -> None:
    report = read_json(SAMPLE)
    write_json(report, tmp_path / "report.json")
    assert (tmp_path / "report.json").read_bytes() == SAMPLE.read_bytes()
    assert read_json(tmp_path / "report.json") == report
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_models_of_a_run_are_read_back(tmp_path: Path) -> None:
    report = read_json(SAMPLE)
    assert report.accuracy is not None
    one = PointFacts(
        path="front/1.53x.onnx",
        latency_s=report.latency.adapted_s,
        speedup=report.latency.speedup,
        validation=report.accuracy.validation,
        test=None,
        replacements=3,
    )
    write_json(report.model_copy(update={"points": (one,)}), tmp_path / "report.json")
    found = read_json(tmp_path / "report.json").points
    assert found == (one,) and found[0].split == ("validation", one.validation)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"extra": 1}, "extra"),
        ({"seed": "7"}, "seed"),
        ({"latency": None}, "latency"),
        ({"warnings": [3]}, "warnings.0"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, change: dict[str, object], named: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(json.loads(SAMPLE.read_text()) | change))
    with pytest.raises(RunError, match="no report of this version") as caught:
        read_json(path)
    assert f"({named}" in caught.value.message


def test_a_report_from_before_several_models_is_read(tmp_path: Path) -> None:
    values = json.loads(SAMPLE.read_text())
    del values["points"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    assert read_json(tmp_path / "report.json") == read_json(SAMPLE)


def test_cut_off_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_bytes(SAMPLE.read_bytes()[:1000])
    for name in ("cut.json", "absent.json"):
        with pytest.raises(RunError):
            read_json(tmp_path / name)


def test_a_report_holds_finite_numbers_only() -> None:
    report = read_json(SAMPLE)
    broken = Estimate(1.0, math.nan, 1.0)
    with pytest.raises(ValidationError, match="finite"):
        Report(**{**dict(report), "latency": dict(report.latency) | {"speedup": broken}})


@pytest.mark.parametrize(("low", "is_gain"), [(1.011, True), (1.009, False)])
def test_a_gain_is_above_the_noise_floor(low: float, is_gain: bool) -> None:
    one = Estimate(1.0, 1.0, 1.0)
    facts = LatencyFacts(original_s=one, adapted_s=one, speedup=Estimate(1.05, low, 1.1), noise_floor=0.01)
    assert facts.is_gain is is_gain


def test_conditions_become_one_level() -> None:
    nested = {"a": 1, "b": {"c": None, "d": {"e": "x"}}, "list": [1, 2], "nan": math.nan}
    assert flat_conditions(nested) == {"a": 1, "b.c": None, "b.d.e": "x", "list": "[1, 2]", "nan": "nan"}

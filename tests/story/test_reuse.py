"""A run takes over what an earlier run of the same model, data and seed has paid for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_data, write_experiment

from opadapt.adapt import adapt
from opadapt.experiment import create_run, load_experiment
from opadapt.journal import Journal
from opadapt.report.data import Report
from opadapt.report.progress import Silent
from opadapt.steps.earlier import STAGES, subject
from opadapt.yamlfile import Override


def run(path: Path, **changes: object) -> tuple[Report, Path]:
    overrides = [Override(tuple(name.split("__")), value, name) for name, value in changes.items()]
    experiment, folder = create_run(load_experiment(path, overrides))
    return adapt(experiment, folder, Silent()), folder


def begun(folder: Path) -> dict[str, int]:
    """Trials that the run paid for, by stage."""
    journal = Journal(folder)
    counts = {stage: journal.attempts(stage) for stage in STAGES}
    journal.close()
    return counts


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, Path]:
    path = write_experiment(tmp_path_factory.mktemp("reuse"))
    return path, *run(path)


def test_the_same_again_costs_nothing_and_ends_the_same(first: tuple[Path, Report, Path]) -> None:
    path, report, folder = first
    assert all(begun(folder).values())
    again, second = run(path, name="again")
    assert begun(second) == dict.fromkeys(STAGES, 0)
    assert again.replacements == report.replacements and again.accuracy == report.accuracy
    assert again.front == report.front


def test_another_target_pays_for_no_candidate_twice(first: tuple[Path, Report, Path]) -> None:
    path, _, _ = first
    report, second = run(path, name="slower", target="1.15x")
    assert begun(second) == dict.fromkeys(STAGES, 0)
    assert report.verdict.target_reached


def test_no_reuse_pays_for_all(first: tuple[Path, Report, Path]) -> None:
    path, report, _ = first
    again, second = run(path, name="anew", reuse=False)
    assert all(begun(second).values()) and again.replacements == report.replacements


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"metric__name": "deviation"},
        {"search__probe_samples": 32},
        {"search__activation_samples": 32},
        {"data__validation_fraction": 0.3},
    ],
)
def test_what_differs_is_another_subject(
    first: tuple[Path, Report, Path], changes: dict[str, object]
) -> None:
    path = first[0]
    overrides = [Override(tuple(name.split("__")), value, name) for name, value in changes.items()]
    other, same = load_experiment(path, overrides), load_experiment(path)
    assert subject(other, "contents") != subject(same, "contents")
    faster = load_experiment(path, [Override(("target",), "3x", "--target")])
    assert subject(faster, "contents") == subject(same, "contents") != subject(same, "other contents")


def test_other_data_is_paid_for(first: tuple[Path, Report, Path]) -> None:
    path, _, _ = first
    other = write_data(path.parent / "other.npz", seed=1)
    _, second = run(path, name="other", data__path=str(other))
    assert all(begun(second).values())


def test_lost_weights_and_damaged_journals_are_left_out(
    first: tuple[Path, Report, Path], tmp_path: Path
) -> None:
    path, _, _ = first
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "journal.sqlite").write_bytes(b"no database at all" * 100)
    _, without = run(path, name="one", runs=str(tmp_path))
    for kept in (without / "weights").iterdir():
        kept.unlink()
    _, second = run(path, name="two", runs=str(tmp_path))
    found = begun(second)
    assert found["latency"] == 0 and found["distil"] > 0

"""The whole story on a fleet of null devices: what it chooses does not depend on how many boards measure, nor on
one of them dying in the middle."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fleets import Moody, choices, fleet, rows
from tiny import write_experiment

from opadapt.adapt import adapt
from opadapt.errors import LostDevice
from opadapt.experiment import create_run, load_experiment, open_run
from opadapt.measure.device import Device
from opadapt.report.data import Report
from opadapt.report.progress import Silent


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Device], Report]:
    """Begin a run, or go on with it, on a device."""

    def run(path: Path, device: Device) -> Report:
        monkeypatch.setattr("opadapt.steps.context.open_device", lambda *_: device)
        if path.is_dir():
            return adapt(open_run(path), path, Silent())
        experiment, folder = create_run(load_experiment(path))
        return adapt(experiment, folder, Silent())

    return run


def recorded(folder: Path) -> dict[str, dict[str, object]]:
    """What the journal holds, stage by stage, without clocks and conditions, which name the board. Its order is that in
    which work ends, and nothing hangs on it."""

    def without_clocks(values: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in values.items() if key not in ("conditions", "elapsed_s")}

    return {
        stage: {key: json.loads(text, object_hook=without_clocks) for key, text in found}
        for stage, found in rows(folder).items()
    }


@pytest.mark.slow
def test_neither_the_number_of_boards_nor_a_dead_one_changes_what_is_chosen(
    run_on: Callable[[Path, Device], Report], tmp_path: Path
) -> None:
    alone = run_on(write_experiment(tmp_path / "alone"), Moody())
    meeting = threading.Barrier(3)  # so that each of them has work
    boards = Moody(meeting=meeting), Moody(lives=0, meeting=meeting), Moody(meeting=meeting)
    together = run_on(write_experiment(tmp_path / "together", workers=2), fleet(*boards))
    assert choices(together) == choices(alone)
    assert any(r.reason == "killed by SIGILL" for r in alone.refusals)
    assert recorded(tmp_path / "together" / "runs" / "story") == recorded(
        tmp_path / "alone" / "runs" / "story"
    )

    assert boards[0].requests > 1 and boards[1].requests == 1 and boards[2].requests > 0
    assert (
        threading.get_ident() not in boards[2].threads_seen
    )  # the first board alone has the single requests
    assert not alone.boards
    assert [(b.host, b.dropped is not None) for b in together.boards] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]
    assert all(b.relative == pytest.approx(1.0) for b in together.boards if b.requests)
    assert sum("board b is gone" in text for text in together.warnings) == 1
    assert together.device.conditions["board"] == "a"


@pytest.mark.slow
def test_a_run_that_lost_all_boards_goes_on_where_it_was(
    run_on: Callable[[Path, Device], Report], tmp_path: Path
) -> None:
    path = write_experiment(tmp_path / "lost")
    with pytest.raises(LostDevice, match="every board of the fleet is gone"):
        run_on(path, fleet(Moody(3, crashes=False), Moody(1, crashes=False)))
    folder = tmp_path / "lost" / "runs" / "story"
    before = rows(folder)
    assert before["latency"]
    again = run_on(folder, fleet(Moody(crashes=False), Moody(crashes=False)))
    after = rows(folder)
    assert all(after[stage][: len(found)] == found for stage, found in before.items())
    whole = run_on(write_experiment(tmp_path / "whole"), Moody(crashes=False))
    assert choices(again) == choices(whole)

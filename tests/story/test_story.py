"""The whole story on the null device: real training and selection, made-up but deterministic latencies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fleets import begun_again, choices
from tiny import SIZE, write_experiment, write_model

from opadapt.adapt import adapt
from opadapt.errors import RunError
from opadapt.experiment import create_run, load_experiment, open_run
from opadapt.journal import Journal
from opadapt.report.data import Report, read_json
from opadapt.report.progress import Silent


def run(path: Path) -> tuple[Report, Path]:
    experiment, folder = create_run(load_experiment(path))
    return adapt(experiment, folder, Silent()), folder


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    return run(write_experiment(tmp_path_factory.mktemp("story")))


def test_ends_faster_and_within_tolerance(story: tuple[Report, Path]) -> None:
    report, _ = story
    assert report.verdict.adapted and report.verdict.target_reached and report.verdict.bound is None
    assert report.latency.is_gain and report.latency.speedup.value >= 1.3
    assert report.accuracy is not None and report.accuracy.test is not None
    assert report.accuracy.validation.difference.value >= -40.0
    assert report.replacements and all(r.latency_after_s < r.latency_before_s for r in report.replacements)
    assert {a.accepted for a in report.attempts[-1:]} == {True}


def test_exported_file_stands_alone(story: tuple[Report, Path]) -> None:
    """Checked by onnx, run by plain ONNX Runtime in a process that cannot import opadapt."""
    _, folder = story
    path = folder / "adapted.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    assert onnx.load(path).opset_import[0].version == 17 and onnx.load(path).ir_version == 8
    script = (
        "import sys; sys.modules['opadapt'] = None\n"
        "import numpy as np, onnxruntime as ort\n"
        f"s = ort.InferenceSession({str(path)!r})\n"
        f"for n in (1, 5): print(s.run(None, {{'input': np.ones((n, 1, {SIZE}, {SIZE}), np.float32)}})[0].shape)\n"
    )
    found = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["(1, 4)", "(5, 4)"]


def test_run_folder_holds_what_it_promises(story: tuple[Report, Path]) -> None:
    report, folder = story
    names = {p.name for p in folder.iterdir()}
    assert {
        "experiment.yaml",
        "journal.sqlite",
        "weights",
        "original.onnx",
        "adapted.onnx",
        "report.json",
        "report.html",
    } <= names
    assert "cache" not in names
    assert read_json(folder / "report.json") == report
    rows = [row for _, row in Journal(folder).results("candidate")]
    assert rows and all("program" in row and "origin" in row for row in rows)


def test_same_seed_same_choices(story: tuple[Report, Path], tmp_path: Path) -> None:
    again, _ = run(write_experiment(tmp_path / "again", workers=2))
    assert choices(again) == choices(story[0])


def test_resuming_a_finished_run_pays_for_nothing(story: tuple[Report, Path]) -> None:
    report, folder = story
    before = Journal(folder).counts()
    again = adapt(open_run(folder), folder, Silent())
    assert choices(again) == choices(report)
    assert {k: v[:2] for k, v in Journal(folder).counts().items()} == {k: v[:2] for k, v in before.items()}


@pytest.mark.slow
def test_killed_five_times_and_resumed(story: tuple[Report, Path], tmp_path: Path) -> None:
    """kill -9 at random moments loses the work in flight and nothing else: the same choices in the end, and no
    finished trial was begun again."""
    experiment, folder = create_run(load_experiment(write_experiment(tmp_path / "killed")))
    script = (
        "import sys; from pathlib import Path\n"
        "from opadapt.adapt import adapt; from opadapt.experiment import open_run\n"
        "from opadapt.report.progress import Silent\n"
        "if __name__ == '__main__':\n"
        "    f = Path(sys.argv[1]); adapt(open_run(f), f, Silent())\n"
    )
    program = tmp_path / "go_on.py"
    program.write_text(script)
    moments, kills, finished_before = random.Random(7), 0, 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, str(program), str(folder)], start_new_session=True)
        wanted = finished_before + moments.randint(1, 12)
        while process.poll() is None and kills < 5:
            counts = Journal(folder).counts() if (folder / "journal.sqlite").exists() else {}
            if sum(n for n, _, _ in counts.values()) >= wanted:
                time.sleep(moments.uniform(0, 0.3))
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.05)
        process.wait()
        finished = {k: v[0] for k, v in Journal(folder).counts().items()}
        finished_before = sum(finished.values())
        if process.returncode == 0:
            break
    assert kills == 5 and process.returncode == 0
    report = read_json(folder / "report.json")
    assert report.verdict.adapted
    assert choices(report) == choices(story[0])
    assert begun_again(folder) == 0
    # in flight at a kill: at most the four tasks handed to the worker, and two requests of four to the device
    begun = sum(b for _, b, _ in Journal(folder).counts().values())
    assert begun - finished_before <= 5 * 12
    del experiment


def test_two_processes_cannot_share_a_run(story: tuple[Report, Path]) -> None:
    from filelock import FileLock

    _, folder = story
    with FileLock(folder / "run.lock"), pytest.raises(RunError, match="in use"):
        adapt(open_run(folder), folder, Silent())


def test_a_changed_experiment_does_not_reuse_old_results(story: tuple[Report, Path]) -> None:
    _, folder = story
    changed = open_run(folder).model_copy(update={"seed": 1})
    with pytest.raises(RunError, match="not the one"):
        adapt(changed, folder, Silent())


def test_refused_by_tolerance_backs_off_and_says_so(tmp_path: Path) -> None:
    report, folder = run(write_experiment(tmp_path, target="2.5x", points=0.0))
    assert len(report.attempts) >= 2
    aims = [a.aim_speedup for a in report.attempts]
    assert aims == sorted(aims, reverse=True) and len(set(aims)) == len(aims)
    assert not report.verdict.adapted and report.verdict.target_reached is False
    assert report.verdict.bound is not None and report.verdict.bound.startswith("tolerance: at ")
    x = np.ones((1, 1, SIZE, SIZE), np.float32)
    outputs = [
        ort.InferenceSession(str(folder / name)).run(None, {"input": x})[0]
        for name in ("original.onnx", "adapted.onnx")
    ]
    np.testing.assert_array_equal(*outputs)


def test_without_a_target_goes_as_far_as_fine_tuning_may_recover(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, target="null", points=20.0)
    path.write_text(path.read_text().replace("search:", "search:\n  points: 1"))
    report, folder = run(path)
    assert report.verdict.target is None and report.verdict.target_reached is None
    screened = [row for _, row in Journal(folder).results("screen")]
    assert screened and report.attempts
    # every step but the last was too far, the first attempt aims where the last one was
    assert all(row["loss"] > 10 * row["allowed"] for row in screened[:-1])
    assert report.verdict.adapted and report.latency.is_gain
    assert report.points == () and not (folder / "front").exists()


def test_without_data_only_exact_replacements(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.onnx")
    path = tmp_path / "exact.yaml"
    path.write_text(f'model: {model}\nruns: {tmp_path / "runs"}\ndevice: "null"\n')
    report, folder = run(path)
    assert report.accuracy is None
    assert any("no data" in w for w in report.warnings)
    x = np.random.default_rng(0).standard_normal((3, 1, SIZE, SIZE)).astype(np.float32)
    original, adapted = (
        ort.InferenceSession(str(folder / name)).run(None, {"input": x})[0]
        for name in ("original.onnx", "adapted.onnx")
    )
    assert np.abs(original - adapted).max() <= 1e-4 * np.abs(original).max()

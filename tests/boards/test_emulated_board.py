"""The emulated aarch64 board: what a user does with a real one, from the check to the adapted model.

Slow and without meaning are its latencies; the files, the numbers and what is left behind are those of a board.
The conformance suite of ``tests/measure`` runs on it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from boards.emulated import SHORTEST, TYPE, home, kill, leftovers, on_board, revive, taken
from story.tiny import SIZE, rewrite_for, write_experiment, write_model
from typer.testing import CliRunner

from opadapt.cli import app
from opadapt.errors import LostDevice
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.opening import open_device
from opadapt.measure.profile import BETWEEN
from opadapt.model.load import load
from opadapt.model.save import at_batch
from opadapt.report.data import read_json
from opadapt.resources import shipped

pytestmark = pytest.mark.slow

TIMING = "{blocks: 6, min_block_s: 0.001, min_runs: 2, warmup_s: 0.0, profile_s: 0.001}"


@pytest.fixture
def board() -> Iterator[str]:
    """The alias of a board that no other test uses meanwhile."""
    with taken() as (alias,):
        yield alias


def opadapt(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def images() -> dict[str, np.ndarray[Any, Any]]:
    """Three for the tiny model."""
    return {"input": np.random.default_rng(0).standard_normal((3, 1, SIZE, SIZE)).astype(np.float32)}


def same(model: bytes, device: AgentDevice, feeds: dict[str, np.ndarray[Any, Any]]) -> None:
    """The board's outputs are this machine's within 1e-4, relative to the largest of them."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    found = device.run(model, feeds)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and np.abs(value).max() > 1e-3
        assert np.abs(found[name] - value).max() <= 1e-4 * np.abs(value).max(), name


def findings(path: Path) -> dict[str, dict[str, Any]]:
    (found,) = json.loads(path.read_text())["boards"]
    return {finding["item"]: finding for finding in found["findings"]}


def test_it_is_another_machine_than_this(board: str) -> None:
    with open_device(f"{TYPE}@{board}") as device:
        hello = device.hello()
    assert hello["machine"] == on_board(board, "uname", "-m").strip() == "aarch64"
    assert "QEMU" in hello["cpu"]
    assert leftovers(board) == []


@pytest.mark.parametrize("name", ["quickstart", "tiny"])
def test_outputs_are_the_hosts(board: str, tmp_path: Path, name: str) -> None:
    quickstart = shipped("configs", "quickstart/fashion_cnn.onnx")
    model = at_batch(load(quickstart if name == "quickstart" else write_model(tmp_path / "tiny.onnx")), 1)
    (x,) = model.graph.input
    shape = [dim.dim_value for dim in x.type.tensor_type.shape.dim]
    feeds = {x.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    with open_device(f"{TYPE}@{board}") as device:
        same(model.SerializeToString(), device, feeds)


def test_check(board: str, tmp_path: Path) -> None:
    result = opadapt("devices", "check", f"{TYPE}@{board}", "--json", tmp_path / "out.json")
    found = findings(tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert all(
        found[item]["verdict"] == "ok" for item in ("host key", "architecture", "python", "onnxruntime")
    )
    assert found["architecture"]["found"].startswith("aarch64")
    assert found["python"]["found"].startswith(on_board(board, "python3", "--version").split()[1])
    assert "between two sessions" in found["noise floor"]["found"], found["noise floor"]
    assert leftovers(board) == []


def test_profile(board: str, tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "tiny.onnx"), tmp_path / "out.json"
    result = opadapt("profile", model, "--device", f"{TYPE}@{board}", "--json", out)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["conditions"]["machine"] == "aarch64"
    assert {row["kernel"] for row in found["unattributed"]} <= {BETWEEN}
    assert {node["name"] for node in found["nodes"]} == set(load(model).nodes)
    assert leftovers(board) == []


def test_run(board: str, tmp_path: Path) -> None:
    """Measured on the board, trained here; what comes out computes there what it computes here."""
    path = write_experiment(tmp_path)
    rewrite_for(f"{TYPE}@{board}", TIMING, path)
    result = opadapt("run", "-c", path)
    assert result.exit_code == 0, result.output
    report = read_json(tmp_path / "runs" / "story" / "report.json")
    assert report.device.conditions["machine"] == "aarch64"
    assert report.front, "no candidate was measured"
    with open_device(f"{TYPE}@{board}") as device:
        for name in ("original.onnx", "adapted.onnx"):
            same((tmp_path / "runs" / "story" / name).read_bytes(), device, images())
    assert leftovers(board) == []


def test_replacements_compute_there_what_they_compute_here(tmp_path: Path) -> None:
    """Of a run on the null device: an emulator's latencies need not show a gain that is worth a replacement."""
    home()
    result = opadapt("run", "-c", write_experiment(tmp_path))
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "story"
    assert read_json(folder / "report.json").replacements
    with taken() as (alias,), open_device(f"{TYPE}@{alias}") as device:
        same((folder / "adapted.onnx").read_bytes(), device, images())


def test_a_board_that_dies_is_dropped_and_its_work_goes_to_the_other(tmp_path: Path) -> None:
    model = at_batch(load(write_model(tmp_path / "tiny.onnx")), 1).SerializeToString()
    with taken(2) as (first, second), open_device(f"{TYPE}@{first},{second}") as fleet:
        try:
            assert fleet.parallel == 2
            kill(first)
            hosts = {fleet.time([model], SHORTEST).conditions["board"] for _ in range(3)}
            assert fleet.parallel == 1 and hosts == {second}
            kill(second)
            with pytest.raises(LostDevice):
                fleet.time([model], SHORTEST)
        finally:
            revive(first)
            revive(second)


def test_install_on_a_board_that_has_nothing(tmp_path: Path) -> None:
    with taken(kind="bare") as (alias,):
        before = opadapt("devices", "check", f"{TYPE}@{alias}", "--json", tmp_path / "before.json")
        assert before.exit_code == 2
        assert findings(tmp_path / "before.json")["onnxruntime"]["verdict"] == "bad"
        after = opadapt("devices", "check", f"{TYPE}@{alias}", "--install", "--json", tmp_path / "after.json")
        assert after.exit_code == 0, after.output
        found = findings(tmp_path / "after.json")
        assert "set up by --install" in found["python"]["found"]
        assert found["onnxruntime"]["verdict"] == "ok"
        assert "between two sessions" in found["noise floor"]["found"], found["noise floor"]
        assert leftovers(alias) == []
        on_board(alias, "rm", "-rf", ".cache/opadapt")

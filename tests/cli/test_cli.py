"""The command line: every refusal is one message on stderr and exit code 2; interruption says how to go on."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from opadapt import __version__
from opadapt.cli import app
from opadapt.errors import DeviceError
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import BlockTimes
from opadapt.report.data import read_json

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "report" / "sample_report.json"


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: str | Path) -> str:
    """stderr of a call that must be refused without a traceback and without output."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of two nodes in the working directory; a name in it looks like markup."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"], name="[red]conv[/blue]", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["t"], ["y"], name="<script>"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [weight],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of ``adapt``."""

    def put(function: Callable[..., Any]) -> None:
        module = ModuleType("opadapt.adapt")
        module.adapt = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "opadapt.adapt", module)

    return put


def test_help_and_version_are_quick_and_import_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from opadapt.cli import app;"
        "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    assert call("--version").stdout == f"opadapt {__version__}\n"
    assert "Usage" in call().output


def test_run_makes_the_folder_and_shows_the_report(model: Path, story: Any) -> None:
    seen = []

    def adapt(experiment: Any, folder: Path, progress: Any) -> Any:
        seen.append((experiment, folder))
        progress.stage("profile", 2)
        progress.note("kept [/x]")
        return read_json(SAMPLE)

    story(adapt)
    result = call("run", model, "--device", "null", "--target", "2x", "--name", "one", "--shape", "x=Nx3x8x8")
    assert result.exit_code == 0, result.output
    experiment, folder = seen[0]
    assert folder == model.parent / "runs" / "one"
    assert (folder / "experiment.yaml").is_file() and (folder / "report.html").is_file()
    assert experiment.shapes == {"x": ("N", 3, 8, 8)} and str(experiment.target) == "2x"
    assert "2.13x as fast" in result.stdout
    assert "profile (2 steps)" in result.stderr and "kept [/x]" in result.stderr

    again = call("resume", "runs/one")
    assert again.exit_code == 0 and seen[1] == seen[0]


def test_a_run_goes_on_where_the_board_is_now(model: Path, story: Any) -> None:
    seen: list[Any] = []

    def adapt(experiment: Any, *_: Any) -> Any:
        seen.append((experiment.device, experiment.host))
        return read_json(SAMPLE)

    story(adapt)
    assert call("run", model, "--device", "rpi4@shelf", "--name", "one").exit_code == 0
    for arguments in ((), ("--host", "pi@10.0.0.9"), ("--host", "a,b")):
        assert call("resume", "runs/one", *arguments).exit_code == 0
    assert seen == [("rpi4@shelf", None)] * 2 + [("rpi4", "pi@10.0.0.9"), ("rpi4", "a,b")]
    assert "not a host" in refused("resume", "runs/one", "--host", "two words")
    assert call("run", model, "--device", "null", "--name", "two").exit_code == 0
    assert "null is on this machine" in refused("resume", "runs/two", "--host", "pi@10.0.0.9")


def test_interrupted_run_says_how_to_go_on(model: Path, story: Any) -> None:
    def adapt(*_: Any) -> Any:
        raise KeyboardInterrupt

    story(adapt)
    result = call("run", model, "--device", "null", "--name", "one")
    assert result.exit_code == 130
    assert f"interrupted; go on with: opadapt resume {model.parent / 'runs' / 'one'}" in result.stderr


def test_refused_run_tells_the_reason_and_its_folder(model: Path, story: Any) -> None:
    def adapt(_: Any, folder: Path, *__: Any) -> Any:
        (folder / "journal.sqlite").touch()  # something was paid for already
        raise DeviceError("board is gone", expected="an answer", found="silence \x1b[31m", do="plug it in")

    story(adapt)
    message = refused("run", model, "--device", "null", "--name", "one")
    assert (
        "error: board is gone\n  expected: an answer\n  found: silence \\x1b[31m\n  do: plug it in" in message
    )
    assert "opadapt resume" in message


def test_a_bug_shows_its_traceback(model: Path, story: Any) -> None:
    def adapt(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    story(adapt)
    result = call("run", model, "--device", "null")
    assert result.exit_code == 1 and isinstance(result.exception, ZeroDivisionError)


MISTAKES = [
    (["run", "absent.onnx"], ["absent.onnx"]),
    (["run", "net.onnx", "--data", "absent.npz"], ["no data at", "absent.npz"]),
    (["run", "net.onnx", "--device", "toaster"], ["no device 'toaster'", "local"]),
    (["run", "net.onnx", "--device", "rpi4@a,a"], ["--device: a host is named twice"]),
    (["run", "net.onnx", "--device", "rpi4@a", "--host", "b"], ["--host: the host is given twice"]),
    (["run", "net.onnx", "--device", "local@a"], ["local is on this machine"]),
    (["run", "net.onnx", "--host", "pi@10.0.0.7"], ["local is on this machine", "pi@10.0.0.7"]),
    (["run", "net.onnx", "--device", "rpi4", "--host", "pi:hunter2@a"], ["--host: a host with a password"]),
    (["profile", "net.onnx", "--device", "null", "--host", "a"], ["null is on this machine"]),
    (["run", "net.onnx", "--shape", "8x8"], ["--shape", "INPUT=SIZES", "found: 8x8"]),
    (["run", "net.onnx", "--shape", "x=8x"], ["--shape", "1x3x32x32", "8x"]),
    (["run", "net.onnx", "--shape", "[/x]"], ["found: [/x]"]),
    (["run", "net.onnx", "--shape", "z=1x3x8x8"], ["'z'", "x"]),
    (["run", "net.onnx", "--target", "fast"], ["--target", "2.5x", "fast"]),
    (["run", "net.onnx", "--tolerance", "-1"], ["--tolerance", "tolerance.points", "-1"]),
    (["run", "net.onnx", "--seed", "-1"], ["--seed"]),
    (["run", "net.onnx", "--seed", "x"], ["--seed", "integer"]),
    (["run", "net.onnx", "--minutes", "0"], ["--minutes", "budget_minutes"]),
    (["run", "net.onnx", "--opset", "3"], ["--opset"]),
    (["run", "net.onnx", "--name", "a/b"], ["--name"]),
    (["run", "net.onnx", "--colour"], ["--colour"]),
    (["run"], ["no model", "--config"]),
    (["run", "-c", "absent.yaml"], ["absent.yaml", "cannot be read"]),
    (["run", "-c", "wrong.yaml"], ["wrong.yaml:2:1: unknown key 'tolerence'", "did you mean 'tolerance'?"]),
    (["config", "show", "-c", "wrong.yaml"], ["wrong.yaml:2:1"]),
    (["run", "cut.onnx"], ["cut.onnx"]),
    (["profile", "cut.onnx"], ["cut.onnx"]),
    (["profile", "absent.onnx"], ["absent.onnx"]),
    (["profile", "net.onnx", "--device", "null", "--top", "0"], ["--top"]),
    (["profile", "net.onnx", "--device", "null", "--weight", "1.5"], ["--weight"]),
    (["profile", "net.onnx", "--device", "null", "--shape", "x=a"], ["--shape"]),
    (["resume", "absent"], ["absent is no run folder", "experiment.yaml"]),
    (["report", "absent"], ["report.json", "the report of a finished run"]),
    (["nonsense"], ["nonsense"]),
]


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes(model: Path, arguments: list[str], parts: list[str]) -> None:
    (model.parent / "cut.onnx").write_bytes(model.read_bytes()[:-40])
    (model.parent / "wrong.yaml").write_text("model: net.onnx\ntolerence: {points: 1}\n")
    message = refused(*arguments)
    for part in parts:
        assert part in message
    assert not (model.parent / "runs").exists()


def test_an_unwritable_json_is_refused(model: Path) -> None:
    result = call("profile", model, "--device", "null", "--json", "absent/p.json")
    assert result.exit_code == 2 and "cannot write absent/p.json" in result.stderr


def test_profile_prints_the_table_and_writes_json(model: Path) -> None:
    result = call("profile", model, "--device", "null", "--json", "p.json")
    assert result.exit_code == 0, result.output
    assert "[red]conv[/blue]" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    values = json.loads(Path("p.json").read_text())
    assert [n["op_type"] for n in values["nodes"]] == ["Conv", "Relu"]
    assert values["nodes"][0]["parameters"] == 108 and values["nodes"][0]["macs"] == 108 * 64
    assert sum(n["latency_s"] for n in values["nodes"]) == pytest.approx(
        values["covered"] * values["latency_s"]["value"]
    )


def test_profile_prints_as_many_as_asked_for(model: Path) -> None:
    assert "worst 1 of 2 nodes" in call("profile", model, "--device", "null", "--top", "1").stdout


def test_profile_tells_how_much_of_the_wall_time_it_knows(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "of the wall time is attributed to nodes"
    assert f"100.0 % {told}" in call("profile", model, "--device", "null").stdout
    plain = NullDevice.time

    def slower(*arguments: Any) -> BlockTimes:
        times = plain(*arguments)
        return dataclasses.replace(times, latency_s=4 * times.latency_s)

    monkeypatch.setattr(NullDevice, "time", slower)
    shown = call("profile", model, "--device", "null").stdout
    assert f"25.0 % {told}" in shown and "not attributed: between kernels" in shown


@pytest.mark.parametrize(("flags", "share"), [((), "latency_share"), (("--weight", "0"), "parameter_share")])
def test_profile_ranks_by_the_weight(model: Path, flags: tuple[str, ...], share: str) -> None:
    result = call("profile", model, "--device", "null", "--json", "p.json", *flags)
    assert result.exit_code == 0, result.output
    worst, *_ = json.loads(Path("p.json").read_text())["nodes"]
    assert worst["score"] == worst[share] and worst["latency_share"] < worst["parameter_share"] == 1


def test_report_is_rendered_again(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "report.json")
    result = call("report", tmp_path)
    assert result.exit_code == 0
    assert "2.13x as fast" in result.stdout
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_models_of_a_run_are_shown(tmp_path: Path) -> None:
    values = json.loads(SAMPLE.read_text())
    names = ("adapted.onnx", "front/1.53x.onnx")
    values["points"] = [
        {
            "path": name,
            "latency_s": values["latency"]["adapted_s"],
            "speedup": values["latency"]["speedup"],
            "validation": values["accuracy"]["validation"],
            "test": values["accuracy"]["test"],
            "replacements": 3,
        }
        for name in names
    ]
    (tmp_path / "report.json").write_text(json.dumps(values))
    shown = call("report", tmp_path)
    assert shown.exit_code == 0 and "models of this run, fastest first" in shown.stdout
    assert all(name in shown.stdout for name in names)


def test_flags_replace_what_they_exclude(model: Path) -> None:
    Path("a.yaml").write_text("model: m\ndata: {x: a.npy, y: b.npy}\ntolerance: {relative_percent: 2}\n")
    shown = call("config", "show", "-c", "a.yaml", "--data", "d.npz", "--tolerance", "0.5", "net.onnx")
    assert shown.exit_code == 0, shown.output
    Path("b.yaml").write_text(shown.stdout)
    assert call("config", "show", "-c", "b.yaml").stdout == shown.stdout
    for line in (f"model: {model}", f"  path: {model.parent}/d.npz", "  x: null", "  points: 0.5"):
        assert line in shown.stdout.splitlines()
    assert "  relative_percent: null" in shown.stdout


def test_a_device_takes_the_host_of_the_files_device_with_it(model: Path) -> None:
    """The host of a file is where its device is, not where another one is."""
    Path("a.yaml").write_text(f"model: {model}\ndevice: rpi4\nhost: shelf\n")

    def shown(*flags: str) -> set[str]:
        return set(call("config", "show", "-c", "a.yaml", *flags).stdout.splitlines())

    assert {"device: rpi4", "host: shelf"} <= shown()
    assert {"device: rpi4", "host: pi@b"} <= shown("--host", "pi@b")
    assert {"device: rpi5", "host: null"} <= shown("--device", "rpi5")
    assert {"device: rpi5@c", "host: null"} <= shown("--device", "rpi5@c")
    assert {"device: rpi5", "host: d"} <= shown("--device", "rpi5", "--host", "d")


def test_schema_is_json() -> None:
    assert json.loads(call("config", "schema").stdout)["title"] == "opadapt experiment"


def test_the_script_prints_refusals_without_traceback(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("opadapt")
    done = subprocess.run(
        [script, "report", tmp_path / "[bold]x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: cannot read") and "[bold]x" in done.stderr

"""The experiment: files and flags composed, paths resolved, written out and read back, run folders made."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from opadapt.errors import ConfigError, RunError
from opadapt.experiment import (
    Experiment,
    Target,
    create_run,
    dump,
    load_experiment,
    open_run,
    parse_shape,
    schema,
)
from opadapt.resources import shipped
from opadapt.yamlfile import Override, parse_yaml

FULL = """\
model: nets/a.onnx
name: first
device: boards/mine.yaml
shapes: {x: 1x3x8x8, y: [N, 4]}
target: 12ms
budget_minutes: 1.5
data:
  path: images
  preprocess: {scale: 0.5}
search: {space: spaces/my.yaml, population: 20}
tolerance: {points: 0.5}
metric: {name: 'score.py:mine'}
timing: {threads: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment in ``configs/``; the working directory is beside it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yaml").write_text(FULL)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_paths_of_a_file_start_at_the_file(folder: Path) -> None:
    experiment = load_experiment(Path("../configs/a.yaml"))
    assert experiment.model == folder / "configs/nets/a.onnx"
    assert experiment.device == str(folder / "configs/boards/mine.yaml")
    assert experiment.search.space == str(folder / "configs/spaces/my.yaml")
    assert experiment.data is not None and experiment.data.path == str(folder / "configs/images")
    assert experiment.metric.name == f"{folder}/configs/score.py:mine"
    assert experiment.runs == folder / "here/runs"
    assert experiment.shapes == {"x": (1, 3, 8, 8), "y": ("N", 4)}


def test_paths_of_flags_start_at_the_working_directory(folder: Path) -> None:
    flags = [Override(("model",), "b.onnx", "MODEL"), Override(("data", "path"), "../d.npz", "--data")]
    experiment = load_experiment(folder / "configs/a.yaml", flags)
    assert experiment.model == folder / "here/b.onnx"
    assert experiment.data is not None and experiment.data.path == f"{folder}/here/../d.npz"
    assert experiment.data.preprocess.scale == 0.5


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("package.module:load", "package.module:load"),
        ("load.py:images", "{folder}/here/load.py:images"),
        ("/absolute", "/absolute"),
    ],
)
def test_entry_points_keep_their_modules(folder: Path, given: str, resolved: str) -> None:
    flags = [Override(("model",), "b.onnx", "MODEL"), Override(("data", "path"), given, "--data")]
    data = load_experiment(None, flags).data
    assert data is not None and data.path == resolved.format(folder=folder)


def test_what_is_written_out_is_read_back_equal(folder: Path) -> None:
    experiment = load_experiment(folder / "configs/a.yaml")
    (folder / "again.yaml").write_text(dump(experiment))
    assert load_experiment(folder / "again.yaml") == experiment
    assert dump(load_experiment(folder / "again.yaml")) == dump(experiment)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: m\ntarget: fast", ["a.yaml:2:9:", "a speedup such as 2.5x", '"fast"']),
        ("model: m\ntarget: 0.5x", ["a.yaml:2:9:", "more than 1x"]),
        ("model: m\ntarget: 0ms", ["a.yaml:2:9:", "more than 0"]),
        ("model: m\nshapes: {x: 1x}", ["a.yaml:2:13:", "1x3x32x32"]),
        ("model: m\nshapes: {x: [1, 0]}", ["a.yaml:2:13:", "whole numbers above 0"]),
        ("model: m\nname: " + 101 * "x", ["a.yaml:2:7:", "'name'", "at most 100 characters"]),
        ("model: m\nname: ../x", ["a.yaml:2:7:", "name: ", "letters", '"../x"']),
        ("model: m\ndata: {}", ["a.yaml:2:7:", "either path or x"]),
        ("model: m\nserach: {}", ["a.yaml:2:1: unknown key 'serach'", "did you mean 'search'?"]),
        ("model: m\nsearch: {populaton: 3}", ["a.yaml:2:10:", "did you mean 'population'?"]),
        ("model: m\ntiming: {threads: 0}", ["a.yaml:2:19:", "greater than or equal to 1"]),
        ("device: local", ["a.yaml:1:1: missing key 'model'"]),
        ("model: m\nbudget_minutes: .nan", ["a.yaml:2:17:"]),
        ("model: m\ndevice: rpi4@a b", ["a.yaml:2:9: not a host", "[user@]host[:port]", "a b"]),
        ("model: m\ndevice: '@a'", ["a.yaml:2:9: no device type"]),
        ("model: m\ndevice: rpi4\nhost: pi@", ["a.yaml:3:7: not a host"]),
        ("model: m\nhost: b\ndevice: rpi4@a", ["a.yaml:2:7: the host is given twice", "leave out one"]),
        ("model: m\nhost: 7", ["a.yaml:2:7:", "'host'"]),
    ],
)
def test_mistakes_have_a_place(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "a.yaml")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("rpi4", "rpi4"),
        ("rpi4@pi@a,b", "rpi4@pi@a,b"),
        ("boards/mine.yaml@pi@a,b", "{folder}/configs/boards/mine.yaml@pi@a,b"),
        ("/boards/mine.yml@a", "/boards/mine.yml@a"),
    ],
)
def test_a_device_file_is_found_from_the_experiment_and_keeps_its_hosts(
    folder: Path, given: str, resolved: str
) -> None:
    (folder / "configs" / "b.yaml").write_text(f"model: m\ndevice: {given}\n")
    experiment = load_experiment(folder / "configs" / "b.yaml")
    assert experiment.device == resolved.format(folder=folder)
    (folder / "again.yaml").write_text(dump(experiment))
    assert load_experiment(folder / "again.yaml") == experiment


@pytest.mark.parametrize("device", ["rpi4", "rpi4@pi@10.0.0.7,b", "/boards/rpi4.yaml@a"])
def test_a_run_is_named_after_the_type_of_its_device(folder: Path, device: str) -> None:
    flags = [Override(("model",), "net.onnx", "MODEL"), Override(("device",), device, "--device")]
    _, made = create_run(load_experiment(None, flags))
    assert made == folder / "here" / "runs" / "net-rpi4"


@pytest.mark.parametrize(
    ("text", "speedup"), [("2.5x", 2.5), ("10ms", 2.0), ("5000us", 4.0), ("0.01 s", 2.0), ("2 x", 2.0)]
)
def test_targets(text: str, speedup: float) -> None:
    target = Target.parse(text)
    assert target.as_speedup(original_s=0.02) == pytest.approx(speedup)
    assert str(target) == text


def test_shapes_of_flags() -> None:
    assert parse_shape("1x3x8x8") == parse_shape("1,3,8,8") == (1, 3, 8, 8)
    assert parse_shape("Nx4") == ("N", 4)
    for wrong in ("1x", "x", "-1x3", "1x3x", "ax3", "0x3", "1.5"):
        with pytest.raises(ConfigError, match="--shape"):
            parse_shape(wrong)


def test_schema_is_valid_and_takes_what_is_written(folder: Path) -> None:
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    validator = jsonschema.Draft202012Validator(found)
    for text in (FULL, dump(load_experiment(folder / "configs/a.yaml"))):
        validator.validate(parse_yaml(text, "a").values)
    for name in ("cifar10_resnet20.yaml", "cifar10_resnet56.yaml"):
        validator.validate(parse_yaml(shipped("configs", name).read_text(), name).values)
    assert not validator.is_valid({"model": "m", "serach": {}})
    assert not validator.is_valid({"model": "m", "target": "fast"})
    assert not validator.is_valid({"model": "m", "name": "../x"})
    assert not validator.is_valid({"model": "m", "name": "x" * 101})
    undescribed = [key for key, value in found["properties"].items() if "description" not in value]
    assert not undescribed


@pytest.mark.parametrize("depth", [20, 56])
def test_shipped_experiments_load(depth: int) -> None:
    experiment = load_experiment(shipped("configs", f"cifar10_resnet{depth}.yaml"))
    assert experiment.tolerance.points == 1.0 and experiment.metric.name == "top1"
    data = experiment.data
    assert data is not None and data.augment.crop_padding_pixels == 4 and data.augment.flip_horizontal
    assert data.preprocess.std == (0.229, 0.224, 0.225) and data.preprocess.scale * 255 == pytest.approx(1)


def _named(tmp_path: Path, name: str | None) -> Experiment:
    return Experiment(model=tmp_path / "net v2.onnx", name=name, runs=tmp_path / "runs")


def test_run_folders(tmp_path: Path) -> None:
    experiment, folder = create_run(_named(tmp_path, None))
    assert folder == tmp_path / "runs" / "net_v2-local" and experiment.name == "net_v2-local"
    assert open_run(folder) == experiment
    again, second = create_run(_named(tmp_path, None))
    assert second.name == again.name == "net_v2-local-2"
    create_run(_named(tmp_path, "mine"))
    with pytest.raises(RunError) as caught:
        create_run(_named(tmp_path, "mine"))
    assert f"opadapt resume {tmp_path / 'runs' / 'mine'}" in str(caught.value)


def test_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError):
        create_run(_named(tmp_path, None))
    for place, found in ((tmp_path, "a folder without"), (tmp_path / "no", "nothing")):
        with pytest.raises(RunError) as caught:
            open_run(place)
        assert caught.value.found == found

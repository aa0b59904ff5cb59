"""Looking shipped files up by name in a checkout, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from opadapt.errors import ConfigError
from opadapt.experiment import load_experiment
from opadapt.measure.facts import load_facts
from opadapt.measure.opening import find_device
from opadapt.resources import KINDS, shipped, shipped_names
from opadapt.search.space import load_space

ROOT = Path(__file__).resolve().parents[2]


def test_names_are_sorted_and_each_one_is_found() -> None:
    for kind in KINDS:
        names = shipped_names(kind)
        assert names == sorted(names)
        assert all(shipped(kind, name) == ROOT / kind / name for name in names)


def _named(kind: str) -> list[str]:
    """The shipped YAML files that a user can name; rules are parts of a space."""
    names = [n for n in shipped_names(kind) if n.endswith(".yaml") and not n.startswith("rules/")]
    assert names
    return names


@pytest.mark.parametrize("name", _named("configs"))
def test_a_shipped_experiment_is_valid(name: str) -> None:
    experiment = load_experiment(shipped("configs", name))
    assert experiment.data is not None and experiment.model.suffix == ".onnx"
    find_device(experiment.device)
    assert load_space(experiment.search.space).rules


@pytest.mark.parametrize("name", _named("search_space"))
def test_a_shipped_space_is_valid(name: str) -> None:
    space = load_space(name.removesuffix(".yaml"))
    assert space.rules and space.seeds and space.instructions
    assert space.exact().rules


@pytest.mark.parametrize("name", _named("devices"))
def test_a_shipped_device_is_valid(name: str) -> None:
    assert load_facts(str(shipped("devices", name))).name == name.removesuffix(".yaml")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../pyproject.toml",
        "quickstart/../../pyproject.toml",
        "quickstart//README.md",
        "/etc/passwd",
        "quickstart\\README.md",
        "C:/README.md",
        "quickstart/README.md\0",
    ],
)
def test_a_name_that_is_no_relative_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a shipped file"):
        shipped("configs", name)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as refusal:
        shipped("configs", "quickstart/absent.yaml")
    assert "quickstart/fashion_cnn.onnx" in str(refusal.value.expected)


def test_a_folder_is_no_file() -> None:
    with pytest.raises(ConfigError, match="no shipped file"):
        shipped("configs", "quickstart")


@pytest.mark.parametrize("kind", ["", "..", "tests", "opadapt"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="no such kind"):
        shipped_names(kind)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pkg" / "_shipped" / "configs").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "pkg" / "_shipped" / "configs" / "link").symlink_to(tmp_path / "secret")
    monkeypatch.setattr("opadapt.resources._PACKAGE", tmp_path / "pkg")
    with pytest.raises(ConfigError, match="no shipped file"):
        shipped("configs", "link")


def test_a_missing_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opadapt.resources._PACKAGE", tmp_path / "pkg")
    with pytest.raises(ConfigError, match="is missing") as refusal:
        shipped_names("devices")
    assert refusal.value.do is not None


@pytest.fixture(scope="module")
def quickstart_data() -> dict[str, np.ndarray]:
    with np.load(shipped("configs", "quickstart/fashion_mnist.npz"), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_quickstart_files_are_small() -> None:
    assert shipped("configs", "quickstart/fashion_cnn.onnx").stat().st_size < 2_500_000
    assert shipped("configs", "quickstart/fashion_mnist.npz").stat().st_size < 5_000_000


def test_quickstart_data_has_three_parts_of_all_classes(quickstart_data: dict[str, np.ndarray]) -> None:
    parts = {"train": 4800, "validation": 2500, "test": 4000}
    assert set(quickstart_data) == {f"{letter}_{part}" for letter in "xy" for part in parts}
    for part, count in parts.items():
        images, labels = quickstart_data[f"x_{part}"], quickstart_data[f"y_{part}"]
        assert images.shape == (count, 28, 28) and images.dtype == np.uint8
        assert labels.shape == (count,) and set(labels.tolist()) == set(range(10))


def test_no_image_is_in_two_parts(quickstart_data: dict[str, np.ndarray]) -> None:
    parts = [{i.tobytes() for i in quickstart_data[f"x_{p}"]} for p in ("train", "validation", "test")]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_quickstart_model_is_accurate_on_the_test_images(quickstart_data: dict[str, np.ndarray]) -> None:
    path = shipped("configs", "quickstart/fashion_cnn.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["input"]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        1,
        28,
        28,
    ]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = (quickstart_data["x_test"][:, None].astype(np.float32) / 255 - 0.2860) / 0.3530
    answers = [
        session.run(["logits"], {"input": images[i : i + 256].astype(np.float32)})[0].argmax(1)
        for i in range(0, len(images), 256)
    ]
    assert (np.concatenate(answers) == quickstart_data["y_test"]).mean() >= 0.91

"""Without data: what is exact is found and exported, and what no program can stand for passes through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import write_data

from opadapt.adapt import adapt
from opadapt.experiment import create_run, load_experiment
from opadapt.report.data import Report
from opadapt.report.progress import Silent
from opadapt.steps import exact

SIZE = 12


class Layers:
    """A chain of layers on a [N,1,12,12] input, with weights from a seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last, self.channels = "input", 1

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def add(self, op_type: str, name: str, *weights: str, **attributes: object) -> None:
        self.nodes.append(helper.make_node(op_type, [self.last, *weights], [name], name, **attributes))
        self.last = name

    def conv(self, name: str, channels: int, kernel: int) -> None:
        shape = (channels, self.channels, kernel, kernel)
        value = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        pads = [kernel // 2] * 4
        names = self.weight(f"{name}.w", value), self.weight(f"{name}.b", self.rng.standard_normal(channels))
        self.add("Conv", name, *names, pads=pads)
        self.channels = channels

    def norm(self, name: str) -> None:
        values = {
            "scale": self.rng.uniform(0.5, 2.0, self.channels),
            "shift": self.rng.standard_normal(self.channels),
            "mean": self.rng.standard_normal(self.channels),
            "var": self.rng.uniform(0.5, 2.0, self.channels),
        }
        self.add("BatchNormalization", name, *(self.weight(f"{name}.{k}", v) for k, v in values.items()))

    def transposed(self, name: str, channels: int) -> None:
        """Doubles height and width."""
        value = self.rng.standard_normal((self.channels, channels, 2, 2)) / self.channels
        self.add("ConvTranspose", name, self.weight(f"{name}.w", value), strides=[2, 2])
        self.channels = channels

    def scores(self) -> None:
        self.add("GlobalAveragePool", "pool")
        self.add("Flatten", "flat")
        self.add("MatMul", "scores", self.weight("head.w", self.rng.standard_normal((self.channels, 4))))

    def write(self, path: Path) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "layers",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path


def normalised(layers: Layers) -> None:
    layers.conv("conv", 8, 3)
    layers.norm("norm")
    layers.add("Relu", "relu")
    layers.scores()


def two_linear(layers: Layers) -> None:
    """One pointwise convolution widens, the next narrows, with nothing between: together they are one."""
    layers.conv("stem", 8, 3)
    layers.add("Relu", "relu")
    layers.conv("wide", 32, 1)
    layers.conv("narrow", 16, 1)
    layers.scores()


def two_linear_before_a_chain(layers: Layers) -> None:
    """The second of them begins a chain that takes more of the latency than the two."""
    layers.conv("stem", 8, 3)
    layers.add("Relu", "relu")
    layers.conv("wide", 32, 1)
    layers.conv("narrow", 16, 1)
    layers.add("Relu", "narrow.relu")
    layers.conv("last", 16, 3)
    layers.add("Relu", "last.relu")
    layers.scores()


def two_linear_pairs(layers: Layers) -> None:
    layers.conv("stem", 8, 3)
    layers.add("Relu", "relu")
    for number, (wide, narrow) in enumerate([(32, 16), (48, 8)]):
        layers.conv(f"wide{number}", wide, 1)
        layers.conv(f"narrow{number}", narrow, 1)
        layers.add("Relu", f"relu{number}")
    layers.scores()


def upsampling(layers: Layers) -> None:
    layers.conv("conv", 16, 3)
    layers.norm("norm")
    layers.add("Relu", "relu")
    layers.transposed("up", 8)
    layers.add("Relu", "up.relu")
    layers.conv("last", 8, 3)
    layers.scores()


def run(folder: Path, layers: Callable[[Layers], None], text: str = "") -> tuple[Report, Path]:
    made = Layers()
    layers(made)
    model = made.write(folder / "model.onnx")
    path = folder / "experiment.yaml"
    path.write_text(f'model: {model}\nruns: {folder / "runs"}\ndevice: "null"\n{text}')
    experiment, runs = create_run(load_experiment(path))
    return adapt(experiment, runs, Silent()), runs


def outputs(folder: Path) -> list[np.ndarray]:
    """Of the original and of what was exported, on random images."""
    x = np.random.default_rng(1).standard_normal((5, 1, SIZE, SIZE)).astype(np.float32)
    return [
        ort.InferenceSession(str(folder / name)).run(None, {"input": x})[0]
        for name in ("original.onnx", "adapted.onnx")
    ]


def nodes(folder: Path) -> dict[str, str]:
    return {n.name: n.op_type for n in onnx.load(folder / "adapted.onnx").graph.node}


def test_a_batch_normalisation_is_folded(tmp_path: Path) -> None:
    report, folder = run(tmp_path, normalised)
    assert report.verdict.adapted and "folded" in report.verdict.reason
    assert report.latency.is_gain
    assert "BatchNormalization" not in nodes(folder).values()
    original, adapted = outputs(folder)
    np.testing.assert_allclose(adapted, original, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "replaced", "convolutions"),
    [
        (two_linear, {"wide", "narrow"}, 2),
        (two_linear_before_a_chain, {"wide", "narrow", "narrow.relu"}, 3),
    ],
    ids=["alone", "before a chain"],
)
def test_two_linear_convolutions_become_one(
    tmp_path: Path, layers: Callable[[Layers], None], replaced: set[str], convolutions: int
) -> None:
    report, folder = run(tmp_path, layers)
    assert report.verdict.adapted and report.latency.is_gain
    (replacement,) = report.replacements
    assert set(replacement.nodes) == replaced and "merge_pointwise" in replacement.rule
    assert replacement.latency_after_s < replacement.latency_before_s
    assert list(nodes(folder).values()).count("Conv") == convolutions
    original, adapted = outputs(folder)
    np.testing.assert_allclose(adapted, original, rtol=1e-4, atol=1e-5)


def test_the_order_in_which_it_is_found_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which group is worse is a matter of noise; what later runs take over is known by the model that it belongs to."""
    files, plain = [], exact.all_groups
    for name, step in (("down", 1), ("up", -1)):
        monkeypatch.setattr(exact, "all_groups", lambda *a, step=step, **k: plain(*a, **k)[::step])
        (tmp_path / name).mkdir()
        report, folder = run(tmp_path / name, two_linear_pairs)
        assert len(report.replacements) == 2
        files.append((folder / "adapted.onnx").read_bytes())
    assert files[0] == files[1]


def test_it_says_how_to_allow_more(tmp_path: Path) -> None:
    report, _ = run(tmp_path, normalised)
    (warning,) = [w for w in report.warnings if "no data" in w]
    assert "exact" in warning and "--data" in warning


def passed_through(report: Report, folder: Path) -> None:
    named = {u.node: u for u in report.unexpanded}
    assert named["up"].op_type == "ConvTranspose" and "ConvTranspose" in named["up"].reason
    assert nodes(folder)["up"] == "ConvTranspose"
    assert "conv" not in named and "last" not in named


def test_an_operator_that_no_program_stands_for_passes_through_and_is_named(tmp_path: Path) -> None:
    report, folder = run(tmp_path, upsampling)
    assert report.verdict.adapted  # around it something was done
    passed_through(report, folder)
    original, adapted = outputs(folder)
    np.testing.assert_allclose(adapted, original, rtol=1e-4, atol=1e-5)


SEARCHED = """\
target: 1.1x
data: {{path: {data}, validation_fraction: 0.2, test_fraction: 0.2}}
metric: {{name: agreement}}
tolerance: {{points: 100}}
search: {{space: quick, top_groups: 1, population: 4, generations: 0, finalists: 2, finalist_steps: 5,
  activation_samples: 48, probe_samples: 32, workers: 1}}
distil: {{steps: 4, batch: 16}}
finetune: {{epochs: 1, batch: 32, precision: float32, layout: contiguous, threads: 1}}
"""


@pytest.mark.slow
def test_it_is_trained_with_the_rest_where_there_is_data(tmp_path: Path) -> None:
    text = SEARCHED.format(data=write_data(tmp_path / "data.npz", 160))
    report, folder = run(tmp_path, upsampling, text)
    assert report.verdict.adapted and report.replacements
    passed_through(report, folder)


def test_what_is_exact_comes_first_where_there_is_data(tmp_path: Path) -> None:
    """No program reaches the target, and what is exact is exported all the same."""
    text = SEARCHED.format(data=write_data(tmp_path / "data.npz", 160)).replace("1.1x", "900x")
    report, folder = run(tmp_path, two_linear, text)
    (replacement,) = report.replacements
    assert set(replacement.nodes) == {"wide", "narrow"} and "merge_pointwise" in replacement.rule
    assert report.verdict.adapted and report.verdict.target_reached is False
    assert report.verdict.reason.startswith("1 exact replacement, and nothing else: ")
    assert report.latency.is_gain
    assert report.accuracy is not None and report.accuracy.test.difference.value == 0
    original, adapted = outputs(folder)
    np.testing.assert_allclose(adapted, original, rtol=1e-4, atol=1e-5)


def test_what_is_exact_counts_towards_the_target(tmp_path: Path) -> None:
    text = SEARCHED.format(data=write_data(tmp_path / "data.npz", 160)).replace("1.1x", "1.01x")
    report, _ = run(tmp_path, two_linear, text)
    assert len(report.replacements) == 1 and not report.attempts
    assert report.verdict.target_reached and report.verdict.reason == "1 exact replacement"

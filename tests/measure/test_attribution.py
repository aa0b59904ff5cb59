"""Optimised nodes are led back to original ones, by hand-made graphs and on real models."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import GraphProto, TensorProto, helper

from opadapt.measure.attribute import REORDERS, attribute
from opadapt.measure.facts import load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.lock import MeasuringLock
from opadapt.measure.profile import BETWEEN, profile
from opadapt.measure.timing import Timing
from opadapt.model.load import load
from opadapt.model.save import at_batch

Node = tuple[str, str, list[str], list[str]]  # operator, name, inputs, outputs
SHAPES: Mapping[str, Mapping[str, tuple[int | str, ...]]] = {
    "basic_pitch": {"serving_default_input_2:0": ("N", 43844, 1)},
    "ppocr_cls": {"x": ("N", 3, 48, 192)},
}
CNNS = (
    "basic_pitch",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "mlperf_tiny_ic_resnet8",
    "mlperf_tiny_kws_dscnn",
    "mlperf_tiny_vww_mobilenetv1_025",
    "ppocr_cls",
    "ultralight_face_rfb320",
)
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM")


def graph(*nodes: Node, weights: tuple[str, ...] = ("w0", "w1")) -> GraphProto:
    made = [helper.make_node(op, i, o, name=name) for op, name, i, o in nodes]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    constants = [helper.make_tensor(w, TensorProto.FLOAT, [1], [0.0]) for w in weights]
    return helper.make_graph(made, "g", inputs, [], constants)


CHAIN: tuple[Node, ...] = (
    ("Conv", "conv", ["x", "w0"], ["c"]),
    ("BatchNormalization", "bn", ["c", "w1"], ["b"]),
    ("Relu", "relu", ["b"], ["r"]),
    ("MaxPool", "pool", ["r"], ["y"]),
)


def owners(original: GraphProto, *optimized: Node) -> list[set[str]]:
    return [set(names) for names in attribute(original, graph(*optimized))]


def test_a_fused_node_is_all_between_the_surviving_tensors() -> None:
    found = owners(graph(*CHAIN), ("FusedConv", "", ["x", "w"], ["r"]), ("MaxPool", "", ["r"], ["y"]))
    assert found == [{"conv", "bn", "relu"}, {"pool"}]


def test_an_untouched_graph_maps_to_itself() -> None:
    found = owners(graph(*CHAIN), *CHAIN)
    assert found == [{"conv"}, {"bn"}, {"relu"}, {"pool"}]


def test_reorders_are_paid_by_the_node_that_needs_them() -> None:
    found = owners(
        graph(*CHAIN),
        ("ReorderInput", "ReorderInput", ["x"], ["t0"]),
        ("Conv", "r_nchwc", ["t0", "w"], ["t1"]),
        ("ReorderOutput", "ReorderOutput", ["t1"], ["r"]),
        ("MaxPool", "pool", ["r"], ["y"]),
    )
    assert found == [{"conv", "bn", "relu"}, {"conv", "bn", "relu"}, {"conv", "bn", "relu"}, {"pool"}]


def test_a_blocked_residual_is_found_behind_the_convolution() -> None:
    original = graph(
        ("Conv", "conv0", ["x", "w0"], ["c0"]),
        ("Conv", "conv1", ["c0", "w1"], ["c1"]),
        ("Add", "add", ["c1", "c0"], ["a"]),
        ("Relu", "relu", ["a"], ["r"]),
        ("AveragePool", "pool", ["r"], ["y"]),
    )
    optimized = graph(
        ("Conv", "c0_nchwc", ["x", "w0"], ["t0"]),
        ("Conv", "c1_nchwc", ["t0", "w1", "", "t0"], ["t1"]),
        ("AveragePool", "y_nchwc", ["t1"], ["t2"]),
        ("ReorderOutput", "ReorderOutput_token_3", ["t2"], ["y"]),
    )
    optimized.node[1].attribute.append(helper.make_attribute("activation", "Relu"))
    found = [set(names) for names in attribute(original, optimized)]
    assert found == [{"conv0"}, {"conv1", "add", "relu"}, {"pool"}, {"pool"}]


def test_what_no_name_tells_goes_to_the_last_node_it_was_fused_into() -> None:
    original = graph(
        ("Conv", "left", ["x", "w0"], ["l"]),
        ("Conv", "right", ["x", "w1"], ["r"]),
        ("Add", "add", ["l", "r"], ["a"]),
    )
    found = owners(
        original, ("Conv", "left", ["x", "w0"], ["l"]), ("FusedConv", "right", ["x", "w1", "l"], ["z"])
    )
    assert found == [{"left"}, {"right", "add"}]


def test_constant_expressions_cost_nothing() -> None:
    original = graph(("Mul", "folded", ["w0", "w1"], ["w"]), ("Conv", "conv", ["x", "w"], ["y"]))
    assert owners(original, ("Conv", "conv", ["x", "w"], ["y"])) == [{"conv"}]


@pytest.mark.parametrize("name", [*CNNS, "beliefppg_full"])
def test_real_models_keep_their_heavy_nodes_apart(shared_models: Path, tmp_path: Path, name: str) -> None:
    model = at_batch(load(shared_models / f"{name}.onnx", SHAPES.get(name)), 1)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    op_types = {node.name: node.op_type for node in model.graph.node}
    claimed: list[str] = []
    for node, names in zip(optimized.node, attribute(model.graph, optimized), strict=True):
        assert names, f"{node.op_type} {node.name} belongs to nothing"
        heavy = [n for n in names if op_types[n] in HEAVY]
        if node.op_type.removeprefix("Fused") in HEAVY:
            assert len(heavy) == 1, f"{node.name}: {heavy}"
            claimed += heavy
        elif node.op_type in op_types.values() and node.op_type not in REORDERS | {"Reshape", "Transpose"}:
            assert not heavy, f"{node.op_type} {node.name}: {heavy}"
    assert sorted(claimed) == sorted(n for n, op in op_types.items() if op in HEAVY)


def test_a_model_with_recurrent_layers_is_profiled(shared_models: Path, lock_folder: Path) -> None:
    """No program stands for an LSTM; it has its time all the same."""
    timing = Timing(blocks=6, min_block_s=0.002, min_runs=2, warmup_s=0.005, profile_s=0.02)
    model = load(shared_models / "beliefppg_full.onnx")
    with LocalDevice(load_facts("local"), 1, lock=MeasuringLock(lock_folder)) as device:
        found = profile(device, model, timing)
    assert [n.name for n in found.nodes] == list(model.nodes)
    recurrent = [n for n in found.nodes if n.op_type == "LSTM"]
    assert len(recurrent) == 2 and all(n.latency_s > 0 and n.macs > 0 for n in recurrent)
    assert {name for name, _ in found.unattributed} <= {BETWEEN}


@pytest.mark.slow
@pytest.mark.parametrize("name", CNNS)
def test_at_least_95_percent_of_the_wall_time_is_attributed(
    shared_models: Path, lock_folder: Path, name: str
) -> None:
    """Of three profiles, whose blocks are too short for all of them to be interrupted by other work."""
    timing = Timing(blocks=24, min_block_s=0.003, min_runs=2, warmup_s=0.02, profile_s=0.1)
    model = load(shared_models / f"{name}.onnx", SHAPES.get(name))
    with LocalDevice(load_facts("local"), 1, lock=MeasuringLock(lock_folder)) as device:
        profiles = [profile(device, model, timing) for _ in range(3)]
    assert statistics.median(p.covered for p in profiles) >= 0.95
    for found in profiles:
        assert found.covered <= 1 + 1e-9
        heavy_s = sum(n.latency_s for n in found.nodes if n.op_type in HEAVY)
        assert heavy_s > 0.2 * found.wall.value
        assert all(n.latency_s > 0 for n in found.nodes if n.op_type in HEAVY)

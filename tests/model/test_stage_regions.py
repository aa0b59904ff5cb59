"""Whole stages: rows of equal blocks as one region, and what is left of them with fewer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from opadapt.ir.interpret import run as interpret
from opadapt.model import validate
from opadapt.model.graph import Model, Source
from opadapt.model.load import load
from opadapt.model.normalise import normalise
from opadapt.model.regions import Region, expand_region, groups, regions
from opadapt.model.splice import splice
from opadapt.search.depth import parts, shortened

CHANNELS = 4
SHAPE = ("N", CHANNELS, 6, 6)
NODES = 5  # of a residual block
SAME = {"pads": [1, 1, 1, 1]}

Rows = list[tuple[object, ...]]


def _weights(number: int, kernel: int = 3) -> dict[str, np.ndarray]:
    """Both convolutions of block ``number``, by what they are called in any block."""
    rng = np.random.default_rng(number)
    shapes = {"w": (CHANNELS, CHANNELS, 3, 3), "b": (CHANNELS,), "v": (CHANNELS, CHANNELS, kernel, kernel)}
    return {n: (rng.standard_normal(s) * 0.2).astype(np.float32) for n, s in shapes.items()}


def _blocks(weights: Sequence[dict[str, np.ndarray]], entry: str = "x") -> tuple[Rows, dict[str, np.ndarray]]:
    """conv relu conv add relu, once for each; block k makes the tensor ``o<k>``."""
    rows: Rows = []
    constants: dict[str, np.ndarray] = {}
    for k, block in enumerate(weights):
        constants |= {f"{name}{k}": value for name, value in block.items()}
        pad = block["v"].shape[-1] // 2
        rows += [
            ("Conv", f"{entry} w{k} b{k}", f"a{k}", SAME),
            ("Relu", f"a{k}", f"r{k}"),
            ("Conv", f"r{k} v{k}", f"c{k}", {"pads": [pad] * 4}),
            ("Add", f"c{k} {entry}", f"s{k}"),
            ("Relu", f"s{k}", f"o{k}"),
        ]
        entry = f"o{k}"
    return [*rows, ("GlobalAveragePool", entry, "y")], constants


def _model(build, rows: Rows, constants: dict[str, np.ndarray], outputs: Sequence[str] = ("y",)) -> Model:
    proto = build(rows, {"x": SHAPE}, list(outputs), constants, 20, 9)
    return normalise(proto, Source(None, 20, 9))


def _network(build, weights: Sequence[dict[str, np.ndarray]], outputs: Sequence[str] = ("y",)) -> Model:
    return _model(build, *_blocks(weights), outputs)


def _stages(model: Model) -> list[Region]:
    return [r for r in regions(model) if r.kind == "stage"]


def _nodes(model: Model, first: int, last: int) -> tuple[str, ...]:
    """Those of the blocks from ``first`` to before ``last``."""
    return tuple(model.nodes)[NODES * first : NODES * last]


def test_three_equal_blocks_in_a_row_are_a_stage(build) -> None:
    assert not _stages(_network(build, [_weights(k) for k in range(2)]))
    model = _network(build, [_weights(k) for k in range(3)])
    (stage,) = _stages(model)
    assert stage.nodes == _nodes(model, 0, 3)
    assert (stage.inputs, stage.output) == (("x",), "o2")
    assert stage.name == f"{stage.nodes[0]}..{stage.nodes[-1]}"


def test_another_block_ends_the_row(build) -> None:
    model = _network(build, [_weights(k, kernel=1 if k == 3 else 3) for k in range(7)])
    assert [s.nodes for s in _stages(model)] == [_nodes(model, 0, 3), _nodes(model, 4, 7)]


def test_the_block_that_halves_the_size_stays_outside(build) -> None:
    first = [
        ("Conv", "x w b", "d0", {**SAME, "strides": [2, 2]}),
        ("Relu", "d0", "d1"),
        ("Conv", "d1 w b", "d2", SAME),
        ("Conv", "x short", "d3", {"strides": [2, 2]}),
        ("Add", "d2 d3", "d4"),
        ("Relu", "d4", "d5"),
    ]
    rows, constants = _blocks([_weights(k) for k in range(3)], entry="d5")
    more = _weights(9) | {"short": _weights(9, kernel=1)["v"]}
    model = _model(build, [*first, *rows], constants | {n: more[n] for n in ("w", "b", "short")})
    (stage,) = _stages(model)
    assert stage.inputs == ("d5",) and len(stage.nodes) == 3 * NODES


@pytest.mark.parametrize(("read", "rows"), [("o2", [(0, 3), (3, 6)]), ("a1", [(2, 6)])])
def test_what_is_read_outside_ends_the_row(build, read: str, rows: list[tuple[int, int]]) -> None:
    model = _network(build, [_weights(k) for k in range(6)], ("y", read))
    assert [s.nodes for s in _stages(model)] == [_nodes(model, *row) for row in rows]


def _layers(build, count: int) -> Model:
    rows: Rows = []
    constants = {}
    for k in range(count):
        constants[f"w{k}"] = _weights(k)["w"]
        rows += [("Conv", f"{f'o{k - 1}' if k else 'x'} w{k}", f"a{k}", SAME), ("Relu", f"a{k}", f"o{k}")]
    return _model(build, [*rows, ("GlobalAveragePool", f"o{count - 1}", "y")], constants)


def test_windows_over_a_row_are_no_stages_of_their_own(build) -> None:
    """Pairs of equal layers are regions, too, and follow each other."""
    model = _layers(build, 7)
    (stage,) = _stages(model)
    assert len(stage.nodes) == 14


@pytest.mark.parametrize(("count", "sizes"), [(12, [20]), (13, [20, 6])])
def test_a_row_that_is_too_long_is_cut(
    build, monkeypatch: pytest.MonkeyPatch, count: int, sizes: list[int]
) -> None:
    monkeypatch.setattr("opadapt.model.blocks.LONGEST", 20)
    assert [len(s.nodes) for s in _stages(_layers(build, count))] == sizes


@pytest.mark.parametrize("keep", [(0,), (0, 2), (1, 2, 3), (0, 1, 2, 3)])
def test_fewer_blocks_are_the_model_without_the_others(build, keep: tuple[int, ...]) -> None:
    weights = [_weights(k) for k in range(4)]
    model = _network(build, weights)
    (stage,) = _stages(model)
    expanded = expand_region(model, stage)
    program = shortened(expanded.program, keep)
    binding = {name: expanded.binding[name] for name in program.params}
    x = np.random.default_rng(0).standard_normal((2, *SHAPE[1:])).astype(np.float32)
    (wanted,) = validate.run(_network(build, [weights[k] for k in keep]).proto, {"x": x})
    alone = interpret(program, [x], binding).mean(axis=(2, 3), keepdims=True)
    (spliced,) = validate.run(splice(model, {stage: (program, binding)}).proto, {"x": x})
    assert validate.relative_error(wanted, alone) < 1e-5
    assert validate.relative_error(wanted, spliced) < 1e-5


@pytest.mark.parametrize(("name", "blocks"), [("cifar10_resnet20", [3]), ("cifar10_resnet56", [9, 8, 8])])
def test_the_stages_of_a_cifar_resnet(shared_models: Path, name: str, blocks: list[int]) -> None:
    model = load(shared_models / f"{name}.onnx")
    found = groups(model, _stages(model))
    assert [len(g.members) for g in found] == [1] * len(blocks)
    assert [len(g.members[0].region.nodes) for g in found] == [NODES * count for count in blocks]
    assert [len(parts(g.program)) for g in found] == blocks

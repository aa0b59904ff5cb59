"""Small ONNX models, built by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Node = tuple[Any, ...]  # (operator, inputs, outputs[, attributes])
Build = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="session")
def build() -> Build:
    """A model from (operator, "inputs", "outputs", attributes) rows; names separated by blanks, ``_`` for none."""

    def make(
        nodes: Sequence[Node],
        inputs: Mapping[str, Sequence[int | str]],
        outputs: Sequence[str],
        constants: Mapping[str, Any] | None = None,
        opset: int = 17,
        ir_version: int = 8,
        names: bool = True,
    ) -> onnx.ModelProto:
        rows = []
        for position, (op, reads, makes, *rest) in enumerate(nodes):
            names_in = ["" if n == "_" else n for n in reads.split()]
            attributes = rest[0] if rest else {}
            name = f"{op.lower()}_{position}" if names else ""
            rows.append(helper.make_node(op, names_in, makes.split(), name, **attributes))
        graph = helper.make_graph(
            rows,
            "test",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
        )
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    def save(proto: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return save


@pytest.fixture
def floats() -> Callable[..., np.ndarray]:
    rng = np.random.default_rng(7)

    def make(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return make

"""Comparing outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from opadapt.errors import ModelError
from opadapt.model import validate


def test_relative_error_is_against_the_largest_of_the_reference() -> None:
    a = np.array([1.0, -4.0], np.float32)
    assert validate.relative_error(a, a) == 0.0
    assert validate.relative_error(a, np.array([1.5, -4.0], np.float32)) == pytest.approx(0.125)
    assert validate.relative_error(a, np.array([[1.0, -4.0]], np.float32)) == float("inf")
    assert validate.relative_error(a, np.array([np.nan, -4.0], np.float32)) == float("inf")
    both = np.array([np.nan, np.inf, 2.0])
    assert validate.relative_error(both, both) == 0.0
    assert validate.relative_error(np.array([np.inf]), np.array([-np.inf])) == float("inf")


def test_feeds_respect_the_type_and_the_rng() -> None:
    kinds = {"f": TensorProto.FLOAT, "h": TensorProto.FLOAT16, "i": TensorProto.INT64, "b": TensorProto.BOOL}
    infos = [helper.make_tensor_value_info(n, k, ["N", 3]) for n, k in kinds.items()]
    proto = onnx.ModelProto()
    proto.graph.input.extend(infos)
    feeds = validate.random_feeds(proto, np.random.default_rng(1), batch=2, shapes={"i": [5]})
    assert {k: v.dtype for k, v in feeds.items()} == {
        "f": np.float32,
        "h": np.float16,
        "i": np.int64,
        "b": np.bool_,
    }
    assert feeds["f"].shape == (2, 3)
    assert feeds["i"].shape == (5,)
    assert set(feeds["i"]) <= {0, 1}
    again = validate.random_feeds(proto, np.random.default_rng(1), batch=2, shapes={"i": [5]})
    assert all(np.array_equal(feeds[k], again[k]) for k in feeds)
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.STRING, [1]))
    with pytest.raises(ModelError, match="STRING"):
        validate.random_feeds(proto, np.random.default_rng(0))


def test_different_models_differ(build) -> None:
    a = build([("Relu", "x", "y")], {"x": ("N", 4)}, ["y"])
    b = build([("Abs", "x", "y")], {"x": ("N", 4)}, ["y"])
    assert validate.compare_outputs(a, a) == 0.0
    assert validate.compare_outputs(a, b, rng=np.random.default_rng(0)) > 0.1
    other = build([("Relu", "x", "z")], {"x": ("N", 4)}, ["z"])
    with pytest.raises(ModelError, match="outputs differ"):
        validate.compare_outputs(a, other)


def test_a_run_that_fails_says_what_was_fed(build) -> None:
    proto = build([("Relu", "x", "y")], {"x": ("N", 4)}, ["y"])
    with pytest.raises(ModelError, match="does not run") as caught:
        validate.run(proto, {"x": np.zeros((2, 5), np.float32)})
    assert "(2, 5)" in str(caught.value)

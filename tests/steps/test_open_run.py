"""What is checked before a run pays for anything, and what a resumed run must still agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from two_outputs import experiment_on, opened, write, write_model

from opadapt.errors import ModelError, RunError
from opadapt.search.config import SearchConfig

RNG = np.random.default_rng(0)
SPACE = "instructions: [relu, add]\nrules: [rules.yaml]\n"
RULES = """rules:
  - name: narrow
    source: "a test"
    match: |
      %k = param shape=(?c,?o)
      %y = contract %x %k einsum="nk,km->nm"
      return %y
    choose:
      r: [2, 4]
    where: ["?r < ?c"]
    replace: |
      %a = param shape=(?c,?r)
      %z = contract %x %a einsum="nk,km->nm"
      %b = param shape=(?r,?o)
      %t = contract %z %b einsum="nk,km->nm"
      return %t
    init:
      "a, b": 'factor(%k, "co->cr,ro", rank=?r)'
"""


def test_a_second_input_of_one_batch_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["a", "w"], ["h"], "product"),
            helper.make_node("Add", ["h", "b"], ["y"], "add"),
        ],
        {"a": ("N", 4), "b": (1, 3)},
        {"y": (TensorProto.FLOAT, ("N", 3))},
        {"w": RNG.normal(size=(4, 3))},
    )
    data = {"a": RNG.normal(size=(60, 4)).astype("f"), "b": RNG.normal(size=(60, 3)).astype("f")}
    with pytest.raises(ModelError, match="batch is fixed") as caught, opened(experiment_on(path, **data)):
        pass
    assert "1 in 'b'" in str(caught.value) and "batch N" in str(caught.value)


def test_a_model_of_whole_numbers_alone_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["a", "w"], ["h"], "product"),
            helper.make_node("ArgMax", ["h"], ["y"], "argmax", axis=1),
        ],
        {"a": ("N", 4)},
        {"y": (TensorProto.INT64, ("N", 1))},
        {"w": RNG.normal(size=(4, 3))},
    )
    a = RNG.normal(size=(60, 4)).astype("f")
    with pytest.raises(ModelError, match="no output of floats"), opened(experiment_on(path, a=a)):
        pass


def test_a_changed_rule_does_not_reuse_old_results(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    settings = {"search": SearchConfig(space=str(tmp_path / "space.yaml"))}
    experiment = experiment_on(write_model(tmp_path / "m.onnx"), settings)
    with opened(experiment):
        pass
    rules.write_text(f"# a remark\n{RULES}")
    with opened(experiment):
        pass
    rules.write_text(RULES.replace("[2, 4]", "[3]"))
    with pytest.raises(RunError, match="search space is not the one"), opened(experiment):
        pass


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    """As the message of a run that memory ran out in says."""
    experiment = experiment_on(write_model(tmp_path / "m.onnx"), {"search": SearchConfig(workers=2)})
    with opened(experiment):
        pass
    with opened(experiment.model_copy(update={"search": SearchConfig(workers=1)})):
        pass
    other = experiment.model_copy(update={"search": SearchConfig(population=7)})
    with pytest.raises(RunError, match="not the one"), opened(other):
        pass

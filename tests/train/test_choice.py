"""The last model of a schedule is handed out, unless an earlier one is better beyond noise."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import model_of

from opadapt.train.choice import Choice
from opadapt.train.data import Dataset, Split
from opadapt.train.metrics import MetricConfig, make_metric
from opadapt.train.preprocess import AugmentConfig, Preprocess, PreprocessConfig, resolve

COUNT = 200  # samples; each is its number


def table(wrong: Collection[int], fill: float = 1.0) -> onnx.ModelProto:
    """Looks its scores [N,2] up by number: class 0, but class 1 for the wrong ones."""
    scores = np.zeros((COUNT, 2), np.float32)
    scores[:, 0] = fill
    scores[list(wrong)] = (0, fill)
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "cast", to=TensorProto.INT64),
        helper.make_node("GatherND", ["scores", "i"], ["y"], "look"),
    ]
    return model_of(nodes, {"x": ("N", 1)}, {"y": ("N", 2)}, {"scores": scores})


def choice_in(folder: Path, metric: str, groups: np.ndarray | None = None) -> Choice:
    numbers = np.arange(COUNT, dtype=np.float32)[:, None]
    split = Split({"x": numbers}, np.zeros(COUNT, np.int64), groups)
    step = resolve(PreprocessConfig(), "x", (1,), (1,), "float32")
    data = Dataset(split, split, split, Preprocess({"x": step}), AugmentConfig(), "classes")
    return Choice(make_metric(MetricConfig(name=metric)), table([]), data, folder)


@pytest.mark.parametrize(
    ("wrong", "chosen"),
    [
        ([range(9), range(5), range(3)], 2),
        ([range(9), range(5), range(5)], 2),  # as good
        ([range(9), range(5), range(10, 18)], 2),  # 5 and 8 other ones: chance
        ([range(9), range(5), range(9)], 1),  # the same 5 and 4 more, of one mind
        ([range(9), range(5), range(60)], 1),
        ([range(60), range(9), range(5)], 2),
        ([range(5)], 0),
    ],
)
@pytest.mark.parametrize("metric", ["top1", "agreement", "deviation", "f1"])
def test_which_is_chosen(tmp_path: Path, metric: str, wrong: list[range], chosen: int) -> None:
    choice = choice_in(tmp_path, metric)
    values = [
        choice.offer(table(errors), epoch, 1, last=epoch == len(wrong) - 1)
        for epoch, errors in enumerate(wrong)
    ]
    if metric == "top1":
        assert values == [pytest.approx(1 - len(errors) / COUNT) for errors in wrong]
    assert (choice.epoch, choice.value) == (chosen, values[chosen])
    assert choice.proto() == table(wrong[chosen])


def test_before_the_end_the_better_one_is_chosen(tmp_path: Path) -> None:
    choice = choice_in(tmp_path, "top1")
    for epoch, errors in enumerate([range(9), range(5), range(5), range(10, 18)]):
        choice.offer(table(errors), epoch, 1, last=False)
    assert choice.epoch == 1


def test_what_is_not_finite_is_never_chosen_at_the_end(tmp_path: Path) -> None:
    choice = choice_in(tmp_path, "top1")
    choice.offer(table(range(90)), 0, 1, last=False)
    choice.offer(table([], fill=math.inf), 1, 1, last=True)
    assert choice.epoch == 0


@pytest.mark.parametrize(("groups", "chosen"), [(None, 0), (np.arange(COUNT) // 50, 1)])
def test_what_one_group_says_is_no_proof(tmp_path: Path, groups: np.ndarray | None, chosen: int) -> None:
    choice = choice_in(tmp_path, "top1", groups)
    choice.offer(table([]), 0, 1, last=False)
    choice.offer(table(range(40)), 1, 1, last=True)  # all of the first of four groups
    assert choice.epoch == chosen

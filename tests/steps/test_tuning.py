"""Fine-tuning and judging as steps: what is handed over, in which time, and against whom a model is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from opadapt.journal import Journal
from opadapt.model.graph import Model
from opadapt.steps import tuning
from opadapt.steps.context import Context
from opadapt.steps.tuning import FEATURES, WHOLE, Share, Tuned, borders, compare, prepared, tune, with_weights
from opadapt.train.finetune_config import EpochRecord, FinetuneConfig, FinetuneResult
from opadapt.train.speed import Execution, candidates

EXECUTION = Execution("cpu", 2, True, False, 3)
BEST = EpochRecord(0, float("nan"), 1.0, 0.0, 0.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[FinetuneConfig]:
    """Fine-tuning that returns the student at once; the settings it was asked for."""
    found: list[FinetuneConfig] = []

    def finetune(
        student: onnx.ModelProto,
        teacher: object,
        data: object,
        config: FinetuneConfig,
        *rest: object,
        **more: object,
    ) -> FinetuneResult:
        found.append(config)
        return FinetuneResult(student, (BEST,), 0, 1.0, 0, 0, 0.0, EXECUTION)

    monkeypatch.setattr(tuning, "finetune", finetune)
    return found


def tuned(context: Context, tag: str = "first", **limits: Any) -> Tuned:
    assert context.dataset is not None
    return tune(context, context.dataset, prepared(context, context.original), tag, **limits)


def test_a_part_of_what_is_asked_for_and_a_share_of_what_is_left(
    make_context: Callable[..., Context], asked: list[FinetuneConfig], monkeypatch
) -> None:
    """3 of 10 minutes are spent, one is kept for the end."""
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 180.0)
    half, tenth = Share(0.5, 0.25), WHOLE.part(0.1)
    tuned(make_context(budget_minutes=10, finetune={"epochs": 10}), "half", share=half)
    tuned(make_context(finetune={"epochs": 4, "minutes": 8.0}), "tenth", share=tenth)
    assert [(c.epochs, c.minutes) for c in asked] == [(5, pytest.approx(1.5)), (1, pytest.approx(0.8))]


def test_the_last_of_three_has_a_third_of_the_settings_and_all_that_is_left(
    make_context: Callable[..., Context], asked: list[FinetuneConfig], monkeypatch
) -> None:
    """3 of 10 minutes are spent."""
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 180.0)
    last = Share(settings=1 / 3, left=1.0)
    tuned(make_context(budget_minutes=10, finetune={"epochs": 9}), "last", share=last)
    tuned(make_context(budget_minutes=10, finetune={"epochs": 9, "minutes": 12.0}), "shorter", share=last)
    assert [(c.epochs, c.minutes) for c in asked] == [(3, pytest.approx(6.0)), (3, pytest.approx(4.0))]


def test_a_share_has_its_share_of_the_epochs_with_the_teacher(
    make_context: Callable[..., Context], asked: list[FinetuneConfig]
) -> None:
    tuned(make_context(finetune={"epochs": 9, "teacher_epochs": 3}), "third", share=WHOLE.part(1 / 3))
    assert [(c.epochs, c.teacher_epochs) for c in asked] == [(3, 1)]


@pytest.mark.parametrize(("epochs", "count"), [(3, 2), (5, 2), (11, 3), (30, 30), (7, 4)])
def test_equal_shares_have_no_more_epochs_together_than_are_asked_for(
    make_context: Callable[..., Context], asked: list[FinetuneConfig], epochs: int, count: int
) -> None:
    tuned(make_context(finetune={"epochs": epochs}), "one", share=WHOLE.part(1 / count))
    assert asked[0].epochs is not None
    assert epochs - count < asked[0].epochs * count <= epochs


def test_a_share_of_no_epochs_is_none(
    make_context: Callable[..., Context], asked: list[FinetuneConfig]
) -> None:
    tuned(make_context(finetune={"epochs": 0}), "none", share=WHOLE.part(1 / 3))
    assert [c.epochs for c in asked] == [0]


def test_what_was_fast_before_is_not_tried_out_again(
    make_context: Callable[..., Context], asked: list[FinetuneConfig]
) -> None:
    context = make_context()
    found = tuned(context)
    assert found.execution == {
        "threads": 6, "replicas": 3, "layout": "channels_last", "precision": "float32"
    }  # fmt: skip
    tuned(context, "second", found=found.execution)
    assert (asked[1].threads, asked[1].replicas) == (6, 3)
    assert (asked[1].layout, asked[1].precision) == ("channels_last", "float32")
    (way,) = candidates(asked[1].precision, asked[1].threads, asked[1].layout, asked[1].replicas, 64)
    assert way == EXECUTION


@pytest.mark.parametrize(("wanted", "given"), [(None, 6.0), (2.0, 2.0), (30.0, 6.0)])
def test_the_minutes_are_cut_to_what_the_budget_leaves(
    make_context: Callable[..., Context], asked: list[FinetuneConfig], monkeypatch, wanted, given
) -> None:
    """3 of 10 minutes are spent, one is kept for the end."""
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 180.0)
    tuned(make_context(budget_minutes=10, finetune={"minutes": wanted}))
    assert [c.minutes for c in asked] == [pytest.approx(given)]


def test_a_resumed_run_has_the_minutes_of_the_first(
    make_context: Callable[..., Context], asked: list[FinetuneConfig], monkeypatch
) -> None:
    clock = {"s": 180.0}
    monkeypatch.setattr(Journal, "spent_s", lambda journal: clock["s"])
    tuned(make_context(budget_minutes=10))
    clock["s"] = 500.0
    tuned(make_context(budget_minutes=10, finetune={"batch": 99}))  # other work, planned before
    tuned(make_context(budget_minutes=10), "second")
    assert [c.minutes for c in asked] == [pytest.approx(6.0), pytest.approx(6.0), pytest.approx(1.0)]


def test_without_a_budget_the_minutes_stay(
    make_context: Callable[..., Context], asked: list[FinetuneConfig]
) -> None:
    tuned(make_context(finetune={"minutes": 30.0}))
    assert [c.minutes for c in asked] == [30.0]


# features


def test_targets_between_are_spread_over_the_depth(make_context: Callable[..., Context]) -> None:
    model = make_context().original
    made = [n for node in model.proto.graph.node for n in node.output]
    found = borders(model, model, made)
    assert len(found) == FEATURES < len(made) - 1
    places = [made.index(n) for n in found]
    assert places == sorted(places) and max(np.diff(places)) <= 3
    assert found[-1] == made[-2]  # the last that is no output of the model: those are targets anyway


def test_targets_between_are_outputs_of_replaced_parts_that_both_models_have(
    make_context: Callable[..., Context],
) -> None:
    original = make_context().original
    student = original.with_proto(_renamed(original, "block1.add", "elsewhere"))
    assert borders(original, student, ["block0.add", "block1.add", "new", "logits"]) == ("block0.add",)
    assert borders(original, student, []) == ()


def _renamed(model: Model, old: str, new: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if n == old else n for n in names]
    return proto


def test_replaced_parts_are_what_is_learned_between(
    make_context: Callable[..., Context], asked: list[FinetuneConfig]
) -> None:
    context = make_context()
    assert context.dataset is not None
    tune(context, context.dataset, prepared(context, context.original), "first", ["block0.add"])
    fixed = make_context(finetune={"features": ["pool"]})
    tune(fixed, context.dataset, prepared(fixed, fixed.original), "first", ["block0.add"])
    assert [c.features for c in asked] == [("block0.add",), ("pool",)]


def test_only_a_normalised_training_needs_biases(make_context: Callable[..., Context]) -> None:
    context, plain = make_context(), make_context(finetune={"batch_norm": False})
    bare = onnx.ModelProto()
    bare.CopyFrom(context.original.proto)
    conv = next(n for n in bare.graph.node if n.op_type == "Conv")
    del conv.input[2:]
    student = context.original.with_proto(bare)

    def bias(found: Model) -> bool:
        return all(len(n.input) == 3 for n in found.proto.graph.node if n.op_type == "Conv")

    assert bias(prepared(context, student)) and not bias(prepared(plain, student))


# judging


def judged(context: Context, split: str, model: Model) -> Any:
    assert context.dataset is not None
    return compare(context, context.dataset, model, getattr(context.dataset, split), split)


def test_the_reference_counts_on_validation_data_alone(make_context: Callable[..., Context]) -> None:
    context = make_context(tolerance={"points": 1.0, "reference_points": 80.0})
    assert judged(context, "validation", context.original).loss == pytest.approx(80.0 - 100.0)
    assert judged(context, "test", context.original).loss == 0.0
    plain = make_context()
    assert judged(plain, "validation", plain.original).original == 100.0


def test_a_model_is_judged_against_the_original(make_context: Callable[..., Context]) -> None:
    context = make_context(tolerance={"points": 1.0})
    turned = {n: -v for n, v in context.original.initializers.items() if n.startswith("head")}
    found = judged(context, "validation", with_weights(context.original, turned))
    assert not found.accepted and found.loss == pytest.approx(100.0)  # the best class is now the worst

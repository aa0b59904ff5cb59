"""The augmentation of a run: the experiment's, or one that is found once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from opadapt.steps import augmentation
from opadapt.steps.augmentation import augmented
from opadapt.steps.context import Context
from opadapt.train.preprocess import AugmentConfig

FOUND = AugmentConfig(crop_padding_pixels=3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A search that finds the same every time; whose models it was asked about."""
    models: list[object] = []

    def borne(original: object, *rest: Any) -> AugmentConfig:
        models.append(original)
        return FOUND

    monkeypatch.setattr(augmentation, "borne", borne)
    return models


def settled(context: Context) -> AugmentConfig:
    assert context.dataset is not None
    return augmented(context, context.dataset).augment


def test_found_once_and_read_by_a_resumed_run(
    make_context: Callable[..., Context], asked: list[object]
) -> None:
    first = make_context()
    assert settled(first) == FOUND and settled(make_context()) == FOUND
    assert asked == [first.original.proto]


@pytest.mark.parametrize("said", [{}, {"flip_horizontal": True}])
def test_what_the_experiment_says_is_not_tried(
    make_context: Callable[..., Context], asked: list[object], said: dict[str, object]
) -> None:
    context = make_context()
    assert context.experiment.data is not None and context.dataset is not None
    data = context.experiment.data.model_copy(update={"augment": AugmentConfig(**said)})
    context.experiment = context.experiment.model_copy(update={"data": data})
    before = context.dataset.augment
    assert settled(context) == before and not asked

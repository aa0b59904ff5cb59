"""A time limit that was too short may be raised: what was recorded under it stays valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opadapt.experiment import Experiment
from opadapt.journal import content_key
from opadapt.measure.timing import Timing
from opadapt.steps.context import settings_of


def fingerprint(**settings: Any) -> str:
    experiment = Experiment(model=Path("net.onnx"), **settings)
    return content_key(settings_of(experiment))


@pytest.mark.parametrize("name", ["timing", "quick_timing"])
def test_a_run_may_be_resumed_with_a_longer_limit(name: str) -> None:
    first, longer, other = ({name: Timing(**more)} for more in ({}, {"timeout_s": 7200.0}, {"blocks": 30}))
    assert fingerprint(**longer) == fingerprint(**first) != fingerprint(**other)


def test_keys_do_not_depend_on_the_limit_and_stay_as_they_were_recorded() -> None:
    assert Timing(timeout_s=7200.0).key() == Timing().key()
    assert Timing(blocks=30, seed=3).key() == Timing(blocks=30, seed=3).model_dump(exclude={"processes"})
    assert Timing(blocks=30).key() != Timing().key()

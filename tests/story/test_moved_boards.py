"""A run belongs to a type of device, not to one host: it can be resumed when the board has moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from opadapt.experiment import Experiment
from opadapt.journal import content_key
from opadapt.steps.context import settings_of


def fingerprint(device: str, host: str | None = None) -> str:
    experiment = Experiment(model=Path("net.onnx"), device=device, host=host)
    return content_key(settings_of(experiment))


@pytest.mark.parametrize(
    ("device", "host"), [("rpi4@a", None), ("rpi4@pi@a,pi@b", None), ("rpi4", "pi@10.0.0.7:2222")]
)
def test_results_stay_valid_at_another_host(device: str, host: str | None) -> None:
    assert fingerprint(device, host) == fingerprint("rpi4")


def test_results_of_another_type_do_not() -> None:
    assert len({fingerprint(device) for device in ("rpi4", "rpi5", "rpi4.yaml", "null")}) == 4

"""Whose fault it is that candidates cannot be timed, and what stays known when their device is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from fleets import fleet
from test_overlap import Halving, MakeBench
from test_overlap import bench as bench

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.device import Device
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import Timing
from opadapt.steps.latency import TOGETHER
from opadapt.steps.timed import BLAMED, Hands, Readings

MODELS = (b"one", b"two", b"three", b"four")
HALF = pytest.approx(0.5)


def times(device: Device) -> Readings:
    """Time all models beside a base."""
    hands = Hands(device, Timing(blocks=6), apart=False)
    return hands.begin(b"base", [lambda model=model: model for model in MODELS]).result()


def breaks(model: bytes, kind: str | None) -> Callable[[Sequence[bytes]], None]:
    def before(models: Sequence[bytes]) -> None:
        if model in models:
            raise DeviceError("rpi4: time failed", found=f"it was {kind}", kind=kind)

    return before


@pytest.mark.parametrize("kind", BLAMED)
def test_what_a_model_can_cause_is_blamed_on_it(kind: str) -> None:
    found = times(Halving(breaks(b"three", kind)))
    assert found.found == (HALF, HALF, f"it was {kind}", HALF) and found.lost is None


@pytest.mark.parametrize("kind", ["space", "locked", "pinning", "request", "corrupt", None])
def test_no_candidate_is_blamed_for_anything_else(kind: str | None) -> None:
    device = Halving(breaks(b"three", kind))
    with pytest.raises(LostDevice, match="time failed") as error:
        times(device)
    assert error.value.found == f"it was {kind}" and error.value.kind == kind
    assert device.asked == 1  # nor is it searched for


def dies_with(model: bytes) -> Callable[[Sequence[bytes]], None]:
    """All together they crash; the device is gone as soon as it is asked for this model alone."""

    def before(models: Sequence[bytes]) -> None:
        if len(models) > 2:
            raise DeviceError("rpi4: time failed", found="killed by SIGSEGV", kind="signal")
        if model in models:
            raise LostDevice("the board is gone")

    return before


def test_what_was_timed_singly_stays_known_when_the_device_is_lost() -> None:
    found = times(Halving(dies_with(b"three")))
    assert found.found == (HALF, HALF, None, None)
    assert str(found.lost) == "the board is gone" and len(found.base) == 2


def test_where_nothing_is_known_the_loss_is_all_there_is() -> None:
    with pytest.raises(LostDevice):
        times(Halving(dies_with(b"one")))


def test_another_board_times_only_what_is_left() -> None:
    boards = Halving(dies_with(b"three")), Halving()
    with fleet(*boards) as device:
        found = times(device)
    assert found.found == (HALF,) * 4 and found.lost is None
    assert [board for board, _ in found.base] == ["a", "a", "b", "b"]
    assert boards[1].asked == 2


def test_a_run_records_what_is_known_and_measures_the_rest_when_resumed(bench: MakeBench) -> None:
    gone: list[bool] = []

    def before(models: Sequence[bytes]) -> None:
        if gone or (len(models) == 2 and models[1] == third):
            gone.append(True)
            raise LostDevice("no answer")
        if len(models) > 2:
            raise DeviceError("rpi4: time failed", found="killed by SIGSEGV", kind="signal")

    made = bench(Halving(before))
    third = made.latency._changed(made.candidates[2])
    with pytest.raises(LostDevice, match="no answer"):
        made.evaluate(lambda number: None)
    known = made.recorded()
    assert known == [made.latency.key(candidate) for candidate in made.candidates[:2]]

    again = bench(device := Halving())
    again.evaluate(lambda number: None)
    assert again.recorded()[:2] == known
    assert len(set(again.recorded())) == len(again.candidates) == 3 * TOGETHER
    assert device.asked == 3


def test_a_model_that_is_none_is_the_candidates_fault(bench: MakeBench) -> None:
    made = bench(Halving())
    device = NullDevice(made.context.device.facts, 1)
    hands = Hands(device, made.context.quick_timing, apart=False)
    found = hands.begin(made.latency.base, [lambda: b"no model", lambda: made.latency.base]).result()
    assert isinstance(found.found[0], str) and found.found[1] == pytest.approx(1.0)

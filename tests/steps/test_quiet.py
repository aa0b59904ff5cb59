"""Nothing trains while something is timed: who takes the measuring lock, and what waits for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from opadapt.errors import DeviceError
from opadapt.lower import to_model
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.facts import load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.lock import MeasuringLock
from opadapt.measure.profile import Profile, profile
from opadapt.measure.timing import Timing
from opadapt.steps import activations, context, harm, tuning, workers
from opadapt.steps.activations import record
from opadapt.steps.context import Context
from opadapt.steps.explore import original_candidate, rank_groups
from opadapt.steps.harm import Harm
from opadapt.steps.tuning import compare, prepared, tune
from opadapt.steps.workers import DamageTask, DistilTask, run_damage, run_distil
from opadapt.train.distil import DistilConfig
from opadapt.train.finetune_config import FinetuneProgress

MakeContext = Callable[..., Context]


def could_be(kind: str, lock: MeasuringLock) -> bool:
    """Whether another program could begin to measure ("quiet") or to compute ("busy") now."""
    other = MeasuringLock(lock.folder, timeout_s=0.0)
    try:
        with getattr(other, kind)():
            return True
    except DeviceError:
        return False


class Watch:
    """Stands before a function: whether something could be timed while it runs."""

    def __init__(self, lock: MeasuringLock, patch: pytest.MonkeyPatch) -> None:
        self.lock, self.patch = lock, patch
        self.seen: list[bool] = []

    def over(self, place: object, name: str) -> None:
        work = getattr(place, name)

        def watched(*arguments: Any, **more: Any) -> Any:
            self.seen.append(could_be("quiet", self.lock))
            return work(*arguments, **more)

        self.patch.setattr(place, name, watched)

    def excluded_timing(self) -> bool:
        """It ran, never while something could be timed, and has let go."""
        return bool(self.seen) and not any(self.seen) and could_be("quiet", self.lock)


@pytest.fixture
def watch(lock: MeasuringLock, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(lock, monkeypatch)


def test_distillation_and_damage_in_a_worker(make_context: MakeContext, watch: Watch, tmp_path) -> None:
    watch.over(workers, "distil")
    watch.over(workers, "run_batched")
    made = make_context()
    group = rank_groups(made, made.original, _profile(made))[0].group
    candidate = original_candidate(group)
    shapes = {"x": group.program.inputs[0], "y": group.program.signature.output}
    for name, type_ in shapes.items():
        values = np.random.default_rng(0).standard_normal((8, *type_.at_batch(1)[1:]))
        np.save(tmp_path / f"{name}.npy", values.astype(np.float32))
    student = to_model(candidate.program, candidate.bindings[0], None).SerializeToString()
    task = DistilTask(student, (tmp_path / "x.npy",), tmp_path / "y.npy", DistilConfig(steps=1), 0)
    assert run_distil(task).student is not None and len(watch.seen) == 1
    assert made.dataset is not None
    inputs = made.dataset.preprocess.numpy(made.dataset.test.take(slice(0, 4)).inputs)
    for name, array in inputs.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "reference.npy", np.ones((4, 4), np.float32))
    paths = {name: tmp_path / f"{name}.npy" for name in inputs}
    proto = made.original.proto.SerializeToString()
    output = made.original.outputs[0]
    task_of_damage = DamageTask(proto, paths, {output: tmp_path / "reference.npy"}, {output: "logits"})
    assert run_damage(task_of_damage).value > 0
    assert len(watch.seen) == 2 and watch.excluded_timing()


def _profile(made: Context) -> Profile:
    return profile(made.device, made.original, made.experiment.timing)


def test_fine_tuning(make_context: MakeContext, watch: Watch) -> None:
    watch.over(tuning, "finetune")
    made = make_context(finetune={"epochs": 0, "threads": 1, "layout": "contiguous"})
    assert made.dataset is not None
    tune(made, made.dataset, prepared(made, made.original), "first")
    assert watch.excluded_timing()


def test_fine_tuning_lets_go_between_two_chunks(
    make_context: MakeContext, lock: MeasuringLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits to measure does so when fine-tuning reports."""
    measured = threading.Event()

    def finetune(student: onnx.ModelProto, *arguments: Any, **more: Any) -> Any:
        def measure() -> None:
            with MeasuringLock(lock.folder).quiet():
                measured.set()

        waiting = threading.Thread(target=measure)
        waiting.start()
        while could_be("busy", lock):  # until it keeps the gate
            pass
        show = arguments[4]
        show(FinetuneProgress(0, 1, 0.0, 0.0, 0.1, 1.0, ()))
        waiting.join(20)
        assert measured.is_set() and not could_be("quiet", lock)  # and the next chunk has begun
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "finetune", finetune)
    made = make_context()
    assert made.dataset is not None
    with pytest.raises(KeyboardInterrupt):
        tune(made, made.dataset, prepared(made, made.original), "first")
    assert could_be("quiet", lock)


def test_recording_activations(make_context: MakeContext, watch: Watch) -> None:
    watch.over(activations, "capture")
    made = make_context(search={"activation_samples": 16})
    assert made.dataset is not None
    group = rank_groups(made, made.original, _profile(made))[0].group
    record(made, made.dataset, made.original, [group], "original")
    assert watch.excluded_timing()


def test_judging(make_context: MakeContext, watch: Watch) -> None:
    watch.over(tuning, "predict")
    made = make_context()
    assert made.dataset is not None
    compare(made, made.dataset, made.original, made.dataset.test, "test")
    assert watch.excluded_timing()


def test_the_outputs_that_damage_is_measured_by(make_context: MakeContext, watch: Watch) -> None:
    watch.over(harm, "run_batched")
    made = make_context(search={"probe_samples": 16})
    assert made.dataset is not None
    Harm(made, made.dataset, made.original)
    assert watch.excluded_timing()


def test_trying_the_data_out(make_context: MakeContext, watch: Watch) -> None:
    watch.over(context, "predict")
    made = make_context()
    assert made.dataset is not None
    context._check_usable(made.experiment, made.original, made.dataset)
    assert watch.excluded_timing()


# the device


@contextlib.contextmanager
def elsewhere(lock: MeasuringLock, kind: str) -> Iterator[None]:
    """Another thread computes, or measures."""
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with getattr(MeasuringLock(lock.folder), kind)():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(20)
    try:
        yield
    finally:
        leave.set()
        thread.join(20)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bool, bool]]:
    """Requests that reach the agent, and whether others could measure or compute meanwhile."""
    found: dict[str, tuple[bool, bool]] = {}

    def request(name: str) -> Callable[..., None]:
        def ask(device: LocalDevice, *arguments: object) -> None:
            found[name] = could_be("quiet", device.lock), could_be("busy", device.lock)

        return ask

    for name in ("time", "profile", "run", "conditions"):
        monkeypatch.setattr(AgentDevice, name, request(name))
    monkeypatch.setattr(AgentDevice, "hello", lambda device: {})
    return found


CALLS: dict[str, Callable[[LocalDevice], object]] = {
    "time": lambda device: device.time([b""], Timing()),
    "profile": lambda device: device.profile(b"", Timing()),
    "run": lambda device: device.run(b"", {}),
    "conditions": lambda device: device.conditions(),
}


@pytest.mark.parametrize(
    ("call", "others"), [("time", "busy"), ("profile", "busy"), ("run", "quiet"), ("conditions", "quiet")]
)
def test_this_machine_measures_alone_and_computes_while_nobody_measures(
    lock: MeasuringLock, asked: dict[str, tuple[bool, bool]], call: str, others: str
) -> None:
    device = LocalDevice(load_facts("local"), 1, lock=MeasuringLock(lock.folder, timeout_s=0.05))
    with elsewhere(lock, others), pytest.raises(DeviceError, match="did not pause"):
        CALLS[call](device)
    assert not asked
    CALLS[call](device)
    assert asked == {call: (False, others == "quiet")}
    assert could_be("quiet", lock)

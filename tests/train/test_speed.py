"""Which ways of execution are tried, how one is chosen, and that what was chosen is what runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from tiny_models import classifier, image_dataset
from torch import nn

from opadapt.train import speed, teacher, trial
from opadapt.train.finetune import FinetuneConfig, finetune
from opadapt.train.speed import Execution, candidates, fastest


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# which


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What torch says about the machine."""

    def pretend(bfloat16: bool, gpu: bool) -> None:
        monkeypatch.setattr(speed, "cpu_has_bfloat16", lambda: bfloat16 and not gpu)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *arguments: bfloat16)

    return pretend


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("precision", "has", "tried"),
    [
        ("auto", True, {False, True}),
        ("auto", False, {False}),
        ("float32", True, {False}),
        ("bfloat16", True, {True}),
        ("bfloat16", False, {True}),
    ],
)
def test_bfloat16_is_tried_where_the_hardware_has_it_or_it_is_asked_for(hardware, gpu, precision, has, tried):
    hardware(has, gpu)
    assert {option.bfloat16 for option in candidates(precision, 1)} == tried


def test_a_gpu_is_used_where_there_is_one(hardware):
    hardware(True, True)
    options = candidates("auto", None, batch=256)
    assert {(o.device, o.replicas) for o in options} == {("cuda", 1)}
    assert {(o.bfloat16, o.channels_last) for o in options} == {
        (b, c) for b in (False, True) for c in (False, True)
    }
    hardware(True, False)
    assert {o.device for o in candidates("auto", None)} == {"cpu"}


def test_threads_are_those_asked_for(hardware):
    hardware(False, False)
    assert {o.threads for o in candidates("float32", 3)} == {3}


# how


def test_the_shortest_step_wins_whatever_it_takes_to_get_ready(monkeypatch):
    clock = {"s": 0.0}
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock["s"]))
    costs_s = {1: 0.03, 2: 0.005, 3: 0.02}
    calls = []

    def ready(option: Execution) -> Callable[[], None]:
        clock["s"] += 100.0 * option.threads
        calls.append(("ready", option.threads))

        def step() -> None:
            clock["s"] += costs_s[option.threads]
            calls.append(("step", option.threads))

        return step

    chosen = fastest([Execution("cpu", t, False, False) for t in (1, 2, 3)], ready, repeats=2)
    assert (chosen.threads, chosen.step_s) == (2, pytest.approx(0.005))
    rounds = [("step", t) for _ in range(3) for t in (1, 2, 3)]
    assert calls == [*(("ready", t) for t in (1, 2, 3)), *rounds]


def test_the_first_round_only_warms_up_and_long_ones_are_not_repeated(monkeypatch):
    clock = {"s": 0.0}
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock["s"]))
    options = [Execution("cpu", t, False, False) for t in (1, 2)]

    def choose(costs_s: dict[int, list[float]], steps: float = math.inf) -> tuple[int, float]:
        left = {threads: iter(seconds) for threads, seconds in costs_s.items()}

        def ready(option: Execution) -> Callable[[], None]:
            def step() -> None:
                clock["s"] += next(left[option.threads])

            return step

        found = fastest(options, ready, repeats=len(costs_s[1]) - 1, limit_s=60.0, steps=steps)
        return found.threads, found.step_s

    assert choose({1: [9.0, 1.0], 2: [2.0, 2.0]}) == (1, pytest.approx(1.0))
    assert choose({1: [50.0, 1.0], 2: [40.0, 2.0]}) == (2, pytest.approx(40.0))
    # 14 s are spent after the first timed round: a third one is not worth it before a training of 100 s
    costs_s = {1: [9.0, 1.0, 1.0], 2: [2.0, 2.0, 0.5]}
    assert choose(costs_s, steps=100) == (1, pytest.approx(1.0))
    assert choose(costs_s, steps=200) == (2, pytest.approx(0.5))
    assert choose({1: [9.0, 1.0], 2: [2.0, 2.0]}, steps=1) == (1, pytest.approx(1.0))


def test_a_trial_is_timed_without_making_what_it_needs(tmp_path, monkeypatch):
    """Neither sessions nor copies are made in a step; a session serves all ways of as many threads."""
    made = {"sessions": 0, "copies": 0}

    def counted(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            made[name] += 1
            return work(*arguments)

        return call

    monkeypatch.setattr(teacher, "open_session", counted("sessions", teacher.open_session))
    monkeypatch.setattr(trial, "copy", SimpleNamespace(deepcopy=counted("copies", copy.deepcopy)))
    tried = []

    def fastest(
        options: list[Execution], ready: Callable[[Execution], Callable[[], object]], steps: float
    ) -> Execution:
        steps = [ready(option) for option in options]
        before = dict(made)
        for step in [*steps, *steps]:
            step()
        tried.append((len(options), before, dict(made)))
        return options[-1]

    monkeypatch.setattr(trial, "fastest", fastest)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = FinetuneConfig(epochs=0, batch=32, threads=1, precision="float32")
    result = finetune(classifier(1), classifier(0), image_dataset(200, None), config, tmp_path)
    ((count, before, after),) = tried
    assert count == 2 and before == after == {"sessions": 1, "copies": 2}
    assert not result.execution.channels_last  # the one that was returned


def test_a_trial_changes_nothing(tmp_path):
    weights = []
    for name, layout in {"tried": "auto", "given": "contiguous"}.items():
        (tmp_path / name).mkdir()
        config = FinetuneConfig(epochs=0, batch=32, threads=1, precision="float32", layout=layout)
        made = finetune(classifier(1), classifier(0), image_dataset(200, None), config, tmp_path / name).proto
        weights.append({i.name: numpy_helper.to_array(i) for i in made.graph.initializer})
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], rtol=1e-4, atol=1e-5)


# that it runs


@pytest.mark.parametrize(("precision", "inside"), [("bfloat16", True), ("float32", False)])
def test_fine_tuning_computes_in_the_precision_asked_for(tmp_path, precision, inside):
    """A CPU without bfloat16 emulates it."""
    seen = set()

    def look(module: nn.Module, arguments: object, output: object) -> None:
        if module.training and torch.is_grad_enabled():
            tensors = output if isinstance(output, tuple) else (output,)
            seen.update(t.dtype for t in tensors if isinstance(t, torch.Tensor))

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        config = FinetuneConfig(epochs=3, batch=32, threads=1, precision=precision, layout="contiguous")
        result = finetune(classifier(1), classifier(0), image_dataset(400, None), config, tmp_path)
    finally:
        hook.remove()
    assert result.execution.bfloat16 is inside
    assert (torch.bfloat16 in seen) is inside
    assert result.metric < result.history[0].metric  # deviation: it learned
    assert all(i.data_type == 1 for i in result.proto.graph.initializer)  # the weights stay float32


def test_training_leaves_torch_as_it_was(tmp_path) -> None:
    torch.set_num_threads(2)
    config = FinetuneConfig(epochs=1, batch=32, threads=1)
    finetune(classifier(1), classifier(0), image_dataset(100, None), config, tmp_path)
    assert torch.get_num_threads() == 2
    assert float(torch.tensor(1e-40) * 1) > 0  # a denormal

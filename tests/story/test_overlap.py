"""The host trains while the boards measure, and never where both are this machine.

Measuring is real but for the device; training is made up, so that it can wait for the device and the device for it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleets import fleet
from tiny import write_model

from opadapt.errors import DeviceError, FullDisk, LostDevice, Refused
from opadapt.experiment import Experiment
from opadapt.journal import Journal
from opadapt.measure.device import Device, OnProcess
from opadapt.measure.facts import load_facts
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.model.load import load
from opadapt.model.regions import groups, regions
from opadapt.report.progress import Silent
from opadapt.search.candidate import Candidate
from opadapt.search.config import SearchConfig
from opadapt.search.evolve import Scores
from opadapt.search.space import load_space
from opadapt.search.stages import Results, Stages
from opadapt.search.vary import seeds
from opadapt.steps.ahead import Begun, run
from opadapt.steps.context import Context
from opadapt.steps.explore import original_candidate
from opadapt.steps.latency import TOGETHER, GroupLatency
from opadapt.steps.workers import Workers

WAIT_S = 60.0  # for another thread; reached only where nothing overlaps
BASE_S = 1e-3


class Halving(NullDevice):
    """Every candidate halves the latency; ``before`` is called with the models of each request."""

    def __init__(
        self, before: Callable[[Sequence[bytes]], None] = lambda models: None, transport: str = "null"
    ) -> None:
        super().__init__(load_facts("null"), 1)
        self.facts = self.facts.model_copy(update={"transport": transport})
        self.before, self.asked = before, 0
        self.threads_seen: set[str] = set()

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        self.threads_seen.add(threading.current_thread().name)
        self.asked += 1
        self.before(models)
        latency_s = np.full((len(models), timing.blocks), BASE_S / 2)
        latency_s[0] = BASE_S
        return BlockTimes(latency_s, self.conditions())


@dataclass
class Bench:
    """A group of the tiny model's blocks, candidates for it, and the stages around a device."""

    context: Context
    candidates: list[Candidate]
    latency: GroupLatency
    original: Candidate

    def unit(self, models: Sequence[bytes]) -> int:
        """Which request it is, from 1: the candidates are asked for in their order."""
        numbers = {self.latency._changed(c): i // TOGETHER + 1 for i, c in enumerate(self.candidates)}
        return numbers[models[1]]

    def evaluate(self, train: Callable[[int], None]) -> list[Scores | Refused]:
        async def damage(candidates: AsyncIterable[Candidate]) -> Results:
            number = 0
            async for _ in candidates:
                number += 1
                train(number)
                yield 0.1 * number

        stages = Stages(
            original=self.original,
            original_latency_s=self.latency.member_s,
            config=SearchConfig(min_gain=0.0),
            lower=lambda candidate: None,
            latency=self.latency,
            rungs=(damage,),
            overlap=self.context.apart,
        )
        return run(stages.evaluate(self.candidates))

    def recorded(self) -> list[str]:
        return [key for key, _ in self.context.journal.results("latency")]


MakeBench = Callable[[Device], Bench]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[MakeBench]:
    path = write_model(tmp_path / "tiny.onnx")
    model = load(path, {})
    (group,) = [g for g in groups(model, regions(model)) if g.members[0].region.kind == "block"][:1]
    original = original_candidate(group)
    candidates = list(seeds(original, load_space(), 0))[: 3 * TOGETHER]
    assert len(candidates) == 3 * TOGETHER
    made: list[Journal] = []

    def make(device: Device) -> Bench:
        made.append(Journal(tmp_path))
        context = Context(
            Experiment(model=path), tmp_path, made[-1], device, Silent(), Workers(1), model, load_space(),
            None, tmp_path, "m",
        )  # fmt: skip
        latency = GroupLatency(context, model, group, BASE_S, BASE_S / 4, context.quick_timing)
        return Bench(context, candidates, latency, original)

    yield make
    for journal in made:
        journal.close()


def test_candidates_are_trained_while_others_are_measured(bench: MakeBench) -> None:
    """The second request ends only when training has begun, training goes on only when the second has begun."""
    training, second = threading.Event(), threading.Event()

    def before(models: Sequence[bytes]) -> None:
        if made.unit(models) == 2:
            second.set()
            assert training.wait(WAIT_S), "nothing is trained while the device measures"

    def train(number: int) -> None:
        training.set()
        assert second.wait(WAIT_S), "nothing is measured while the host trains"

    made = bench(Halving(before))
    results = made.evaluate(train)
    assert sum(isinstance(r, Scores) for r in results) == len(made.candidates)


def test_every_board_measures_while_the_host_trains(bench: MakeBench) -> None:
    meeting = threading.Barrier(
        3
    )  # two boards with the second and third request, and the training of the first

    def before(models: Sequence[bytes]) -> None:
        if made.unit(models) > 1:
            meeting.wait(WAIT_S)

    def train(number: int) -> None:
        if number == 1:
            meeting.wait(WAIT_S)

    made = bench(fleet(Halving(before), Halving(before)))
    results = made.evaluate(train)
    assert sum(isinstance(r, Scores) for r in results) == len(made.candidates)


def test_on_this_machine_all_is_measured_before_anything_is_trained(bench: MakeBench) -> None:
    log: list[str] = []
    device = Halving(lambda models: log.append("measure"), transport="local")
    made = bench(device)
    made.evaluate(lambda number: log.append("train"))
    assert log == sorted(log) and log.count("measure") == 3 and "train" in log
    assert device.threads_seen == {threading.current_thread().name}


def test_only_the_calling_thread_writes_the_journal(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def spied(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            seen.add(threading.current_thread().name)
            return real(*arguments)

        return call

    for name in ("find", "start", "finish"):
        monkeypatch.setattr(Journal, name, spied(getattr(Journal, name)))
    boards = Halving(), Halving(), Halving()
    bench(fleet(*boards)).evaluate(lambda number: None)
    assert seen == {threading.current_thread().name}
    assert not seen & {name for board in boards for name in board.threads_seen}


def test_no_more_is_begun_than_keeps_the_device_busy(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is begun and not finished is lost in a kill, and is held in memory."""
    waits = (
        threading.Event()
    )  # the calling thread has begun all it will begin, and waits for the first request
    begun: list[int] = []
    asked: list[str] = []
    settled, start = Begun.settled, Journal.start

    def counted(journal: Journal, stage: str, key: str) -> None:
        asked.append(key)
        start(journal, stage, key)

    async def spied(one: Begun[Any, Any]) -> Iterable[Any]:
        begun.append(len(asked))
        waits.set()
        return await settled(one)

    monkeypatch.setattr(Begun, "settled", spied)
    monkeypatch.setattr(Journal, "start", counted)
    device = Halving(lambda models: None if waits.wait(WAIT_S) else pytest.fail("nobody waits"))
    made = bench(device)
    made.evaluate(lambda number: None)
    assert begun[0] == TOGETHER * (device.parallel + 1) < len(made.candidates)


@pytest.mark.parametrize("kind", [LostDevice, FullDisk])
def test_what_was_measured_before_the_device_was_lost_is_not_measured_again(
    bench: MakeBench, kind: type[LostDevice]
) -> None:
    """Nor is anything refused: a full disk is no candidate's fault."""

    def lost(models: Sequence[bytes]) -> None:
        if made.unit(models) == 2:
            raise kind("it is no use", found="2981888 bytes free")

    made = bench(Halving(lost))
    with pytest.raises(kind, match="it is no use"):
        made.evaluate(lambda number: None)
    known = made.recorded()
    assert len(known) >= TOGETHER
    assert not any("refused" in row for _, row in made.context.journal.results("latency"))

    again = bench(device := Halving())
    results = again.evaluate(lambda number: None)
    assert device.asked == 3 - len(known) // TOGETHER
    assert sum(isinstance(r, Scores) for r in results) == len(again.candidates)
    assert sorted(again.recorded()) == sorted(set(again.recorded()))


def test_a_crashing_candidate_is_refused_with_its_reason_and_nothing_else(bench: MakeBench) -> None:
    def crash(models: Sequence[bytes]) -> None:
        if culprit in models:
            raise DeviceError(
                "rpi4@pi@10.0.0.7: time failed", found="killed by SIGILL\nlog line", kind="signal"
            )

    made = bench(fleet(Halving(crash), Halving(crash)))
    culprit = made.latency._changed(made.candidates[5])
    results = made.evaluate(lambda number: None)
    refused = {i: r for i, r in enumerate(results) if isinstance(r, Refused)}
    assert {i: (r.stage, r.reason) for i, r in refused.items()} == {5: ("latency", "killed by SIGILL")}
    assert not made.context.lost


def test_a_board_that_fails_with_everything_is_dropped_and_refuses_no_candidate(bench: MakeBench) -> None:
    def broken(models: Sequence[bytes]) -> None:
        raise DeviceError("rpi4: time failed", found="killed by SIGSEGV", kind="signal")

    made = bench(fleet(Halving(broken), Halving()))
    results = made.evaluate(lambda number: None)
    assert sum(isinstance(r, Scores) for r in results) == len(made.candidates)
    assert set(made.context.lost) == {"a"} and "SIGSEGV" in made.context.lost["a"]
    assert any("board a is gone" in text for text in made.context.warnings)


def test_an_interrupted_training_keeps_what_was_measured_and_asks_the_device_no_more(
    bench: MakeBench,
) -> None:
    asked, stopped = threading.Event(), threading.Event()

    def before(models: Sequence[bytes]) -> None:
        if len(models) < 2 or made.unit(models) == 2:
            asked.set()
            assert stopped.wait(WAIT_S)
            raise DeviceError(
                "the agent ended"
            )  # as a closed device does; else its candidates are tried singly

    def train(number: int) -> None:
        assert asked.wait(WAIT_S)
        raise KeyboardInterrupt

    device = Halving(before)
    made = bench(device)
    with pytest.raises(KeyboardInterrupt):
        made.evaluate(train)
    assert len(made.recorded()) == TOGETHER
    measuring = [t for t in threading.enumerate() if t.name in device.threads_seen]
    stopped.set()
    for thread in measuring:
        thread.join(WAIT_S)
    assert measuring and not any(t.is_alive() for t in measuring)
    assert device.asked == 2

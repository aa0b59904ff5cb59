"""Distillation in rungs: each goes on where the one before it ended, and a finalist where its last one did."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from opadapt.errors import Refused
from opadapt.ir.program import Binding
from opadapt.ir.text import parse_program, print_program
from opadapt.lower import raise_model
from opadapt.model.regions import groups, regions
from opadapt.search.candidate import Candidate
from opadapt.search.space import load_space
from opadapt.search.stages import Stage, stream
from opadapt.search.vary import seeds
from opadapt.steps.activations import record
from opadapt.steps.ahead import run
from opadapt.steps.context import Context
from opadapt.steps.explore import original_candidate
from opadapt.steps.training import GroupTraining, Trained
from opadapt.steps.workers import DistilTask

SHORT = 6  # steps of the second of two rungs; the first has two


def training_of(context: Context) -> tuple[GroupTraining, Candidate]:
    """The first convolution and activation of the tiny network's three blocks, and a separable form of them."""
    chains = [r for r in regions(context.original) if r.kind == "chain"]
    group = next(g for g in groups(context.original, chains) if len(g.members) == 3)
    candidate = next(
        c for c in seeds(original_candidate(group), load_space(), 0) if "depthwise_pointwise" in c.origin
    )
    assert context.dataset is not None
    activations = record(context, context.dataset, context.original, [group], "original")
    return GroupTraining(context, group, activations), candidate


def probed(training: GroupTraining, candidate: Candidate, rungs: int = 2) -> float | Refused:
    """The error after so many rungs."""

    async def taken(rung: Stage) -> list[float | Refused]:
        return [result async for result in rung(stream([candidate]))]

    for rung in training.rungs[:rungs]:
        (result,) = run(taken(rung))
    return result


def finished(training: GroupTraining, candidate: Candidate, steps: int, rungs: int = 2) -> dict[int, Trained]:
    """By member."""

    async def taken() -> dict[int, Trained]:
        done = training.finish(stream([candidate]), {candidate.digest: rungs}, steps)
        return {m: trained async for _, m, trained in done}

    return run(taken())


def both(context: Context, steps: int, rungs: int = 2) -> tuple[float | Refused, dict[int, Trained]]:
    training, candidate = training_of(context)
    return probed(training, candidate, rungs), finished(training, candidate, steps, rungs)


def begins_with(task: DistilTask, candidate: Candidate, start: Binding) -> bool:
    """Whether a distillation begins with these weights."""
    binding = raise_model(candidate.program, start, onnx.load_from_string(task.student))
    return all(np.array_equal(binding[name], value) for name, value in start.items())


def weights(context: Context, number: int) -> Binding:
    """What this distillation (from 0) left."""
    return context.journal.load_arrays(
        [row for _, row in context.journal.results("distil")][number]["weights"]
    )


@pytest.fixture
def context(make_context) -> Context:
    return make_context(search={"activation_samples": 64}, distil={"steps": SHORT, "batch": 16})


def test_the_member_that_was_tried_out_goes_on_and_the_others_begin(context: Context) -> None:
    training, candidate = training_of(context)
    tried = probed(training, candidate)
    found = finished(training, candidate, 2 * SHORT)
    starts = [
        candidate.bindings[1],
        weights(context, 0),
        candidate.bindings[0],
        weights(context, 1),
        candidate.bindings[2],
    ]
    tasks = context.workers.tasks
    assert [task.config.steps for task in tasks] == [2, SHORT, *[2 * SHORT] * 3]
    for task, start in zip(tasks, starts, strict=True):
        assert begins_with(task, candidate, start)
    for before, after in ((starts[0], starts[1]), (starts[1], starts[3])):  # each rung trained
        assert any(np.any(after[name] != value) for name, value in before.items())
    assert found[1].nmse <= tried * (1 + 1e-6)  # it starts there, and the better of start and end counts


def test_who_stayed_behind_goes_on_from_the_first_rung(context: Context) -> None:
    training, candidate = training_of(context)
    probed(training, candidate, rungs=1)
    finished(training, candidate, 2 * SHORT, rungs=1)
    assert [task.config.steps for task in context.workers.tasks] == [2, *[2 * SHORT] * 3]
    assert begins_with(context.workers.tasks[2], candidate, weights(context, 0))


def test_a_rung_that_another_run_paid_for_changes_nothing(context: Context) -> None:
    training, candidate = training_of(context)
    probed(training, candidate, rungs=2)
    finished(training, candidate, 2 * SHORT, rungs=1)
    assert begins_with(context.workers.tasks[3], candidate, weights(context, 0))


def test_one_rung_is_the_whole_distillation(make_context) -> None:
    context = make_context(
        search={"activation_samples": 64, "rungs": 1}, distil={"steps": SHORT, "batch": 16}
    )
    training, candidate = training_of(context)
    assert isinstance(probed(training, candidate), float)
    assert [task.config.steps for task in context.workers.tasks] == [SHORT] and len(training.rungs) == 1


@pytest.mark.parametrize("rungs", [1, 2])
@pytest.mark.parametrize("steps", [2 * SHORT, SHORT])
def test_a_resumed_run_pays_for_nothing_and_finds_the_same(
    context: Context, make_context, steps: int, rungs: int
) -> None:
    """A finalist that stayed behind may be trained as its next rung would have trained it: that is one work."""
    tried, found = both(context, steps, rungs)
    again = make_context(search={"activation_samples": 64}, distil={"steps": SHORT, "batch": 16})
    tried_again, found_again = both(again, steps, rungs)
    assert tried_again == tried and again.workers.tasks == []
    assert {m: t.nmse for m, t in found_again.items()} == {m: t.nmse for m, t in found.items()}
    for member, trained in found.items():
        for name, value in trained.binding.items():
            np.testing.assert_array_equal(found_again[member].binding[name], value)


def test_what_another_short_distillation_left_is_another_work(context: Context, make_context) -> None:
    """The journal tells apart how a long distillation began."""
    both(context, 2 * SHORT)
    other = make_context(search={"activation_samples": 64}, distil={"steps": SHORT + 1, "batch": 16})
    both(other, 2 * SHORT)
    assert (
        len(other.workers.tasks) == 2
    )  # the short one and what follows from it; the other members are known


def test_a_refused_try_leaves_nothing_to_go_on_from(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, candidate = training_of(context)

    def diverges(*arguments: object, **settings: object) -> None:
        raise Refused("distil", "the loss became nan")

    with monkeypatch.context() as patch:
        patch.setattr("opadapt.steps.workers.distil", diverges)
        tried = probed(training, candidate, rungs=1)
    assert isinstance(tried, Refused)
    assert set(finished(training, candidate, 2 * SHORT, rungs=1)) == {0, 1, 2}


def test_equal_programs_with_other_names_have_weights_of_their_own(context: Context) -> None:
    """Blocks that are dropped leave the names of those that stay: the same program, written differently."""
    training, candidate = training_of(context)
    other = Candidate(
        parse_program(print_program(candidate.program).replace('name="', 'name="other_')),
        tuple({f"other_{n}": v for n, v in binding.items()} for binding in candidate.bindings),
        candidate.origin,
    )
    assert other.digest == candidate.digest
    finished(training, candidate, SHORT)
    for trained in finished(training, other, SHORT).values():
        assert set(trained.binding) == set(other.program.params)

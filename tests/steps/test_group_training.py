"""Distillation in two rungs: the long one goes on where the short one ended."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from opadapt.errors import Refused
from opadapt.ir.text import parse_program, print_program
from opadapt.lower import raise_model
from opadapt.model.regions import groups, regions
from opadapt.search.candidate import Candidate
from opadapt.search.space import load_space
from opadapt.search.stages import stream
from opadapt.search.vary import seeds
from opadapt.steps.activations import record
from opadapt.steps.ahead import run
from opadapt.steps.context import Context
from opadapt.steps.explore import original_candidate
from opadapt.steps.training import GroupTraining, Trained

SHORT = 6


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


def probed(training: GroupTraining, candidate: Candidate) -> float | Refused:
    async def taken() -> list[float | Refused]:
        return [result async for result in training.probe(stream([candidate]))]

    (result,) = run(taken())
    return result


def finished(training: GroupTraining, candidate: Candidate, steps: int) -> dict[int, Trained]:
    """By member."""

    async def taken() -> dict[int, Trained]:
        return {m: trained async for _, m, trained in training.finish(stream([candidate]), steps)}

    return run(taken())


def both(context: Context, steps: int) -> tuple[float | Refused, dict[int, Trained]]:
    training, candidate = training_of(context)
    return probed(training, candidate), finished(training, candidate, steps)


@pytest.fixture
def context(make_context) -> Context:
    return make_context(search={"activation_samples": 64}, distil={"steps": SHORT, "batch": 16})


def test_the_member_that_was_tried_out_goes_on_and_the_others_begin(context: Context) -> None:
    training, candidate = training_of(context)
    tried = probed(training, candidate)
    ((_, short),) = context.journal.results("distil")
    found = finished(training, candidate, 2 * SHORT)
    begun = [onnx.load_from_string(task.student) for task in context.workers.tasks[1:]]
    starts = [candidate.bindings[0], context.journal.load_arrays(short["weights"]), candidate.bindings[2]]
    for model, start in zip(begun, starts, strict=True):
        binding = raise_model(candidate.program, start, model)
        for name, value in start.items():
            np.testing.assert_array_equal(binding[name], value)
    assert any(np.any(starts[1][n] != v) for n, v in candidate.bindings[1].items())  # the short one trained
    assert found[1].nmse <= tried * (1 + 1e-6)  # it starts there, and the better of start and end counts


@pytest.mark.parametrize("steps", [2 * SHORT, SHORT])
def test_a_resumed_run_pays_for_nothing_and_finds_the_same(
    context: Context, make_context, steps: int
) -> None:
    tried, found = both(context, steps)
    again = make_context(search={"activation_samples": 64}, distil={"steps": SHORT, "batch": 16})
    tried_again, found_again = both(again, steps)
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
        tried = probed(training, candidate)
    assert isinstance(tried, Refused)
    assert set(finished(training, candidate, 2 * SHORT)) == {0, 1, 2}


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

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from programs import block_candidate, residual_block, stage, with_weights

from opadapt.ir.canonical import live_values
from opadapt.ir.interpret import run
from opadapt.ir.program import Program
from opadapt.search.candidate import Candidate
from opadapt.search.crossover import crossover, dominators, stretches
from opadapt.search.depth import parts
from opadapt.search.edit import DoesNotApply
from opadapt.search.rewrite import variants
from opadapt.search.space import load_space
from opadapt.search.vary import rewrite

SPACE = load_space()


def with_samples(candidate: Candidate, rows: int = 6) -> Candidate:
    rng = np.random.default_rng(3)
    inputs = tuple(rng.standard_normal(t.at_batch(rows)).astype(np.float32) for t in candidate.program.inputs)
    return replace(candidate, samples=(inputs,) * len(candidate.bindings))


def weights_of(candidate: Candidate) -> set[bytes]:
    return {w.tobytes() for w in candidate.bindings[0].values()}


@pytest.mark.parametrize("program", [residual_block(), stage(3)], ids=["block", "stage"])
def test_a_stretch_reads_nothing_but_its_first_value(program: Program) -> None:
    found = stretches(program)
    assert (0, program.output) in {(s.start, s.end) for s in found}
    for start, end, length in found:
        made_of = live_values(program, end, given=start)
        assert {v for v in made_of if v < len(program.inputs)} <= {start}
        assert len(made_of - {start}) == length


def test_the_sum_of_a_residual_block_is_dominated_by_its_input_alone() -> None:
    program = residual_block()
    before = dominators(program)
    added = program[program.output].args[0]
    assert before[added] == {0, added}
    assert before[program.output] == {0, added, program.output}


def test_two_blocks_in_a_row_have_the_value_between_them_before_the_second() -> None:
    program = stage(2)
    (_, between), _ = parts(program)
    assert between in dominators(program)[program.output]


def rewritten(original: Candidate, name: str, place: int) -> Candidate:
    """The original with a rule applied at one of its matches."""
    found = list(variants(SPACE.rule(name), original.program))
    match, choice = found[place]
    return rewrite(original, SPACE.rule(name), match, choice, 0)


def test_what_two_parents_changed_at_two_places_often_meets_in_a_child() -> None:
    original = with_samples(with_weights(stage(3)))
    first, second = (rewritten(original, "collapse_conv", place) for place in (0, -1))
    both = weights_of(first) - weights_of(original), weights_of(second) - weights_of(original)
    children = [crossover(first, second, np.random.default_rng(seed)) for seed in range(40)]
    assert sum(all(new <= weights_of(child) for new in both) for child in children) >= 8
    assert sum(child.digest in (first.digest, second.digest) for child in children) <= 24


def test_a_stretch_at_another_place_has_weights_of_its_own() -> None:
    """The same weights under one name at two places would be trained as one."""
    original = with_samples(with_weights(stage(2)))
    for seed in range(30):
        child = crossover(rewritten(original, "collapse_conv", 0), original, np.random.default_rng(seed))
        names = [step.attr["name"] for step in child.program.body if step.op == "param"]
        assert len(names) == len(set(names))


def test_equal_parents_without_samples_have_a_child_that_runs() -> None:
    one = block_candidate()
    child = crossover(one, one, np.random.default_rng(0))
    x = np.zeros((2, 16, 32, 32), np.float32)
    assert run(child.program, [x], child.bindings[0]).shape == x.shape


def test_programs_without_values_of_equal_types_have_no_child() -> None:
    small, large = (with_weights(stage(1, channels)) for channels in (2, 4))
    with pytest.raises(DoesNotApply, match="equal kinds"):
        crossover(small, large, np.random.default_rng(0))

"""Programs of equal parts in a row, and what is left of them when some are dropped."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from programs import conv, residual_block, stage, with_weights

from opadapt.errors import ProgramError
from opadapt.ir.canonical import canonical, digest
from opadapt.ir.interpret import run
from opadapt.ir.program import Builder, Program
from opadapt.ir.text import parse_program
from opadapt.ir.types import TensorType
from opadapt.search.config import SearchConfig
from opadapt.search.depth import cut_points, depths, evenly, parts, shortened
from opadapt.search.evolve import Evolution, Scores
from opadapt.search.space import Space, load_space
from opadapt.search.vary import seeds

BLOCKS = 4
STAGE = with_weights(stage(BLOCKS))
SPACE = load_space()
CHOICES = [keep for count in range(1, BLOCKS) for keep in combinations(range(BLOCKS), count)]


def layers(count: int, last: str = "relu") -> Program:
    """Convolutions in a row, an activation after each."""
    b = Builder([TensorType(("N", 4, 6, 6))])
    x = 0
    for k in range(count):
        x = b.emit(last if k == count - 1 else "relu", conv(b, x, 4, str(k)))
    return b.build(x)


# ---- cut points ------------------------------------------------------------------------------------------


def test_everything_flows_through_the_joins_of_a_stage() -> None:
    first, *rest = cut_points(STAGE.program)
    assert first == 0
    assert [STAGE.program[value].op for value in rest] == ["add", "relu"] * BLOCKS
    assert rest[-1] == STAGE.program.output


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # two inputs meet first
        ("(f32[N,4], f32[N,4])\n%2 = relu %0\n%3 = add %2 %1\n%4 = tanh %3\nreturn %4", (3, 4)),
        # an input that nothing reads
        ("(f32[N,4], f32[N,4])\n%2 = relu %0\nreturn %2", (0, 2)),
        # parameters do not flow, even where they are read on both sides
        ('(f32[N,4])\n%1 = param name="s" shape=(4,)\n%2 = mul %0 %1\n%3 = mul %2 %1\nreturn %3', (0, 2, 3)),
        # the input goes on beside what is made of it
        ("(f32[N,4])\n%1 = relu %0\n%2 = tanh %1\n%3 = add %2 %0\nreturn %3", (0, 3)),
        # nothing reads a dead value
        ("(f32[N,4])\n%1 = relu %0\n%2 = tanh %0\nreturn %2", (0, 2)),
    ],
)
def test_cut_points(text: str, found: tuple[int, ...]) -> None:
    inputs, body = text.split("\n", 1)
    assert cut_points(parse_program(f"program{inputs} -> f32[N,4]\n{body}")) == found


def test_the_input_alone() -> None:
    nothing = Program((TensorType(("N", 4)),), (), 0)
    assert cut_points(nothing) == (0,) and parts(nothing) == ()


# ---- parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_most_equal_parts(count: int) -> None:
    assert len(parts(canonical(stage(count)))) == count
    assert len(parts(canonical(layers(count)))) == count


@pytest.mark.parametrize("program", [residual_block(), stage(1), layers(3, last="tanh"), layers(1)])
def test_no_equal_parts(program: Program) -> None:
    assert parts(canonical(program)) == ()


@pytest.mark.parametrize("keep", CHOICES)
def test_a_shortened_stage_is_a_shorter_stage_with_the_weights_of_what_is_kept(keep: tuple[int, ...]) -> None:
    short = shortened(STAGE.program, keep)
    assert short.signature == STAGE.program.signature and canonical(short) == short
    assert digest(short) == digest(stage(len(keep))) != STAGE.digest
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)
    weights = STAGE.bindings[0]
    names = {f"{n}{new}{ab}": f"{n}{old}{ab}" for new, old in enumerate(keep) for n in "wb" for ab in "ab"}
    assert set(short.params) == set(names.values())
    wanted = run(stage(len(keep)), [x], {new: weights[old] for new, old in names.items()})
    found = run(short, [x], {name: weights[name] for name in short.params})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_any_part_the_input_is_left() -> None:
    assert shortened(STAGE.program, ()).body == ()


@pytest.mark.parametrize(("program", "keep"), [(residual_block(), ()), (STAGE.program, (BLOCKS,))])
def test_parts_that_are_not_there(program: Program, keep: tuple[int, ...]) -> None:
    with pytest.raises(ProgramError, match="no such equal parts"):
        shortened(program, keep)


# ---- how many, and which ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "percents", "kept"),
    [
        (9, (75, 67, 50, 33, 25, 10), [7, 6, 4, 3, 2, 1]),
        (3, (75, 67, 50, 33, 25, 10), [2, 1]),
        (4, (100, 50), [2]),
        (0, (50,), []),
        (8, (), []),
    ],
)
def test_shares_are_numbers_of_parts(count: int, percents: tuple[int, ...], kept: list[int]) -> None:
    assert depths(count, percents) == kept


@pytest.mark.parametrize(
    ("count", "keep", "which"),
    [(8, 4, (0, 2, 4, 6)), (9, 7, (0, 1, 2, 3, 5, 6, 7)), (8, 3, (0, 2, 5)), (5, 1, (0,)), (3, 3, (0, 1, 2))],
)
def test_parts_are_kept_evenly_from_the_first(count: int, keep: int, which: tuple[int, ...]) -> None:
    assert evenly(count, keep) == which


# ---- seeds -----------------------------------------------------------------------------------------------


def test_the_seeds_of_a_stage_are_its_depths() -> None:
    made = list(seeds(with_weights(stage(8)), SPACE, 0, whole=True))
    assert [c.origin for c in made] == [f"original > depth(keep={k})" for k in (6, 5, 4, 3, 2, 1)]
    for candidate in made:
        assert {n: v.shape for n, v in candidate.bindings[0].items()} == candidate.program.params
    assert {name[1] for name in made[2].program.params} == set("0246")


@pytest.mark.parametrize("count", [2, 3])
def test_a_branch_of_equal_layers_has_its_rules_beside(count: int) -> None:
    origins = [c.origin for c in seeds(with_weights(layers(count)), SPACE, 0)]
    assert origins[: count - 1] == [f"original > depth(keep={k})" for k in range(count - 1, 0, -1)]
    assert sum("depth(" in origin for origin in origins) == count - 1 and len(origins) > 10


def test_a_stage_whose_blocks_are_not_found_equal_has_no_seeds() -> None:
    assert not list(seeds(with_weights(layers(3, last="tanh")), SPACE, 0, whole=True))


def test_the_search_of_a_stage_begins_with_its_depths() -> None:
    original, rng = with_weights(layers(3)), np.random.default_rng(0)
    asked = Evolution(original, Scores(1.0, 0.0), SPACE, SearchConfig(), rng, whole=True).ask()
    assert [c.origin for c in asked] == ["original > depth(keep=2)", "original > depth(keep=1)"]


@pytest.mark.parametrize("space", [SPACE.exact(), replace(SPACE, choices={"kernel": (3,)})])
def test_without_depth_choices_nothing_is_dropped(space: Space) -> None:
    assert not list(seeds(with_weights(stage(3)), space, 0, whole=True))
    origins = [c.origin for c in seeds(with_weights(layers(2)), space, 0)]
    assert not any("depth(" in origin for origin in origins)

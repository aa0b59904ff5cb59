"""Which groups are searched, when the search of them ends, and what of it is offered."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from rows import CHANNELS, group_of, separable, write_row

from opadapt.errors import ModelError
from opadapt.ir.text import parse_program
from opadapt.journal import Journal
from opadapt.measure.profile import Profile, profile
from opadapt.model.regions import Group
from opadapt.search.candidate import Candidate
from opadapt.search.evolve import Evolution, Individual, Scores
from opadapt.search.space import load_space
from opadapt.search.stages import Results
from opadapt.steps import explore as exploring
from opadapt.steps import searching
from opadapt.steps.activations import Activations, sample_rows
from opadapt.steps.ahead import run
from opadapt.steps.context import Context
from opadapt.steps.explore import Ranked, explore, lowers, original_candidate, rank_groups, spread
from opadapt.steps.searching import search_groups
from opadapt.steps.tuning import with_weights


def profiled(context: Context) -> Profile:
    return profile(context.device, context.original, context.experiment.timing)


def ranked(context: Context) -> list[Ranked]:
    return rank_groups(context, context.original, profiled(context))


def nodes_of(one: Ranked) -> set[str]:
    return {n for member in one.group.members for n in member.region.nodes}


def test_the_worst_groups_alone(make_context) -> None:
    everything = ranked(make_context(search={"top_groups": 99, "stages": 0}))
    assert len(everything) > 2
    some = ranked(make_context(search={"top_groups": 2, "stages": 0}))
    assert [r.group.key for r in some] == [r.group.key for r in everything[:2]]


POOLED = """
program(f32[N,8,16,16]) -> f32[N,8,16,16]
%1 = pad %0 pads=((0,0),(0,0),({0},{0}),({0},{0})) value=0.0
%2 = window %1 axes=(2,3) dilation=({0},{0}) kernel=(3,3) stride=(1,1)
%3 = mean %2 axes=(4,5) keepdims=0
return %3
"""


def test_a_program_without_a_form_at_the_opset_of_the_export_is_refused() -> None:
    plain, dilated = (Candidate(parse_program(POOLED.format(n)), ({},), "test") for n in (1, 2))
    lowers(plain, 17)
    lowers(dilated, 19)
    with pytest.raises(ModelError, match=r"AveragePool .* has no form at opset 17"):
        lowers(dilated, 17)  # dilated pools came with 19


def test_no_region_is_larger_than_allowed(make_context) -> None:
    sizes = {
        most: {
            len(m.region.nodes)
            for r in ranked(make_context(search={"top_groups": 99, "max_region_nodes": most}))
            for m in r.group.members
            if r.kind != "stage"
        }
        for most in (1, 2, 10)
    }
    assert sizes[1] == {1} and max(sizes[2]) == 2 and 2 < max(sizes[10]) <= 10


def test_groups_may_share_as_much_as_allowed(make_context) -> None:
    def shared(most: float) -> bool:
        found = ranked(make_context(search={"top_groups": 99, "max_overlap": most, "stages": 0}))
        nodes = [n for r in found for n in nodes_of(r)]
        return len(nodes) > len(set(nodes))

    assert not shared(0.0) and shared(1.0)


def test_whole_stages_come_after_the_groups_and_beside_them(make_context) -> None:
    groups = ranked(make_context(search={"top_groups": 2, "stages": 0}))
    both = ranked(make_context(search={"top_groups": 2, "stages": 1}))
    assert [r.group.key for r in both[:2]] == [r.group.key for r in groups]
    (whole,) = both[2:]
    assert whole.kind == "stage" and len(whole.group.members) == 1
    blocks = next(r for r in groups if r.kind == "block")
    assert nodes_of(whole) == nodes_of(blocks)  # both are searched, and the selection decides
    assert whole.member_s == pytest.approx(blocks.latency_s)


def test_no_stages_in_a_space_without_depths(make_context) -> None:
    context = make_context(search={"top_groups": 2})
    assert any(r.kind == "stage" for r in ranked(context))
    context.space = load_space("quick")
    assert not any(r.kind == "stage" for r in ranked(context))


@pytest.mark.parametrize(("most", "chosen"), [(0.0, "ac"), (0.4, "ac"), (0.6, "abc")])
def test_what_is_covered_counts_by_its_latency(most: float, chosen: str) -> None:
    """b has half of its latency in a; d costs nothing."""
    cost_s = {"1": 3.0, "2": 1.0, "3": 1.0, "4": 2.0, "5": 0.0}
    found = []
    for name, nodes in {"a": "12", "b": "23", "c": "4", "d": "5"}.items():
        member = SimpleNamespace(region=SimpleNamespace(nodes=tuple(nodes)))
        group = SimpleNamespace(key=name, members=(member,))
        found.append(Ranked(group, sum(cost_s[n] for n in nodes), 0, 0.0))  # type: ignore[arg-type]
    assert "".join(r.group.key for r in exploring._without_overlap(found, cost_s, most)) == chosen


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1.0]), (2, [1.0, 9.0]), (3, [1.0, 4.5, 9.0]), (9, [1.0, 1.1, 1.2, 4.5, 9.0])]
)
def test_finalists_are_spread_over_the_front(
    make_context, tmp_path, count: int, expected: list[float]
) -> None:
    candidate = separable(group_of(make_context(write_row(tmp_path / "row.onnx")).original, "a"))
    front = [Individual(candidate, Scores(s, 10.0 - s)) for s in (1.0, 1.1, 1.2, 4.5, 9.0)]
    assert [i.scores.latency_s for i in spread(front, count)] == expected


# the budget, and what is recorded


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Training is made up, and nothing was recorded; the digests of the candidates it was asked for."""
    asked: list[str] = []

    class Training:
        def __init__(self, *arguments: object) -> None:
            self.rungs = (self.probe,)

        async def probe(self, candidates: AsyncIterable[Candidate]) -> Results:
            async for candidate in candidates:
                asked.append(candidate.digest)
                yield 0.1 + 0.01 * len(asked)

    monkeypatch.setattr(exploring, "GroupTraining", Training)
    monkeypatch.setattr(Activations, "samples", lambda activations, group: ())
    yield asked


@pytest.fixture
def small(make_context, tmp_path):
    """A context on the row of convolutions with a short search."""

    def make(**settings: object) -> Context:
        search = {"space": "quick", "population": 4, "generations": 1, "top_groups": 3, "finalists": 1}
        return make_context(write_row(tmp_path / "row.onnx"), search={"stages": 0, **search}, **settings)

    return make


def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many results each generation had, as they come."""
    counts: list[int] = []
    tell = Evolution.tell

    def spied(evolution: Evolution, results: list[object]) -> None:
        counts.append(len(results))
        tell(evolution, results)  # type: ignore[arg-type]

    monkeypatch.setattr(Evolution, "tell", spied)
    return counts


def test_without_time_no_further_generation(small, untrained: list[str], monkeypatch) -> None:
    generations = told(monkeypatch)
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 61.0 * len(generations))
    context = small(budget_minutes=1)
    group = ranked(context)[0]
    run(explore(context, context.original, profiled(context), group, Activations(context.cache / "x")))
    assert len(generations) == 1 and any("ended the search early" in w for w in context.warnings)


def test_without_time_no_further_group(small, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []

    async def explore(context: Context, model: object, profile: object, one: Ranked, rest: object) -> str:
        searched.append(one.group.key)
        return one.group.key

    async def offers(*arguments: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr(searching, "explore", explore)
    monkeypatch.setattr(searching, "offers", offers)
    # half of the two minutes is fine-tuning's
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 31.0 * len(searched))

    def search() -> tuple[list[Ranked], Context]:
        context = small(budget_minutes=2)
        groups = ranked(context)
        activations = Activations(context.cache / "x")
        found, _ = search_groups(context, context.original, profiled(context), groups, activations, None)
        assert found == searched
        return groups, context

    groups, context = search()
    assert len(groups) == 3
    assert searched == [g.group.key for g in groups[:2]]
    assert any("after 2 of 3 groups" in w for w in context.warnings)
    # a resumed run searches the same, whatever its clock says
    searched.clear()
    monkeypatch.setattr(Journal, "spent_s", lambda journal: 0.0)
    assert search()[0] and searched == [g.group.key for g in groups[:2]]


def test_a_candidate_of_two_rounds_has_a_row_for_each(small, untrained: list[str], monkeypatch) -> None:
    """The second round's model has other weights behind the same group."""
    generations = told(monkeypatch)
    context = small()
    group = ranked(context)[0]
    changed = with_weights(context.original, {"head.w": np.zeros((CHANNELS, 4), np.float32)})
    for number, model in enumerate((context.original, changed)):
        run(explore(context, model, profiled(context), group, Activations(context.cache / str(number))))
    rows = list(context.journal.results("candidate"))
    assert len(rows) == sum(generations) > len({row["program"] for _, row in rows})


# what was recorded reaches the initial weights


def recorded(context: Context, group: Group, rows: int) -> Activations:
    """Made-up activations of a group's regions."""
    found = Activations(context.cache / "made up")
    found.folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for member in group.members:
        for name, type_ in zip(member.region.inputs, group.program.inputs, strict=True):
            np.save(found.path(name), rng.standard_normal(type_.at_batch(rows)).astype(np.float32))
    return found


def test_samples_are_rows_from_all_over_what_each_member_reads(small) -> None:
    context = small()
    group = ranked(context)[0].group
    activations = recorded(context, group, 200)
    samples = activations.samples(group)
    assert len(samples) == len(group.members)
    for member, inputs in zip(group.members, samples, strict=True):
        for name, array in zip(member.region.inputs, inputs, strict=True):
            count = sample_rows(group.program)
            assert len(array) == count > 2
            kept = np.load(activations.path(name))
            places = [np.flatnonzero((kept == row).all(axis=(1, 2, 3))).item() for row in array]
            assert places == sorted(set(places)) and (places[0], places[-1]) == (0, 199)
            gaps = np.diff(places)
            assert gaps.max() - gaps.min() <= 1
    assert original_candidate(group, samples).samples is samples
    fixed = parse_program("program(f32[1,4]) -> f32[1,4]\n%1 = relu %0\nreturn %1")
    assert activations.samples(Group("fixed", fixed, group.members)) == ()


@pytest.mark.parametrize(
    ("signature", "body", "rows"),
    [
        # 16x32x32 in windows of 3x3
        (
            "(f32[N,16,34,34]) -> f32[N,16,32,32,3,3]",
            "%1 = window %0 axes=(2,3) kernel=(3,3) stride=(1,1) dilation=(1,1)\nreturn %1",
            4_000_000 // (16 * 32 * 32 * 9),
        ),
        # larger between than at the ends
        (
            "(f32[N,1000]) -> f32[N,1000]",
            '%1 = param name="a" shape=(1000,90000)\n%2 = contract %0 %1 einsum="nk,km->nm"\n'
            '%3 = param name="b" shape=(90000,1000)\n%4 = contract %2 %3 einsum="nk,km->nm"\nreturn %4',
            4_000_000 // 90_000,
        ),
        # weights take the same room for any number of rows
        (
            "(f32[N,5000]) -> f32[N,5000]",
            '%1 = param name="a" shape=(5000,5000)\n%2 = contract %0 %1 einsum="nk,km->nm"\nreturn %2',
            128,
        ),
        # one row, however large
        ("(f32[N,64,300,300]) -> f32[N,64,300,300]", "%1 = relu %0\nreturn %1", 1),
    ],
)
def test_the_largest_value_bounds_the_samples(signature: str, body: str, rows: int) -> None:
    assert sample_rows(parse_program(f"program{signature}\n{body}")) == rows


def test_a_search_begins_with_the_samples(small, untrained: list[str], monkeypatch) -> None:
    context = small()
    one = ranked(context)[0]
    samples = tuple(
        tuple(np.zeros(t.at_batch(4), np.float32) for t in one.group.program.inputs)
        for _ in one.group.members
    )
    monkeypatch.setattr(Activations, "samples", lambda activations, group: samples)
    found = run(explore(context, context.original, profiled(context), one, Activations(context.cache / "x")))
    assert found.archive
    assert all(i.candidate.samples is samples for i in found.archive)

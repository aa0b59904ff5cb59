"""Groups side by side: nobody waits for another group, and what is found does not depend on it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from rows import write_row

from opadapt.errors import LostDevice
from opadapt.journal import Journal
from opadapt.measure.profile import Profile, profile
from opadapt.steps import searching
from opadapt.steps.activations import Activations, record
from opadapt.steps.context import Context
from opadapt.steps.explore import Ranked, rank_groups
from opadapt.steps.harm import Harm
from opadapt.steps.searching import search_groups

QUICK = {
    "space": "quick",
    "population": 4,
    "generations": 1,
    "top_groups": 3,
    "stages": 0,
    "finalists": 2,
    "finalist_steps": 4,
    "activation_samples": 32,
    "probe_samples": 16,
}
PATIENCE_S = 60.0


def ranked(context: Context) -> tuple[Profile, list[Ranked]]:
    profiled = profile(context.device, context.original, context.experiment.timing)
    return profiled, rank_groups(context, context.original, profiled)


@pytest.fixture
def row(make_context, tmp_path) -> Context:
    context: Context = make_context(write_row(tmp_path / "row.onnx"), search=QUICK)
    return context


def searched(context: Context, explore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the groups as they are found, with a made-up search of each."""

    async def offers(*arguments: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr(searching, "explore", explore)
    monkeypatch.setattr(searching, "offers", offers)
    profiled, groups = ranked(context)
    assert len(groups) == 3
    found, _ = search_groups(context, context.original, profiled, groups, Activations(context.cache), None)
    assert found == [one.group.key for one in groups]
    return found


def test_where_boards_measure_apart_a_group_waits_for_no_other(row: Context, monkeypatch) -> None:
    """The first group ends only when the second has ended."""
    ended: list[str] = []

    async def explore(context: Context, model: object, profile: object, one: Ranked, rest: object) -> str:
        first = one.group.key == groups[0].group.key
        async with asyncio.timeout(PATIENCE_S):
            while first and len(ended) < 2:
                await asyncio.sleep(0)
        ended.append(one.group.key)
        return one.group.key

    _, groups = ranked(row)
    keys = searched(row, explore, monkeypatch)
    assert ended == [*keys[1:], keys[0]]


def test_on_this_machine_a_group_begins_when_the_one_before_has_ended(row: Context, monkeypatch) -> None:
    log: list[str] = []

    async def explore(context: Context, model: object, profile: object, one: Ranked, rest: object) -> str:
        log.append("begins")
        for _ in range(5):
            await asyncio.sleep(0)
        log.append("ends")
        return one.group.key

    monkeypatch.setattr(Context, "apart", False)
    searched(row, explore, monkeypatch)
    assert log == ["begins", "ends"] * 3


def test_a_lost_device_ends_the_search_of_all_groups(row: Context, monkeypatch) -> None:
    cancelled: list[str] = []

    async def explore(context: Context, model: object, profile: object, one: Ranked, rest: object) -> str:
        if one.group.key == groups[1].group.key:
            raise LostDevice("rpi4: the board is gone")
        try:
            await asyncio.sleep(PATIENCE_S)
        except asyncio.CancelledError:
            cancelled.append(one.group.key)
            raise
        return one.group.key

    _, groups = ranked(row)
    with pytest.raises(LostDevice, match="the board is gone"):
        searched(row, explore, monkeypatch)
    assert cancelled == [groups[0].group.key]


def test_side_by_side_or_one_after_the_other_the_same_is_found(make_context, monkeypatch) -> None:
    context: Context = make_context(search=QUICK)
    found = []
    for apart in (True, False):
        folder = context.folder / f"apart-{apart}"
        (folder / "cache").mkdir(parents=True)
        mine = replace(context, folder=folder, cache=folder / "cache", journal=Journal(folder))
        monkeypatch.setattr(Context, "apart", apart)
        profiled, groups = ranked(mine)
        assert len(groups) > 1
        activations = record(mine, mine.dataset, mine.original, [r.group for r in groups], "original")
        harm = Harm(mine, mine.dataset, mine.original)
        explored, offered = search_groups(mine, mine.original, profiled, groups, activations, harm)
        mine.journal.close()
        found.append(
            (
                [(one.name, [i.candidate.digest for i in one.archive]) for one in explored],
                {key: offer.option for key, offer in offered.items()},
            )
        )
    assert found[0] == found[1]
    names, options = found[0]
    assert len(names) > 1 and options

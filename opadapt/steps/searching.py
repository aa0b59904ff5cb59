"""The search of all groups: side by side where boards measure apart from this machine, else one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from opadapt.measure.profile import Profile
from opadapt.model.graph import Model
from opadapt.steps.activations import Activations
from opadapt.steps.ahead import run, together
from opadapt.steps.context import Context
from opadapt.steps.explore import Explored, Ranked, explore
from opadapt.steps.harm import Harm
from opadapt.steps.offer import Offer, offers


def search_groups(
    context: Context,
    model: Model,
    profile: Profile,
    ranked: Sequence[Ranked],
    activations: Activations,
    harm: Harm,
) -> tuple[list[Explored], dict[str, Offer]]:
    """What was found for each group, in their order, and what it offers to the selection, by option key.

    With the search's share of the budget used up no further group is begun. A generation waits for the one before it,
    but no group for another: while one trains on this machine the boards measure for the next. What is chosen does
    not depend on which group was faster.
    """
    waiting = deque(enumerate(ranked))
    found: dict[int, tuple[Explored, dict[str, Offer]]] = {}

    async def work(context: Context) -> None:
        while waiting:
            number, one = waiting.popleft()
            if number and context.stop_search(activations.folder.name, one.group.key, 0):
                waiting.clear()
                context.warn(f"the budget ended the search after {number} of {len(ranked)} groups")
                break
            explored = await explore(context, model, profile, one, activations)
            found[number] = explored, {}
            if number and context.stop_search(activations.folder.name, one.group.key, "offers"):
                context.warn(
                    f"the budget left no time for the replacements of {one.group.members[0].region.name}"
                )
            else:
                offered = await offers(context, model, profile, explored, activations, harm)
                found[number] = explored, offered

    if context.apart:
        count = min(context.device.parallel + 1, len(ranked))  # one trains while every board measures
        run(together(_shown_apart(replace(context, side_by_side=count), work) for _ in range(count)))
    else:
        run(work(context))
    inorder = [found[number] for number in sorted(found)]
    return [explored for explored, _ in inorder], {k: o for _, offered in inorder for k, o in offered.items()}


async def _shown_apart(context: Context, work: Callable[[Context], Awaitable[None]]) -> None:
    with context.progress.part() as progress:
        await work(replace(context, progress=progress))

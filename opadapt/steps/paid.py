"""Work for the worker processes that is paid for once: through the journal, begun a window ahead."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from opadapt.steps.ahead import Begun, in_order
from opadapt.steps.context import Context


class Timed(Protocol):
    """A worker's result: anything that says how long it took."""

    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Item:
    """One piece of work: its key in the journal, how to make the task (it holds a model: made late), and how to make
    a row of its result."""

    key: str
    task: Callable[[], Any]
    row: Callable[[Any], Mapping[str, object]]


def known(context: Context, stage: str, items: Iterable[Item]) -> int:
    """How many of them the journal holds."""
    return sum(context.journal.find(stage, item.key) is not None for item in items)


async def paid_once(
    context: Context, stage: str, work: Callable[[Any], Timed], items: AsyncIterable[Item]
) -> AsyncGenerator[Any, None]:
    """The journal's row for every item, in order; what the journal lacks is computed by ``work`` and recorded.

    Items are taken as far ahead as the workers need, and each is recorded as soon as it is done.
    """
    journal, workers = context.journal, context.workers
    asked: set[str] = set()

    async def begun() -> AsyncGenerator[Begun[Timed, Any], None]:
        async for item in items:
            future = None
            if item.key not in asked and journal.find(stage, item.key) is None:
                asked.add(item.key)
                journal.start(stage, item.key)
                future = workers.submit(work, item.task())

            def record(result: Timed, item: Item = item) -> None:
                journal.finish(stage, item.key, item.row(result), result.seconds)

            def rows(item: Item = item) -> Iterator[Any]:
                yield journal.find(stage, item.key)

            yield Begun(future, record, rows)

    with workers.watched():
        async with contextlib.aclosing(
            in_order(begun(), max(workers.chunk // context.side_by_side, 1) - 1)
        ) as results:
            async for row in results:
                yield row

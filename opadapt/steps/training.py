"""Local distillation of candidates: each region trained alone to give what the original gives there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx

from opadapt.errors import Refused
from opadapt.ir.program import Binding
from opadapt.journal import content_key
from opadapt.lower import raise_model, to_model
from opadapt.model.regions import Group
from opadapt.search.candidate import Candidate
from opadapt.search.halving import rung_steps
from opadapt.search.stages import Results, Stage
from opadapt.steps.activations import Activations
from opadapt.steps.context import Context
from opadapt.steps.paid import Item, paid_once
from opadapt.steps.workers import DistilResult, DistilTask, run_distil
from opadapt.train.distil import DistilConfig


@dataclass(frozen=True)
class Trained:
    """A candidate's weights for one member after local distillation, and the error left (NMSE)."""

    binding: Binding
    nmse: float


class GroupTraining:
    """Distils candidates of one group in the worker processes, through the journal."""

    def __init__(self, context: Context, group: Group, activations: Activations) -> None:
        self.context, self.group, self.activations = context, group, activations
        distil, rungs = context.experiment.distil, context.experiment.search.rungs
        self._configs = [distil.model_copy(update={"steps": n}) for n in rung_steps(distil.steps, rungs)]

    @property
    def rungs(self) -> tuple[Stage, ...]:
        """The distillations of evolution, shortest first; each goes on from the weights that the one before it left."""
        return tuple(partial(self._rung, number) for number in range(len(self._configs)))

    async def _rung(self, number: int, candidates: AsyncIterable[Candidate]) -> Results:
        """Error of each candidate after a rung (from 0), on a few members in the middle of the group."""
        config = self._configs[number]
        members = self._probed()
        items = (
            self._item(c, m, config, self._left(c, m, number)) async for c in candidates for m in members
        )
        mine: list[Any] = []  # the rows of one candidate
        async with contextlib.aclosing(paid_once(self.context, "distil", run_distil, items)) as rows:
            async for row in rows:
                mine.append(row)
                if len(mine) == len(members):
                    yield _mean_error(mine)
                    mine.clear()

    async def finish(
        self, candidates: AsyncIterable[Candidate], rungs: Mapping[str, int], steps: int
    ) -> AsyncGenerator[tuple[Candidate, int, Trained], None]:
        """Longer distillation of every candidate for every member, in this order; what cannot be trained is left out.

        Where a candidate was tried out, it goes on from the weights it has there. ``rungs``: how many of them it went
        through, by its digest. The journal may hold more, of other runs: what they paid for changes no result.
        """
        config = self.context.experiment.distil.model_copy(update={"steps": steps})
        tasks: list[tuple[Candidate, int]] = []
        known = 0

        async def items() -> AsyncGenerator[Item, None]:
            nonlocal known
            async for candidate in candidates:
                for member in range(len(self.group.members)):
                    tasks.append((candidate, member))
                    start = self._left(candidate, member, rungs[candidate.digest])
                    item = self._item(candidate, member, config, start)
                    known += self.context.journal.find("distil", item.key) is not None
                    yield item

        done = 0
        async with contextlib.aclosing(paid_once(self.context, "distil", run_distil, items())) as rows:
            async for row in rows:
                candidate, member = tasks[done]
                done += 1
                if done >= known:
                    self.context.progress.advance(done, "trained")
                if "refused" not in row:
                    binding = self.context.journal.load_arrays(row["weights"])
                    yield candidate, member, Trained(binding, row["nmse"])

    def _probed(self) -> list[int]:
        count = len(self.group.members)
        wanted = min(self.context.experiment.search.probe_members, count)
        return sorted({(2 * i + 1) * count // (2 * wanted) for i in range(wanted)})

    def _left(self, candidate: Candidate, member: int, rungs: int) -> str | None:
        """Where the journal keeps the weights that so many rungs left; None where the member was not tried out, or
        without result."""
        weights: str | None = None
        for config in self._configs[:rungs] if member in self._probed() else []:
            row = self.context.journal.find("distil", self._key(candidate, member, config, weights))
            weights = None if row is None else row.get("weights")
        return weights

    def _key(self, candidate: Candidate, member: int, config: DistilConfig, start: str | None = None) -> str:
        """Weights are stored under the names of the program's parameters, which its digest does not see, and begin
        as the rules of the space say."""
        region = self.group.members[member].region.name
        names = tuple(candidate.program.params)
        begun = () if start is None else (start,)
        return content_key(
            self.activations.folder.name,
            region,
            candidate.digest,
            names,
            self.context.space.digest,
            config.model_dump(),
            *begun,
        )

    def _item(
        self, candidate: Candidate, member: int, config: DistilConfig, start: str | None = None
    ) -> Item:
        """``start``: the weights to begin with, by their name in the journal; None: the candidate's own."""
        return Item(
            self._key(candidate, member, config, start),
            lambda: self._task(candidate, member, config, start),
            lambda result: self._stored(candidate, member, result),
        )

    def _task(self, candidate: Candidate, member: int, config: DistilConfig, start: str | None) -> DistilTask:
        region = self.group.members[member].region
        binding = candidate.bindings[member] if start is None else self.context.journal.load_arrays(start)
        student = to_model(candidate.program, binding, None)
        return DistilTask(
            student.SerializeToString(),
            tuple(self.activations.path(name) for name in region.inputs),
            self.activations.path(region.output),
            config,
            self.context.seed("distil", region.name, candidate.digest),
        )

    def _stored(self, candidate: Candidate, member: int, result: DistilResult) -> dict[str, object]:
        if result.student is None:
            return {"refused": result.refused}
        trained = onnx.load_from_string(result.student)
        binding = raise_model(candidate.program, candidate.bindings[member], trained)
        return {"nmse": result.nmse, "weights": self.context.journal.save_arrays(binding)}


def _mean_error(rows: Sequence[Any]) -> float | Refused:
    refused = [row["refused"] for row in rows if "refused" in row]
    return Refused("distil", refused[0]) if refused else float(sum(row["nmse"] for row in rows) / len(rows))

"""Latency of candidates: measured inside the whole model, with every member of the group replaced at once.

A region alone would be measured with layout conversions at its borders that the whole model does not have (on x86
ONNX Runtime keeps convolutions in a blocked layout), and one member's share of a whole model drowns in noise. All
members at once, divided by their number, shows what one of them is worth where it stands.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from functools import partial
from typing import Any

from opadapt.errors import Refused
from opadapt.ir.program import Binding, Program
from opadapt.journal import content_key
from opadapt.measure.timing import Timing
from opadapt.model.graph import Model
from opadapt.model.regions import Group, Region
from opadapt.model.save import at_batch
from opadapt.model.splice import splice
from opadapt.search.candidate import Candidate
from opadapt.search.stages import Results, stream
from opadapt.steps.ahead import Begun, in_order
from opadapt.steps.context import Context
from opadapt.steps.timed import Hands, Readings

TOGETHER = 4  # candidates timed in one request, interleaved with the model they change


def parts_of(group: Group, candidate: Candidate) -> dict[Region, tuple[Program, Binding]]:
    """A candidate in place of every member of a group."""
    return {
        member.region: (candidate.program, binding)
        for member, binding in zip(group.members, candidate.bindings, strict=True)
    }


def spliced(model: Model, group: Group, candidate: Candidate) -> Model:
    """The model with all members of a group replaced by a candidate."""
    return splice(model, parts_of(group, candidate))


class GroupLatency:
    """Measures candidates of one group on the device, through the journal."""

    def __init__(
        self, context: Context, model: Model, group: Group, wall_s: float, member_s: float, timing: Timing
    ) -> None:
        self.context, self.model, self.group, self.timing = context, model, group, timing
        self.wall_s, self.member_s = wall_s, member_s
        self.base = at_batch(model, 1).SerializeToString()
        self.base_name = hashlib.sha256(self.base).hexdigest()
        self.scope = content_key(
            context.measured_on,
            timing.key(),
            self.base_name,
            [m.region.name for m in group.members],
        )

    def key(self, candidate: Candidate) -> str:
        return content_key(self.scope, candidate.digest)

    async def __call__(self, candidates: AsyncIterable[Candidate]) -> Results:
        """Latency of one member in seconds, or a refusal, per candidate. Boards that measure apart from this machine
        are kept busy ahead of the results that are taken."""
        with Hands(self.context.device, self.timing, self.context.apart, self.context.side_by_side) as hands:
            try:
                begun = self._begun(candidates, hands)
                async with contextlib.aclosing(in_order(begun, hands.ahead)) as results:
                    async for result in results:
                        yield result
            finally:
                self.context.tell_losses()

    def timed(self, candidates: Sequence[Candidate]) -> Results:
        """The same, shown as progress."""
        known = sum(self._find(self.key(c)) is not None for c in candidates)
        return self.context.counted(self(stream(candidates)), "timed", known)

    async def _begun(
        self, candidates: AsyncIterable[Candidate], hands: Hands
    ) -> AsyncGenerator[Begun[Readings, float | Refused], None]:
        """Requests of up to ``TOGETHER`` candidates that the journal does not know, each with those before them that
        it does."""
        asked: set[str] = set()
        unit: list[Candidate] = []
        unknown: list[Candidate] = []
        async for candidate in candidates:
            unit.append(candidate)
            key = self.key(candidate)
            if key not in asked and self._find(key) is None:
                asked.add(key)
                unknown.append(candidate)
            if len(unknown) == TOGETHER:
                yield self._begin(unit, unknown, hands)
                unit, unknown = [], []
        if unit:
            yield self._begin(unit, unknown, hands)

    def _begin(
        self, unit: Sequence[Candidate], unknown: Sequence[Candidate], hands: Hands
    ) -> Begun[Readings, float | Refused]:
        for candidate in unknown:
            self.context.journal.start("latency", self.key(candidate))
        makers = [partial(self._changed, candidate) for candidate in unknown]
        return Begun(
            hands.begin(self.base, makers) if unknown else None,
            lambda readings: self._record(unknown, readings),
            lambda: map(self._read, unit),
        )

    def _changed(self, candidate: Candidate) -> bytes:
        changed: bytes = at_batch(spliced(self.model, self.group, candidate), 1).SerializeToString()
        return changed

    def _find(self, key: str) -> Any | None:
        return self.context.journal.find("latency", key)

    def _read(self, candidate: Candidate) -> float | Refused:
        found = self._find(self.key(candidate))
        assert found is not None
        if "refused" in found:
            return Refused("latency", found["refused"])
        saved_s = self.wall_s * (1 - found["ratio"]) / len(self.group.members)
        return float(max(self.member_s - saved_s, 0.0))

    def _record(self, candidates: Sequence[Candidate], readings: Readings) -> None:
        """Raises LostDevice, after all that is known is recorded, where the device was lost before the rest was."""
        journal = self.context.journal
        timed = sum(isinstance(found, float) for found in readings.found)
        for candidate, found in zip(candidates, readings.found, strict=True):
            key = self.key(candidate)
            if found is None:
                continue
            if isinstance(found, str):
                journal.finish("latency", key, {"refused": found}, 0.0)
                continue
            journal.finish("latency", key, {"ratio": found}, readings.seconds / timed)
        for number, (board, base_s) in enumerate(readings.base):
            if board is not None:
                key = content_key(self.scope, number, *(c.digest for c in candidates))
                journal.once("board", key, partial(_row, board, self.base_name, base_s))
        if readings.lost is not None:
            raise readings.lost


def _row(board: str, base: str, latency_s: float) -> dict[str, object]:
    return {"board": board, "base": base, "latency_s": latency_s}

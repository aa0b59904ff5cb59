"""Latency of candidates: measured inside the whole model, with every member of the group replaced at once.

A region alone would be measured with layout conversions at its borders that the whole model does not have (on x86
ONNX Runtime keeps convolutions in a blocked layout), and one member's share of a whole model drowns in noise. All
members at once, divided by their number, shows what one of them is worth where it stands.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence

from opadapt.errors import DeviceError, OpadaptError, Refused
from opadapt.journal import content_key
from opadapt.measure.timing import Timing, ratio
from opadapt.model.graph import Model
from opadapt.model.regions import Group
from opadapt.model.save import at_batch
from opadapt.model.splice import splice
from opadapt.search.candidate import Candidate
from opadapt.search.stages import Results
from opadapt.steps.context import Context

TOGETHER = 4  # candidates timed in one request, interleaved with the model they change


def spliced(model: Model, group: Group, candidate: Candidate) -> Model:
    """The model with all members of a group replaced by a candidate."""
    return splice(
        model,
        {
            member.region: (candidate.program, binding)
            for member, binding in zip(group.members, candidate.bindings, strict=True)
        },
    )


class GroupLatency:
    """Measures candidates of one group on the device, through the journal."""

    def __init__(
        self, context: Context, model: Model, group: Group, wall_s: float, member_s: float, timing: Timing
    ) -> None:
        self.context, self.model, self.group, self.timing = context, model, group, timing
        self.wall_s, self.member_s = wall_s, member_s
        self.base = at_batch(model, 1).SerializeToString()
        self.scope = content_key(
            context.measured_on,
            timing.model_dump(),
            hashlib.sha256(self.base).hexdigest(),
            [m.region.name for m in group.members],
        )

    def key(self, candidate: Candidate) -> str:
        return content_key(self.scope, candidate.digest)

    def __call__(self, candidates: Sequence[Candidate]) -> Results:
        """Latency of one member in seconds, or a refusal, per candidate."""
        journal = self.context.journal
        unknown = {self.key(c): c for c in candidates if journal.find("latency", self.key(c)) is None}
        missing = list(unknown.values())
        for start in range(0, len(missing), TOGETHER):
            self._measure(missing[start : start + TOGETHER])
            self.context.progress.advance(
                len(candidates) - len(missing) + min(start + TOGETHER, len(missing)), "timed"
            )
        return [self._read(c) for c in candidates]

    def _read(self, candidate: Candidate) -> float | Refused:
        found = self.context.journal.find("latency", self.key(candidate))
        assert found is not None
        return Refused("latency", found["refused"]) if "refused" in found else float(found["latency_s"])

    def _measure(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self.context.journal.start("latency", self.key(candidate))
        models: list[bytes] = [self.base]
        timed: list[Candidate] = []
        for candidate in candidates:
            try:
                models.append(at_batch(spliced(self.model, self.group, candidate), 1).SerializeToString())
                timed.append(candidate)
            except OpadaptError as error:
                self._record(candidate, {"refused": error.message})
        if not timed:
            return
        began = time.monotonic()
        try:
            times = self.context.device.time(models, self.timing)
        except DeviceError as error:
            if len(timed) > 1:  # one of them broke the measuring process: find out which
                for candidate in timed:
                    self._measure([candidate])
                return
            # is it the candidate, or the device? what fails with the base alone is no candidate's fault
            self.context.device.time([self.base], self.timing)
            self._record(timed[0], {"refused": error.message})
            return
        for i, candidate in enumerate(timed, start=1):
            relative = ratio(times, i, 0)  # candidate over base
            saved_s = self.wall_s * (1 - relative.value) / len(self.group.members)
            result = {"latency_s": max(self.member_s - saved_s, 0.0), "ratio": relative.value}
            self._record(candidate, result, (time.monotonic() - began) / len(timed))

    def _record(self, candidate: Candidate, result: Mapping[str, object], seconds: float = 0.0) -> None:
        self.context.journal.finish("latency", self.key(candidate), result, seconds)

"""This machine as a device: the agent as a subprocess, and nothing else computing while it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.device import NDArrayAny, OnProcess, RawProfile
from opadapt.measure.facts import Facts
from opadapt.measure.lock import MeasuringLock, measuring_lock
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.measure.transport import LocalTransport, Transport


class LocalDevice(AgentDevice):
    """AgentDevice under the machine's measuring lock: timing takes it exclusively, running shared."""

    def __init__(
        self,
        facts: Facts,
        threads: int,
        transport: Transport | None = None,
        lock: MeasuringLock | None = None,
    ) -> None:
        super().__init__(facts, transport or LocalTransport(), threads)
        self.lock = lock or measuring_lock()

    def conditions(self) -> dict[str, Any]:
        with self.lock.busy():
            return super().conditions()

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        self.hello()
        with self.lock.quiet():
            return super().time(models, timing, energy, on_process)

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        self.hello()
        with self.lock.quiet():
            return super().profile(model, timing)

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        with self.lock.busy():
            return super().run(model, feeds)

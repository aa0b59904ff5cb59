"""What a device does: it times, profiles and runs ONNX models. What is known about it is in ``facts``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from opadapt.measure.facts import Facts
from opadapt.measure.timing import BlockTimes, Timing

NDArrayAny = NDArray[np.generic]
SAME = ("onnxruntime", "machine", "cpu")  # samples are filed together only where these are the same


@dataclass(frozen=True)
class Kernel:
    """One node of the optimised model: its profiled time per run, inflated by the profiling itself."""

    name: str
    op_type: str
    latency_s: float


@dataclass(frozen=True, eq=False)
class RawProfile:
    """What a device tells about one model: kernels in execution order, the model as optimised there
    (serialised ONNX), and un-profiled block times of the same model (``[1, blocks]``)."""

    kernels: tuple[Kernel, ...]
    optimized: bytes
    times: BlockTimes


OnProcess = Callable[[int], None]


class Device(Protocol):
    """Context manager; models are serialised ONNX files with static shapes. Failures raise DeviceError."""

    facts: Facts
    threads: int

    @property
    def parallel(self) -> int:
        """How many requests it works on at once: the boards of a fleet that are left; 1 for all others."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def hello(self) -> Mapping[str, Any]:
        """What the device says about itself: versions, CPU, cores, memory."""

    def conditions(self) -> dict[str, Any]:
        """Heat, clocks, throttling and load now, with the versions that every sample is filed under."""

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        """Latency of each model on made-up inputs, blocks interleaved. With ``energy`` also the joules of an
        inference, where the facts name a power source and it is there. ``on_process`` is told how many of the
        timing's processes have measured, after each of them."""

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        """Kernel times, the optimised model and un-profiled times of one model."""

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        """Outputs by name."""

"""How a training step runs fastest here: threads, memory layout and precision, chosen by a short measured trial."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["auto", "float32", "bfloat16"]
Layout = Literal["auto", "channels_last", "contiguous"]
_WORTH = 0.1  # of a training's time, for the trial before it
LEAST_PART = 16  # samples of a replica: fewer are no fair sample for the statistics of a normalisation


@contextmanager
def settings_put_back() -> Iterator[None]:
    """Training sets torch's threads and switches denormals off for the thread that it runs in; afterwards both are as
    numpy and everybody else expect them."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


@dataclass(frozen=True)
class Execution:
    """One way to run the steps, and how long one took in the trial (seconds; 0 where nothing was compared)."""

    device: str
    threads: int  # of each replica
    channels_last: bool
    bfloat16: bool
    replicas: int = 1  # parts that a batch is cut into, computed side by side
    step_s: float = 0.0

    def enter_thread(self) -> None:
        """Set torch's threads and denormal flushing for the calling thread."""
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)

    def apply(self, *modules: nn.Module) -> None:
        """``enter_thread``, and bring the modules to the device and layout."""
        self.enter_thread()
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        for module in modules:
            module.to(self.device)
            for weight in module.parameters():
                if weight.dim() == 4:
                    weight.data = weight.data.contiguous(memory_format=form)

    def layout(self, x: torch.Tensor) -> torch.Tensor:
        """A batch on the device, images in the layout."""
        x = x.to(self.device)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16; elsewhere autocast emulates it and only costs time."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # a torch without oneDNN, as on a Mac: nothing there computes in bfloat16
        return False


def cores() -> int:
    """Cores this process may run on; all of the machine where the system does not tell, as on a Mac."""
    allowed = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if allowed is None else len(allowed(0))


def candidates(
    precision: Precision,
    threads: int | None,
    layout: Layout = "auto",
    replicas: int | None = None,
    batch: int = LEAST_PART,
) -> list[Execution]:
    """The executions worth a trial on this machine. ``threads``: of all replicas together; ``batch``: samples."""
    if torch.cuda.is_available():
        has_bfloat16, device, ways = torch.cuda.is_bf16_supported(), "cuda", [(threads or 1, 1)]
    else:
        most = threads or cores()
        has_bfloat16, device = cpu_has_bfloat16(), "cpu"
        if replicas:
            parts = min(replicas, batch)
            ways = [(max(most // parts, 1), parts)]
        elif threads or most == 1:
            ways = [(most, 1)]
        else:
            # One thread wins where others use the other cores: waiting threads spin against them.
            ways = [(most, 1), (1, min(most, batch // LEAST_PART)), (1, 1)]
            ways = [way for number, way in enumerate(ways) if way[1] and way not in ways[:number]]
    options = {"auto": [False, True] if has_bfloat16 else [False], "float32": [False], "bfloat16": [True]}
    layouts = {"auto": [True, False], "channels_last": [True], "contiguous": [False]}
    return [
        Execution(device, count, last, bfloat16, parts)
        for count, parts in ways
        for bfloat16 in options[precision]
        for last in layouts[layout]
    ]


def fastest(
    options: list[Execution],
    ready: Callable[[Execution], Callable[[], object]],
    repeats: int = 4,
    limit_s: float = 60.0,
    steps: float = math.inf,
) -> Execution:
    """Time a step under every option, the options interleaved, and return the one with the shortest step.

    ``ready`` makes what the step of an option needs, untimed, and returns the step, which must leave nothing
    changed. The first round warms up; after ``limit_s`` seconds no round is begun. After one more round, none is
    begun once the trial has taken a tenth of what ``steps`` of the shortest take, those that the training will have.
    """
    if len(options) == 1:
        return options[0]
    tried = [ready(option) for option in options]
    best = [float("inf")] * len(options)
    begun = time.perf_counter()
    for repeat in range(1 + repeats):
        for i, step in enumerate(tried):
            started = time.perf_counter()
            step()
            if options[i].device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            best[i] = seconds if repeat == 0 else min(best[i], seconds)
        worth_s = _WORTH * steps * min(best) if repeat else limit_s
        if time.perf_counter() - begun > min(limit_s, worth_s):
            break
    winner = min(range(len(options)), key=best.__getitem__)
    return replace(options[winner], step_s=best[winner])

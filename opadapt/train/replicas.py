"""Data parallelism over threads: each takes a part of the batch through a copy of the module that shares its weights.

Small convolutions do not fill several cores: on two cores, two threads with half a batch each took 0.6 to 0.8 of the
time of one step on both. Normalisations see the statistics of a part, and the module keeps those of the first, as in
torch.nn.DataParallel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from opadapt.train.batches import Batch
from opadapt.train.speed import Execution

PartLoss = Callable[[nn.Module, Batch], Tensor]


class Replicas:
    """A module on the device and layout of ``execution``, and as many copies of it as that asks for."""

    def __init__(self, module: nn.Module, execution: Execution) -> None:
        self.modules = [module, *(_sharing(module) for _ in range(execution.replicas - 1))]
        self._pool: ThreadPoolExecutor | None = None
        if execution.replicas > 1:
            self._pool = ThreadPoolExecutor(execution.replicas, initializer=execution.enter_thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def backward(self, loss: PartLoss, batch: Batch) -> float:
        """Gradients of the batch's mean loss in the module's weights; returns that loss. The batch has at least one
        sample per replica."""
        parts = batch.split(len(self.modules))

        def part(number: int) -> float:
            module = self.modules[number]
            module.train()
            module.zero_grad(set_to_none=True)
            own = parts[number]
            value = loss(module, own) * (len(own.rows) / len(batch.rows))
            value.backward()  # type: ignore[no-untyped-call]
            return float(value.detach())

        if self._pool is None:
            return part(0)
        values = list(self._pool.map(part, range(len(parts))))
        for first, *others in zip(*(m.parameters() for m in self.modules), strict=True):
            for other in others:
                if other.grad is not None:
                    first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
        return sum(values)


def _sharing(module: nn.Module) -> nn.Module:
    """A copy with the same weights in memory; what it counts (statistics) is its own."""
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for own, shared in zip(copied.parameters(), module.parameters(), strict=True):
            own.data = shared.data
    return copied

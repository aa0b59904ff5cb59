"""Local distillation: train one region's program to give the original's activations, away from the whole model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from opadapt.errors import DataError, Refused, first_line
from opadapt.torchgraph import build, parameter_names, write_back
from opadapt.train.memory import out_of_memory, ran_out
from opadapt.train.speed import settings_put_back
from opadapt.train.statistics import estimate_statistics

_TINY = 1e-12
_STATISTICS_BATCHES = 8

Activations = NDArray[np.float32]


class DistilConfig(BaseModel):
    """How a region is trained on recorded activations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(120, ge=0, description="optimiser steps")
    batch: int = Field(64, ge=1, description="samples per step")
    learning_rate: float = Field(5e-3, gt=0, description="largest rate of Adam's one-cycle schedule")
    warmup_fraction: float = Field(0.2, gt=0, lt=1, description="share of the steps with a rising rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, per step at the current rate (AdamW)")
    loss: Literal["global", "channel"] = Field(
        "global", description="squared error over variance: of everything together, or averaged over channels"
    )
    held_back_fraction: float = Field(0.125, gt=0, lt=1, description="samples that only measure the NMSE")
    bfloat16: bool = Field(False, description="autocast to bfloat16 (pays where the CPU has it)")


@dataclass(frozen=True, eq=False)
class Distilled:
    """A trained region. NMSE: squared error over the target's variance about its channel means, held-back rows."""

    proto: onnx.ModelProto
    nmse: float
    start_nmse: float
    steps: int
    seconds: float


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What torch raises on a region is the region's fault, unless memory runs out."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        if ran_out(error):
            raise out_of_memory(error) from error
        raise Refused("distil", f"torch: {first_line(error)}") from error


@settings_put_back()
@_refusing()
def distil(
    student: onnx.ModelProto,
    inputs: Sequence[Activations],
    target: Activations,
    config: DistilConfig,
    seed: int,
    threads: int = 1,
) -> Distilled:
    """Train ``student`` (a standalone region, batch free) so that ``inputs`` give ``target``.

    ``inputs`` are [samples, ...] in graph order and ``target`` is [samples, channels, ...]; memory maps are
    read batch by batch. The better of the start and the end is returned. Raises Refused("torch", ...) for an
    operator that cannot be trained, Refused("distil", ...) where the error is not finite or torch does not run
    the region, DataError for activations that do not go together, RunError where memory runs out.
    """
    counts = {len(x) for x in inputs} | {len(target)}
    if len(counts) != 1 or len(target) < 2:
        raise DataError(
            "activations do not go together",
            expected="two samples at least, as many inputs as targets",
            found=", ".join(map(str, sorted(counts))),
        )
    started = time.perf_counter()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)  # dropout, where the region has some
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(target))
    held = min(max(1, round(config.held_back_fraction * len(target))), len(target) - 1)
    region = _Region(build(student), inputs, target, config)
    train, test = order[held:], np.sort(order[:held])
    region.estimate(train)
    initial = write_back(region.module, student)
    start = region.nmse(test)
    trainable = bool(parameter_names(region.module))
    if not math.isfinite(start) and not trainable:
        raise Refused("distil", "the region's output is not finite")
    if config.steps == 0 or not trainable:
        return Distilled(initial, start, start, 0, time.perf_counter() - started)
    _train(region, train, config, rng)
    region.estimate(train)
    nmse = region.nmse(test)
    if not math.isfinite(nmse) and not math.isfinite(start):
        raise Refused("distil", "the region's output is not finite before and after training")
    better = not math.isfinite(start) or nmse < start
    proto = write_back(region.module, student) if better else initial
    return Distilled(proto, nmse if better else start, start, config.steps, time.perf_counter() - started)


class _Region:
    """The region as a torch module, with its recorded activations."""

    def __init__(
        self, module: nn.Module, inputs: Sequence[Activations], target: Activations, config: DistilConfig
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.target = target
        self.config = config
        self.axes = [0, *range(2, target.ndim)]  # all but the channels

    def batch(self, rows: NDArray[np.int64]) -> tuple[list[Tensor], Tensor]:
        arrays = [
            torch.from_numpy(np.asarray(a[rows], dtype=np.float32)) for a in (*self.inputs, self.target)
        ]
        return arrays[:-1], arrays[-1]

    def output(self, inputs: Sequence[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            result: Tensor = self.module(*inputs)
        return result.float()

    def in_order(self, rows: NDArray[np.int64]) -> Iterator[tuple[list[Tensor], Tensor]]:
        size = max(self.config.batch, 32)
        return (self.batch(np.sort(rows[i : i + size])) for i in range(0, len(rows), size))

    def estimate(self, rows: NDArray[np.int64]) -> None:
        """Batch-normalisation statistics on the first rows."""
        some = rows[: _STATISTICS_BATCHES * self.config.batch]
        estimate_statistics(self.module, self.in_order(some), lambda batch: self.output(batch[0]))

    def scale(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Mean [1,C,1..] and variance [C] of the target's channels over some rows."""
        _, target = self.batch(np.sort(rows))
        mean = target.mean(dim=self.axes, keepdim=True)
        return mean, (target - mean).square().mean(dim=self.axes)

    def ratio(self, error: Tensor, variance: Tensor) -> Tensor:
        """Squared error per channel [C] over variance per channel [C]: one number."""
        if self.config.loss == "global":
            return error.mean() / variance.mean().clamp_min(_TINY)
        # A channel that hardly varies would otherwise outweigh all others.
        return (error / variance.clamp_min(1e-3 * float(variance.mean()) + _TINY)).mean()

    @torch.no_grad()
    def nmse(self, rows: NDArray[np.int64]) -> float:
        self.module.eval()
        error, squares, count = 0.0, 0.0, 0
        sums: Any = 0.0
        for inputs, target in self.in_order(rows):
            error += float((self.output(inputs) - target).double().square().sum())
            squares += float(target.double().square().sum())
            sums = sums + target.double().sum(dim=self.axes)
            count += target.numel()
        per_channel = count / sums.numel()
        total = squares - float((sums**2).sum()) / per_channel
        return float(error / max(total, _TINY * count))


def _train(region: _Region, rows: NDArray[np.int64], config: DistilConfig, rng: np.random.Generator) -> None:
    module = region.module
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    rising = max(config.warmup_fraction, 2 / (config.steps + 1))  # one step at least: torch divides by them
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=rising
    )
    _, variance = region.scale(rows[:1024])
    size = min(config.batch, len(rows))
    module.train()
    for rows_now in _batches(rows, size, config.steps, rng):
        inputs, target = region.batch(rows_now)
        error = (region.output(inputs) - target).square().mean(dim=region.axes)
        loss = region.ratio(error, variance)
        if not torch.isfinite(loss):
            raise Refused("distil", f"the loss became {loss.item()} at rate {config.learning_rate}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    module.eval()


def _batches(
    rows: NDArray[np.int64], size: int, steps: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """``steps`` batches of exactly ``size`` rows, each epoch in a new order."""
    order = rng.permutation(rows)
    at = 0
    for _ in range(steps):
        if at + size > len(order):
            order, at = rng.permutation(rows), 0
        yield np.sort(order[at : at + size])  # sorted: a memory map is read forwards
        at += size

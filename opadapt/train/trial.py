"""The trial before a training: steps of that very training, under every way of execution, timed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from opadapt.train.batches import Batch
from opadapt.train.replicas import Replicas
from opadapt.train.speed import Execution, fastest
from opadapt.train.teacher import Teacher

Loss = Callable[[Execution, Teacher, nn.Module, Batch], Tensor]


def fastest_step(
    options: list[Execution],
    student: nn.Module,
    teacher: Teacher,
    loss: Loss,
    batch: Callable[[], Batch],
    steps: float,
) -> Execution:
    """The option whose training step is the shortest; ``batch`` makes that of a step, ``steps`` are to be trained.

    What the steps need is made before any is timed. Options share what they agree in, so that memory is bounded: a
    copy of the student per layout, a session of the teacher per number of threads.
    """
    copies: dict[bool, nn.Module] = {}
    with contextlib.ExitStack() as pools:

        def ready(execution: Execution) -> Callable[[], object]:
            if execution.channels_last not in copies:
                copies[execution.channels_last] = copy.deepcopy(student)
            copied = copies[execution.channels_last]
            execution.apply(copied)
            teacher.apply(execution)
            replicas = pools.enter_context(Replicas(copied, execution))

            def step() -> None:
                execution.enter_thread()
                teacher.apply(execution)
                replicas.backward(partial(loss, execution, teacher), batch())

            return step

        return fastest(options, ready, steps=steps)

"""How much faster a model is than another, and how much faster than it is now the round's model is to become."""

from __future__ import annotations

import hashlib

from opadapt.journal import content_key
from opadapt.measure.device import OnProcess
from opadapt.measure.profile import Profile
from opadapt.measure.timing import Timing, in_processes, ratio
from opadapt.model.graph import Model
from opadapt.model.save import at_batch
from opadapt.steps.context import Context

PROCESSES = 9  # that measure anew; of 9 the interval leaves out one on either side, of 8 none


def speedup(
    context: Context, base: Model, model: Model, timing: Timing, on_process: OnProcess | None = None
) -> float:
    """Measured in turns with the base; above 1 where the model is faster. Raises DeviceError."""
    models = [at_batch(m, 1).SerializeToString() for m in (base, model)]
    key = content_key(context.measured_on, *(hashlib.sha256(m).hexdigest() for m in models), timing.key())

    def compute() -> float:
        return ratio(context.device.time(models, timing, on_process=on_process), 0, 1).value

    return float(context.journal.once("assembled", key, compute))


def aim(context: Context, baseline: Profile, model: Model) -> float | None:
    """The speed-up over ``model`` that the target demands; None without a target.

    Everything that follows rests on this one ratio, so it is measured as the exported file is: two profiles, one
    after the other, differ by a tenth without any cause.
    """
    target = context.experiment.target
    if target is None:
        return None
    wanted = target.as_speedup(baseline.wall.value)
    if model is context.original:
        return wanted
    timing = in_processes(context.experiment.timing, PROCESSES)
    context.progress.stage("measure this round's model against the original", timing.processes)
    return wanted / speedup(context, context.original, model, timing, context.progress.advance)

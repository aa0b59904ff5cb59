"""The final measurement: the exported file against the original, on the device, as any user would load them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from pydantic import BaseModel

from opadapt.journal import content_key
from opadapt.measure.timing import Estimate, floor_of, in_processes, median_latency, ratio
from opadapt.model.graph import Model
from opadapt.model.load import read
from opadapt.model.shapes import set_dims
from opadapt.report.data import DeviceState, EnergyFacts, LatencyFacts, Scalar, flat_conditions
from opadapt.report.state import energy_of, state_of
from opadapt.steps.context import Context
from opadapt.steps.speedup import PROCESSES


@dataclass(frozen=True)
class Final:
    """What was measured, and in which state the device was; energy where something measures it."""

    latency: LatencyFacts
    energy: EnergyFacts | None
    state: DeviceState | None
    conditions: dict[str, Scalar]


def compare_files(context: Context, path: Path, processes: int = PROCESSES) -> Final:
    """The exported file against the original file, in several processes; with an A/A floor. One measurement, so that
    all of it runs on one board; the conditions name it. Raises DeviceError."""
    timing = in_processes(context.experiment.timing, processes)
    files = [context.experiment.model, path]
    models = [_deployed(read(file), context.original).SerializeToString() for file in files]
    key = content_key(context.measured_on, *(hashlib.sha256(m).hexdigest() for m in models), timing.key())

    def compute() -> dict[str, Any]:
        context.progress.stage(f"measure {path.name} against the original", timing.processes)
        times = context.device.time(
            [models[0], models[1], models[0]], timing, energy=True, on_process=context.progress.advance
        )
        return {
            "original": _row(median_latency(times, 0)),
            "adapted": _row(median_latency(times, 1)),
            "speedup": _row(ratio(times, 0, 1)),
            "floor": floor_of(times, 0, 2),
            "energy": _values(energy_of(times)),
            "state": _values(state_of(times.conditions)),
            "conditions": flat_conditions(times.conditions),
        }

    row = context.journal.once("final", key, compute)
    latency = LatencyFacts(
        original_s=Estimate(**row["original"]),
        adapted_s=Estimate(**row["adapted"]),
        speedup=Estimate(**row["speedup"]),
        noise_floor=row["floor"],
    )
    # journals of earlier versions have neither; JSON has no tuples
    energy = EnergyFacts.model_validate(row["energy"]) if row.get("energy") else None
    state = DeviceState.model_validate(row["state"], strict=False) if row.get("state") else None
    return Final(latency, energy, state, dict(row["conditions"]))


def warn_if_hot(context: Context, state: DeviceState | None) -> None:
    """Say so where the device did not cool down for a final measurement."""
    if state is not None and state.too_hot:
        context.warn(
            f"the device was still too hot for the final measurement after waiting {state.waited_s:.0f} s: "
            "what it shows is the speed of a hot device"
        )


def _deployed(proto: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """The file as it would be deployed: untouched but for its inputs, pinned to the shapes measured (batch 1)."""
    for info in proto.graph.input:
        if info.name in model.types and info.name in model.inputs:
            set_dims(info, model.types[info.name].at_batch(1))
    return proto


def _row(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _values(facts: BaseModel | None) -> dict[str, Any] | None:
    return None if facts is None else facts.model_dump(mode="json")

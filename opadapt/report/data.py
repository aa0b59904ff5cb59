"""The report of a run: everything the terminal summary and the HTML page show, and nothing computed later."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from opadapt.errors import RunError, first_line
from opadapt.measure.timing import Estimate, faster

SCHEMA_VERSION = 1
Scalar = str | int | float | bool | None


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, revalidate_instances="always"
    )


class ModelFacts(_Part):
    """One model file."""

    path: str
    sha256: str
    opset: int
    nodes: int
    parameters: int = Field(description="elements of the floating-point initializers")
    macs: int | None = Field(description="MACs at batch 1; None where an operator is unknown")
    inputs: dict[str, tuple[int | str, ...]] = Field(description="shapes; a free dimension is text")
    outputs: dict[str, tuple[int | str, ...]] = Field(description="shapes; a free dimension is text")


def flat_conditions(conditions: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested conditions as one level of dotted names, lists as text: what ``DeviceFacts`` takes."""
    flat: dict[str, Scalar] = {}
    for key, value in conditions.items():
        if isinstance(value, Mapping):
            flat |= flat_conditions(value, f"{prefix}{key}.")
        elif (
            value is None
            or isinstance(value, (str, bool, int))
            or (isinstance(value, float) and isfinite(value))
        ):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


class DeviceState(_Part):
    """The state of the device around the final measurement; pairs are before and after. None: not told."""

    temperature_c: tuple[float | None, float | None] = Field(description="of the hottest sensor")
    clock_mhz: tuple[float | None, float | None] = Field(description="of the fastest core")
    governor: str | None
    throttled: tuple[str | None, str | None] = Field(
        description="the Raspberry Pi's word of flags, or how often an x86 processor was throttled"
    )
    watched: bool = Field(description="whether throttling would have been noticed")
    discarded_blocks: int = Field(ge=0, description="blocks measured under throttling and repeated")
    waited_s: float = Field(ge=0, description="seconds spent cooling down")
    too_hot: bool = Field(description="whether it was still too hot when the time for that was over")
    pinned: tuple[int, ...] = Field(description="cores it was measured on; nothing: on any")


class DeviceFacts(_Part):
    """What was measured on, and in which state it was."""

    name: str
    threads: int
    state: DeviceState | None = Field(None, description="None where the device tells nothing of it")
    conditions: dict[str, Scalar] = Field(
        description="as the device told them: processor, runtime version, governor, heat, throttling"
    )


class BoardFacts(_Part):
    """One board of a fleet, and how it compares to the others on the models that all of them measured."""

    host: str
    requests: int = Field(ge=0, description="requests for candidates that it answered")
    latency_s: float | None = Field(description="median of the unchanged model there; None: not measured")
    relative: float | None = Field(description="that latency over the middle of all boards'; None: alone")
    dropped: str | None = Field(description="why it was given up; None: it was there to the end")


class EnergyFacts(_Part):
    """Joules of one inference, measured beside the latency: all that the source supplies, idle power included."""

    original_j: float = Field(gt=0)
    adapted_j: float = Field(gt=0)
    source: str = Field(description="what measured it")
    noise_floor: float = Field(ge=0, description="relative difference that an A/A run shows")


class LatencyFacts(_Part):
    """The whole exported file against the original, measured after the search by several processes in interleaved
    blocks."""

    original_s: Estimate
    adapted_s: Estimate
    speedup: Estimate = Field(description="original over adapted latency, paired over processes")
    noise_floor: float = Field(ge=0, description="relative difference that an A/A run shows")

    @property
    def is_gain(self) -> bool:
        """Whether the speedup's interval lies above the noise floor."""
        return faster(self.speedup, self.noise_floor)


class Scores(_Part):
    """One metric of both models on one split."""

    samples: int
    original: float
    adapted: float
    difference: Estimate = Field(description="adapted minus original, in the metric's unit; paired")


class AccuracyFacts(_Part):
    metric: str
    unit: str = Field(description="what follows a number: '%', 'BPM', or nothing")
    higher_is_better: bool
    tolerance: float = Field(description="how much worse the adapted model may be, in the metric's unit")
    reference: float | None = Field(
        None,
        description="the original's metric on data it was not trained on, where validation counts from there",
    )
    validation: Scores
    test: Scores | None = Field(None, description="looked at once, after everything was decided")

    @property
    def splits(self) -> tuple[tuple[str, Scores], ...]:
        """The scores with the names of their splits, the one that decides first."""
        return (("validation", self.validation), *((("test", self.test),) if self.test else ()))


class PointFacts(_Part):
    """One of several models of different speed that a run made, exported and measured against the original."""

    path: str = Field(description="of the file, from the run folder")
    latency_s: Estimate
    speedup: Estimate = Field(description="original over this one's latency, paired over processes")
    validation: Scores
    test: Scores | None = Field(description="looked at once, after everything was decided")
    replacements: int

    @property
    def split(self) -> tuple[str, Scores]:
        """The split to show, with its name: the test data where there is any."""
        return ("test", self.test) if self.test else ("validation", self.validation)


class Replacement(_Part):
    """One region that runs another program now."""

    region: str
    kind: Literal["operator", "chain", "block", "stage"]
    nodes: tuple[str, ...]
    rule: str = Field(description="how the program came about: the rewrite rules and mutations")
    before: str = Field(description="program text")
    after: str = Field(description="program text")
    latency_before_s: float
    latency_after_s: float
    parameters_before: int
    parameters_after: int
    damage: float = Field(
        description="of the whole model's outputs with it alone: KL, or NMSE without class scores"
    )


class OperatorCost(_Part):
    """Latency of one node of the original, and of what stands in its place (0 where it is gone)."""

    name: str
    op_type: str
    latency_before_s: float
    latency_after_s: float


class Refusal(_Part):
    """Candidates turned down at one stage for one reason."""

    stage: str
    reason: str
    count: int = Field(ge=1)


class Unexpanded(_Part):
    """An operator that has no program, so cannot be replaced."""

    node: str
    op_type: str
    reason: str


class FrontPoint(_Part):
    """A candidate program of one group: what it costs and what it breaks."""

    group: str
    label: str
    latency_s: float
    damage: float = Field(description="NMSE of the region's output after a short distillation")
    parameters: int
    on_front: bool
    chosen: bool


class TrainingPoint(_Part):
    """One reading of a fine-tuning."""

    attempt: int
    epoch: float
    loss: float
    metric: float | None = None


class Attempt(_Part):
    """One selection that was assembled, fine-tuned and judged: the history of backing off."""

    round: int
    attempt: int
    aim_speedup: float = Field(description="the speedup selection aimed at")
    replacements: int
    speedup: float | None = Field(description="measured; None where it never got that far")
    difference: Estimate | None = Field(description="of the metric on validation, as in Scores")
    accepted: bool
    reason: str


class Verdict(_Part):
    adapted: bool = Field(description="whether anything was replaced; otherwise the export is the original")
    target: str | None = Field(description="'2x' or '12ms' as asked for; None: as fast as possible")
    target_reached: bool | None
    bound: str | None = Field(
        None,
        description="which constraint kept it from the target (search, training, tolerance, latency or data), and how",
    )
    reason: str


class Report(_Part):
    """The whole report. Times in seconds; estimates carry their 95 % interval."""

    schema_version: Literal[1] = 1
    name: str
    created: str = Field(description="ISO 8601, UTC")
    seed: int
    verdict: Verdict
    original: ModelFacts
    adapted: ModelFacts
    device: DeviceFacts
    boards: tuple[BoardFacts, ...] = Field((), description="of a fleet; nothing for a single device")
    latency: LatencyFacts
    energy: EnergyFacts | None = Field(None, description="None where nothing measures it: never estimated")
    accuracy: AccuracyFacts | None = Field(description="None without data: only exact replacements were made")
    points: tuple[PointFacts, ...] = Field(
        (), description="the models of a run that made several, the adapted one among them, fastest first"
    )
    replacements: tuple[Replacement, ...] = ()
    operators: tuple[OperatorCost, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    training: tuple[TrainingPoint, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    unexpanded: tuple[Unexpanded, ...] = ()
    seconds: dict[str, float] = Field(
        default_factory=dict, description="by phase; what runs at once counts each"
    )
    versions: dict[str, str] = Field(default_factory=dict, description="of opadapt and what it stands on")
    warnings: tuple[str, ...] = ()


def write_json(report: Report, path: Path) -> None:
    """Write the report; a reader sees the old file or the new one, never half of one. Raises RunError."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}", found=first_line(error)) from error


def read_json(path: Path) -> Report:
    """Read a report back. Raises RunError for anything that ``write_json`` would not have written."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot read {path}", expected="the report of a finished run", found=first_line(error)
        ) from error
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(
            f"{path} is no report of this version ({place})",
            expected=f"schema version {SCHEMA_VERSION}: {first['msg']}",
            found=str(first["input"])[:80],
            do="render it with the opadapt that wrote it, or `opadapt resume` the run",
        ) from error

"""The experiment: one YAML file and the flags over it, as a validated value, and the run folder it gets.

Each part's settings live beside that part; this module composes them. Relative paths in a file start at that
file; relative paths in flags start at the working directory; a loaded experiment has absolute paths alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from opadapt.errors import ConfigError, RunError, first_line
from opadapt.measure.address import parse_device, split_device
from opadapt.measure.rank import RankConfig
from opadapt.measure.timing import Timing
from opadapt.search.config import SearchConfig
from opadapt.train.accept import Tolerance
from opadapt.train.data import DataConfig
from opadapt.train.distil import DistilConfig
from opadapt.train.entry import is_entry_point
from opadapt.train.finetune import FinetuneConfig
from opadapt.train.metrics import MetricConfig
from opadapt.yamlfile import Document, Location, Override, read_yaml, validate, with_overrides, write_yaml

EXPERIMENT_FILE = "experiment.yaml"
_SIZES = re.compile(r"(N|\d+)([x,](N|\d+))*")
_TARGET = re.compile(r"(\d+(?:\.\d+)?)\s*(x|us|ms|s)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
# text that may be a path, with what else it may be
_PATHS: dict[Location, str] = {
    ("model",): "path",
    ("runs",): "path",
    ("data", "path"): "path or entry point",
    ("data", "x"): "path",
    ("data", "y"): "path",
    ("metric", "name"): "name or entry point",
    ("device",): "device",
    ("search", "space"): "name or .yaml",
}


class Target(BaseModel):
    """What is asked for: a speedup over the original, or a latency. Exactly one is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speedup: float | None = Field(None, gt=1, description="original latency over adapted latency")
    latency_s: float | None = Field(None, gt=0, description="latency in seconds at batch 1")
    text: str = Field(description="as it was written: '2.5x' or '12ms'")

    def __str__(self) -> str:
        return self.text

    def as_speedup(self, original_s: float) -> float:
        """The speedup needed on a model of this latency in seconds."""
        if self.speedup is not None:
            return self.speedup
        assert self.latency_s is not None
        return original_s / self.latency_s

    @staticmethod
    def parse(text: str) -> Target:
        """``"2.5x"``, ``"12ms"``, ``"800us"`` or ``"0.5s"``. Raises ValueError."""
        match = _TARGET.fullmatch(text.strip())
        if match is None:
            raise ValueError("must be a speedup such as 2.5x or a latency such as 12ms")
        number, unit = float(match[1]), match[2]
        if unit == "x" and number <= 1:
            raise ValueError("a speedup must be more than 1x")
        if number <= 0:
            raise ValueError("a latency must be more than 0")
        if unit == "x":
            return Target(speedup=number, text=text.strip())
        return Target(latency_s=number * _UNITS[unit], text=text.strip())


def _target(value: object) -> object:
    return Target.parse(value) if isinstance(value, str) else value


def _shape(value: object) -> tuple[int | str, ...]:
    """``"1x3x32x32"``, ``"N,3,32,32"`` or a list of sizes."""
    if isinstance(value, str):
        if not _SIZES.fullmatch(value):
            raise ValueError("a shape is sizes such as 1x3x32x32 or N,3,32,32, with N for a free batch")
        value = [part if part == "N" else int(part) for part in re.split("[x,]", value)]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("a shape is sizes such as 1x3x32x32 or N,3,32,32, with N for a free batch")
    if not all(d == "N" or (isinstance(d, int) and not isinstance(d, bool) and d > 0) for d in value):
        raise ValueError("sizes of a shape are whole numbers above 0, or N for a free batch")
    return tuple(value)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name is letters, digits, '.', '_' and '-', and begins with a letter or a digit")
    return value


def parse_shape(text: str) -> tuple[int | str, ...]:
    """The sizes of a ``--shape`` flag. Raises ConfigError."""
    try:
        return _shape(text)
    except ValueError as error:
        raise ConfigError("--shape", expected=str(error), found=text) from error


_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "N"}]}
Shape = Annotated[
    tuple[int | str, ...],
    BeforeValidator(_shape),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{_SIZES.pattern}$"},
                {"type": "array", "items": _SIZE_SCHEMA, "minItems": 1},
            ]
        }
    ),
]
TargetText = Annotated[
    Target,
    BeforeValidator(_target),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_TARGET.pattern}$", "examples": ["2.5x", "12ms"]}),
]
Name = Annotated[
    str, Field(max_length=100, json_schema_extra={"pattern": f"^{_NAME.pattern}$"}), AfterValidator(_name)
]


class Experiment(BaseModel):
    """Everything a run depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="the ONNX file to adapt")
    name: Name | None = Field(None, description="name of the run; default: model and device")
    runs: Path = Field(Path("runs"), description="folder that holds the run folders; default: ./runs")
    device: str = Field(
        "local", description="a device type or the path of a .yaml of facts; @HOST or @HOST,HOST after it"
    )
    host: str | None = Field(
        None, description="ssh alias or [user@]host[:port] of the device, instead of @HOST; none: its type"
    )
    shapes: dict[str, Shape] = Field(
        default_factory=dict, description="input name -> shape, where the model leaves dimensions open"
    )
    target: TargetText | None = Field(
        None,
        description="speedup such as 2.5x, or latency such as 12ms; none: as fast as tolerance allows, and slower "
        "models beside it (search.points)",
    )
    budget_minutes: float | None = Field(
        None, gt=0, description="wall time after which no new work is begun, in minutes; none: no limit"
    )
    opset: int | None = Field(None, ge=9, description="opset of the export; none: the model's own")
    seed: int = Field(0, ge=0, description="fixes every random choice")
    reuse: bool = Field(
        True,
        description="take measurements and distilled parts of earlier runs of the same model, data and seed over from "
        "the folder of runs",
    )
    data: DataConfig | None = Field(
        None, description="training and evaluation data; none: only exact replacements are allowed"
    )
    metric: MetricConfig = Field(default_factory=MetricConfig, description="what accuracy means")
    tolerance: Tolerance = Field(
        default_factory=lambda: Tolerance(points=1.0), description="how much worse the adapted model may be"
    )
    timing: Timing = Field(default_factory=Timing, description="how latency is measured")
    quick_timing: Timing = Field(
        default_factory=lambda: Timing(blocks=6, min_block_s=0.02, warmup_s=0.05),
        description="how candidates are timed during the search; what is chosen is timed again with timing",
    )
    rank: RankConfig = Field(default_factory=RankConfig, description="which operators count as worst")
    search: SearchConfig = Field(default_factory=SearchConfig, description="how programs are searched")
    distil: DistilConfig = Field(default_factory=DistilConfig, description="training of one region alone")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="training of the whole")


def load_experiment(path: Path | None, overrides: Sequence[Override] = ()) -> Experiment:
    """Read a YAML file (or none), put the flags over it, and check it all.

    Raises ConfigError with file, line and column (or the flag), what was expected and what was found.
    """
    document = Document("the command line") if path is None else read_yaml(path)
    document = with_overrides(_rebased(document), [_from_here(override) for override in overrides])
    if path is None and "model" not in document.values:
        raise ConfigError(
            "no model", expected="an ONNX file", found="nothing", do="name it, or give a file with --config"
        )
    experiment = validate(Experiment, document)
    _check_address(experiment, document)
    return experiment.model_copy(update={"runs": experiment.runs.absolute()})


def _check_address(experiment: Experiment, document: Document) -> None:
    try:
        parse_device(experiment.device, experiment.host)
    except ConfigError as error:
        place = document.place(("device",) if experiment.host is None else ("host",))
        raise ConfigError(
            f"{place}: {error.message}", expected=error.expected, found=error.found, do=error.do
        ) from error


def _rebased(document: Document) -> Document:
    """The document with the relative paths of its file made absolute."""
    if document.folder is None:
        return document
    for location, kind in _PATHS.items():
        if location in document.places:
            parent = document.value(location[:-1])
            parent[location[-1]] = _absolute(document.value(location), kind, document.folder)
    return document


def _from_here(override: Override) -> Override:
    kind = _PATHS.get(override.location)
    if kind is None:
        return override
    return Override(override.location, _absolute(override.value, kind, Path.cwd()), override.flag)


def _absolute(value: Any, kind: str, folder: Path) -> Any:
    """A relative path from ``folder``; whatever is no path (a name, an entry point, no text) as it is."""
    if not isinstance(value, str) or not value:
        return value
    if kind == "device":
        name, hosts = split_device(value)
        return _absolute(name, "name or .yaml", folder) + ("" if hosts is None else f"@{hosts}")
    if kind == "name or .yaml" and not value.endswith((".yaml", ".yml")):
        return value
    if kind.endswith("entry point") and is_entry_point(value) and not (folder / value).exists():
        place, _, function = value.rpartition(":")
        return f"{folder / place}:{function}" if place.endswith(".py") else value
    if kind == "name or entry point":
        return value
    return str(folder / Path(value).expanduser())


def schema() -> dict[str, Any]:
    """JSON Schema of an experiment file, for editors."""
    return {"$schema": _SCHEMA, **Experiment.model_json_schema(), "title": "opadapt experiment"}


def dump(experiment: Experiment) -> str:
    """The experiment as YAML, every value written out; ``load_experiment`` reads it back equal."""
    return write_yaml(experiment.model_dump(mode="json"))


def create_run(experiment: Experiment) -> tuple[Experiment, Path]:
    """Make the run folder and write the experiment into it; returns it with its name resolved.

    A name that was given must be free; a default one gets a number. Raises RunError.
    """
    device = split_device(experiment.device)[0].removesuffix(".yaml").removesuffix(".yml")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{experiment.model.stem}-{Path(device).name}")
    base = experiment.name or stem.lstrip("._-") or "run"
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        folder = experiment.runs / name
        try:
            experiment.runs.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            break
        except FileExistsError as error:
            if experiment.name is not None or not folder.exists():
                raise RunError(
                    f"the run folder {folder} exists",
                    expected="a new name",
                    found=name,
                    do=f"`opadapt resume {folder}`, or choose another --name",
                ) from error
            number += 1
        except OSError as error:
            raise RunError(f"cannot make the run folder {folder}", found=first_line(error)) from error
    named = experiment.model_copy(update={"name": name})
    try:
        (folder / EXPERIMENT_FILE).write_text(dump(named), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write into {folder}", found=first_line(error)) from error
    return named, folder


def open_run(folder: Path) -> Experiment:
    """The experiment of a run folder. Raises RunError where it is none, ConfigError for an edited file."""
    if not (folder / EXPERIMENT_FILE).is_file():
        raise RunError(
            f"{folder} is no run folder",
            expected=f"a folder with {EXPERIMENT_FILE}",
            found="a folder without" if folder.is_dir() else "nothing" if not folder.exists() else "a file",
            do="name a folder under runs/, as `opadapt run` prints it",
        )
    return load_experiment(folder / EXPERIMENT_FILE)

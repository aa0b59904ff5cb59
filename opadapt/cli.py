"""The command line. Heavy modules are imported inside the commands, so that ``--help`` answers at once.

Exit codes: 0 done; 1 a bug in opadapt (with a traceback); 2 refused, with what was expected and found; 130
interrupted (a run says how to go on).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from opadapt import __version__
from opadapt.cli_devices import devices_app
from opadapt.errors import ConfigError, DataError, OpadaptError
from opadapt.report.progress import LiveProgress, PlainProgress, Progress

if TYPE_CHECKING:
    from opadapt.experiment import Experiment

INTERRUPTED = 130
REFUSED = 2


class _Commands(TyperGroup):
    """Turns the errors that opadapt means into one message on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OpadaptError as error:
            _complain(f"error: {error}")
            raise typer.Exit(REFUSED) from error
        except KeyboardInterrupt as error:
            _complain("interrupted")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Makes a trained ONNX model faster on one particular board by replacing only the operators that "
    "are slow there, and proves that the result is faster and still accurate.",
)
config_app = typer.Typer(help="Look at settings.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(devices_app, name="devices")

ModelArgument = Annotated[
    Path | None, typer.Argument(metavar="[MODEL]", help="ONNX file; overrides the file's.")
]
ConfigOption = Annotated[Path | None, typer.Option("-c", "--config", help="YAML file; flags override it.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="Device type or a .yaml of facts; @HOST[,HOST] after it. [local]")
]
HostOption = Annotated[
    str | None, typer.Option(help="The board: ssh alias or [user@]host[:port]. [its type]")
]
DataOption = Annotated[str | None, typer.Option(help="Folder, .npz, or module:function.")]
TargetOption = Annotated[str | None, typer.Option(help="Speedup such as 2x, or latency such as 12ms.")]
ToleranceOption = Annotated[float | None, typer.Option(help="Accuracy that may be lost, in points. [1.0]")]
NameOption = Annotated[str | None, typer.Option(help="Name of the run. [model and device]")]
ShapeOption = Annotated[
    list[str] | None, typer.Option("--shape", metavar="INPUT=SIZES", help="Such as input=1x3x32x32.")
]
SeedOption = Annotated[int | None, typer.Option(help="Fixes every random choice. [0]")]
MinutesOption = Annotated[float | None, typer.Option(help="Begin no new work after this time.")]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads within an operator.")]
OpsetOption = Annotated[int | None, typer.Option(help="Opset of the export. [the model's own]")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, runs/NAME.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"opadapt {__version__}")
        raise typer.Exit
    # the console script leaves the working directory out, where --data module:function is looked for
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


@app.command()
def run(
    ctx: typer.Context,
    model: ModelArgument = None,
    config: ConfigOption = None,
    device: DeviceOption = None,
    host: HostOption = None,
    data: DataOption = None,
    target: TargetOption = None,
    tolerance: ToleranceOption = None,
    name: NameOption = None,
    shape: ShapeOption = None,
    seed: SeedOption = None,
    minutes: MinutesOption = None,
    threads: ThreadsOption = None,
    opset: OpsetOption = None,
) -> None:
    """Adapt a model: writes runs/NAME/ with adapted.onnx and report.html."""
    from opadapt.experiment import create_run

    experiment = _experiment(ctx.params)
    _check(experiment)
    experiment, folder = create_run(experiment)
    _adapt(experiment, folder, new=True)


@app.command()
def resume(
    folder: RunArgument,
    host: Annotated[str | None, typer.Option(help="Where the board is now. [as before]")] = None,
) -> None:
    """Go on with a run that was interrupted; nothing finished is paid for again."""
    from opadapt.experiment import open_run
    from opadapt.measure.address import split_device
    from opadapt.measure.opening import find_device

    experiment = open_run(folder)
    if host is not None:
        device = split_device(experiment.device)[0]
        find_device(device, host)  # whether it can be there
        experiment = experiment.model_copy(update={"device": device, "host": host})
    _adapt(experiment, folder.resolve())


@app.command()
def profile(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    device: Annotated[str, typer.Option(help="Device type or a .yaml of facts; @HOST after it.")] = "local",
    host: HostOption = None,
    shape: ShapeOption = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads within an operator.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many nodes to print.")] = 20,
    weight: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the share of latency; the rest weighs parameters.")
    ] = 1.0,
) -> None:
    """Show where the time of a model goes on a device, worst node first."""
    from opadapt.experiment import parse_shape
    from opadapt.measure.opening import open_device
    from opadapt.measure.profile import profile as measure
    from opadapt.measure.rank import RankConfig, rank_nodes
    from opadapt.measure.timing import Timing
    from opadapt.model.load import load
    from opadapt.report.profile import print_profile, profile_values, write_profile

    shapes = {key: parse_shape(sizes) for key, sizes in _shapes(shape).items()}
    loaded = load(model, shapes)
    with open_device(device, threads, host) as opened:
        found = measure(opened, loaded, Timing(threads=threads))
    ranked = rank_nodes(found, RankConfig(weight=weight))
    print_profile(found, ranked, top, Console())
    if json_file is not None:
        write_profile(profile_values(found, ranked, model, device, threads), json_file)


@app.command()
def report(folder: RunArgument) -> None:
    """Print the summary of a finished run again, and write its report.html anew."""
    from opadapt.report.data import read_json

    _show(read_json(folder / "report.json"), folder)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of experiment files."""
    from opadapt.experiment import schema

    typer.echo(json.dumps(schema(), indent=2))


@config_app.command("show")
def config_show(
    ctx: typer.Context,
    model: ModelArgument = None,
    config: ConfigOption = None,
    device: DeviceOption = None,
    host: HostOption = None,
    data: DataOption = None,
    target: TargetOption = None,
    tolerance: ToleranceOption = None,
    name: NameOption = None,
    shape: ShapeOption = None,
    seed: SeedOption = None,
    minutes: MinutesOption = None,
    threads: ThreadsOption = None,
    opset: OpsetOption = None,
) -> None:
    """Print the settings that `run` would use with the same arguments, all of them."""
    from opadapt.experiment import dump

    experiment = _experiment(ctx.params)
    typer.echo(dump(experiment), nl=False)


# parameter of ``run`` -> (its flag, the key of the experiment that it sets)
_KEYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "model": ("MODEL", ("model",)),
    "device": ("--device", ("device",)),
    "host": ("--host", ("host",)),
    "data": ("--data", ("data", "path")),
    "target": ("--target", ("target",)),
    "tolerance": ("--tolerance", ("tolerance", "points")),
    "name": ("--name", ("name",)),
    "seed": ("--seed", ("seed",)),
    "minutes": ("--minutes", ("budget_minutes",)),
    "threads": ("--threads", ("timing", "threads")),
    "opset": ("--opset", ("opset",)),
}
# flags that take the place of other keys too
_REPLACED: dict[str, tuple[tuple[str, ...], ...]] = {
    "data": (("data", "x"), ("data", "y")),
    "tolerance": (("tolerance", "relative_percent"),),
    "device": (("host",),),  # the host of the file's device
}


def _experiment(given: Mapping[str, Any]) -> Experiment:
    """The experiment of the parameters of ``run``."""
    from opadapt.experiment import load_experiment
    from opadapt.yamlfile import Override

    overrides = []
    for name, (flag, key) in _KEYS.items():
        value = given[name]
        if value is not None:
            overrides.append(Override(key, str(value) if isinstance(value, Path) else value, flag))
            overrides += [Override(other, None, flag) for other in _REPLACED.get(name, ())]
    overrides += [
        Override(("shapes", key), sizes, "--shape") for key, sizes in _shapes(given["shape"]).items()
    ]
    return load_experiment(given["config"], overrides)


def _shapes(given: list[str] | None) -> dict[str, str]:
    shapes: dict[str, str] = {}
    for text in given or ():
        name, equals, sizes = text.rpartition("=")
        if not (name and equals and sizes):
            raise ConfigError("--shape", expected="INPUT=SIZES, such as input=1x3x32x32", found=text)
        shapes[name] = sizes
    return shapes


def _check(experiment: Experiment) -> None:
    """What can be told at once, before a run folder is made."""
    from opadapt.measure.opening import find_device
    from opadapt.model.load import load
    from opadapt.train.entry import is_entry_point

    load(experiment.model, experiment.shapes)
    find_device(experiment.device, experiment.host)
    data = experiment.data
    for place in () if data is None else (data.path, data.x, data.y):
        if place is not None and not is_entry_point(place) and not Path(place).exists():
            raise DataError(
                f"no data at {place}",
                expected="an existing file or folder",
                found="nothing",
                do="correct --data, or data.path in the experiment file",
            )


def _adapt(experiment: Experiment, folder: Path, new: bool = False) -> None:
    from opadapt.adapt import adapt
    from opadapt.journal import JOURNAL_FILE

    try:
        with _progress() as progress:
            found = adapt(experiment, folder, progress)
    except KeyboardInterrupt as error:
        _complain(f"interrupted; go on with: opadapt resume {folder}")
        raise typer.Exit(INTERRUPTED) from error
    except OpadaptError:
        if (folder / JOURNAL_FILE).exists():
            _complain(f"the run folder is {folder}; once the cause is gone: opadapt resume {folder}")
        elif new:  # refused before anything was paid for: there is nothing to go on with
            shutil.rmtree(folder, ignore_errors=True)
        raise
    _show(found, folder)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(lambda line: typer.echo(line, err=True))
        return
    with LiveProgress(console) as live:
        yield live


def _show(found: Any, folder: Path) -> None:
    from opadapt.report.html import write_html
    from opadapt.report.terminal import print_report, shown

    write_html(found, folder / "report.html")
    console = Console()
    print_report(found, console)
    console.print(shown(f"{folder / 'report.html'}"), soft_wrap=True)


def _complain(text: str) -> None:
    from opadapt.report.printable import printable

    for line in text.splitlines():
        typer.echo(printable(line), err=True)


def main() -> None:
    """The entry point of the ``opadapt`` script."""
    # Training threads that spin while they wait are several times slower wherever anything else runs. Read when
    # torch loads, so it cannot be a setting of the training.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()

"""``opadapt devices``: which boards there are, whether one is fit to measure on, and how to describe a new one."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from opadapt.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from opadapt.measure.facts import Facts

REFUSED = 2

devices_app = typer.Typer(
    help="Boards: list them, check one, describe a new one.", no_args_is_help=True, rich_markup_mode=None
)

AddressArgument = Annotated[
    str,
    typer.Argument(metavar="ADDRESS", help="TYPE, TYPE@HOST or TYPE@HOST,HOST, such as rpi4@pi@10.0.0.7."),
]
HostOption = Annotated[str | None, typer.Option(help="Ssh alias or [user@]host[:port], instead of @HOST.")]


@devices_app.command("list")
def list_devices() -> None:
    """List the types of devices, shipped and your own."""
    from opadapt.measure.facts import known_devices
    from opadapt.report.devices import print_list

    print_list(known_devices(), Console())


@devices_app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Type of device, or a .yaml of facts.")],
) -> None:
    """Print the facts of a type, and where their file lies."""
    from opadapt.measure.facts import known_devices, load_facts
    from opadapt.report.devices import print_facts

    facts = load_facts(name)
    print_facts(facts, known_devices().get(name) or Path(name).expanduser(), Console())


@devices_app.command("check")
def check_device(
    address: AddressArgument,
    host: HostOption = None,
    install: Annotated[
        bool, typer.Option("--install", help="First set up onnxruntime in ~/.cache/opadapt/venv there.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
) -> None:
    """Connect to boards and tell whether they are fit to measure on; exit code 2 if one is not."""
    from opadapt.measure.check.checkup import check, unreached
    from opadapt.measure.opening import find_device
    from opadapt.report.devices import print_checkup, write_checkups
    from opadapt.report.printable import printable

    found, facts = find_device(address, host)
    console = Console()
    checkups = []
    for place in found.hosts or (None,):
        try:
            checkups.append(check(found.type, facts, place, _note, install))
        except DeviceError as error:  # the others may be there all the same
            for line in f"error: {error}".splitlines():
                _note(printable(line))
            checkups.append(unreached(facts, place, error))
        else:
            print_checkup(checkups[-1], console)
    if json_file is not None:
        write_checkups(checkups, json_file)
    if any(checkup.bad for checkup in checkups):
        raise typer.Exit(REFUSED)


@devices_app.command("init")
def init(
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="Ssh alias or [user@]host[:port]; or TYPE@HOST, or local."),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the new type, or the path of its .yaml.")
    ],
    host: HostOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write NAME.yaml from what a board tells about itself."""
    from opadapt.measure.check.checkup import look, reach
    from opadapt.measure.check.device_file import base_of, check_name, device_file, write_device_file

    path = Path(name if name.endswith(".yaml") else f"{name}.yaml").expanduser()
    check_name(path.stem)
    if path.exists() and not force:  # asked before the board is: nothing is to be lost, and no time
        write_device_file("", path, force=False)
    kind, facts, place = _described(address, host, path.stem)
    _note(f"ask {place or kind}")
    with reach(facts, place) as reached:
        board = look(reached, facts)
    text = device_file(
        board, path.stem, facts.transport, place, base_of(board, kind), date.today().isoformat()
    )
    write_device_file(text, path, force)
    typer.echo(
        f"{path}: look through it, then: opadapt devices check {path.stem if path.parent == Path() else path}"
    )


def _described(address: str, host: str | None, name: str) -> tuple[str | None, Facts, str | None]:
    """The type it is said to be (None: none), facts to reach it with, and its host (None: this machine)."""
    from opadapt.measure.address import check_host, split_device
    from opadapt.measure.facts import Facts, known_devices
    from opadapt.measure.opening import find_device

    kind = split_device(address)[0]
    if kind not in known_devices() and not kind.endswith((".yaml", ".yml")):
        if host is not None:
            raise ConfigError(f"no device '{address}'", expected="a known type before --host", found=address)
        place = check_host(address)
        return None, Facts(name=name, description="", transport="ssh", arch="host", host=place), place
    found, facts = find_device(address, host)
    if len(found.hosts) > 1:
        raise ConfigError(
            "a device file describes one board", expected="one host", found=", ".join(found.hosts)
        )
    return found.type, facts, found.hosts[0] if found.hosts else None


def _note(line: str) -> None:
    typer.echo(line, err=True)

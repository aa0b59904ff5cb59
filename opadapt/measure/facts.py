"""Facts about a type of device: one YAML file each, found by name. Facts are data, behaviour is code.

A name is looked for in the working folder (``./NAME.yaml``, ``./devices/NAME.yaml``), then in
``${XDG_CONFIG_HOME:-~/.config}/opadapt/devices``, then among the shipped files: a user's file wins over ours.
In the working folder other YAML files may lie under the same name (an experiment ``rpi4.yaml``); there a file
counts only if it has the key ``transport`` or ``arch``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from opadapt.errors import ConfigError
from opadapt.measure.address import check_host
from opadapt.resources import shipped, shipped_names
from opadapt.yamlfile import MAX_BYTES, Document, read_yaml, validate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIXES = (".yaml", ".yml")
_MARK = re.compile(rb"""^["']?(transport|arch)["']?\s*:""", re.MULTILINE)  # tells it from an experiment


def _specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError("must be versions as in PEP 440, such as '==1.21.0' or '<1.22'") from error
    return text


def _host(text: str) -> str:
    try:
        return check_host(text)
    except ConfigError as error:
        raise ValueError(f"must be {error.expected}") from error


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NullCost(_Part):
    """The null device's cost model: each node costs overhead + MACs / rate + bytes / rate."""

    overhead_s: float = Field(gt=0, description="seconds per node, whatever it does")
    dense_macs_per_s: float = Field(gt=0, description="multiply-accumulates per second, groups of 1")
    grouped_macs_per_s: float = Field(gt=0, description="multiply-accumulates per second, groups")
    depthwise_macs_per_s: float = Field(gt=0, description="multiply-accumulates per second, depthwise")
    bytes_per_s: float = Field(gt=0, description="bytes read and written per second")


class Caches(_Part):
    """Cache sizes in KiB; whether per core or shared is said in the file's comment. None: not known."""

    l1d_kib: int | None = Field(default=None, ge=1, description="first level, data")
    l1i_kib: int | None = Field(default=None, ge=1, description="first level, instructions")
    l2_kib: int | None = Field(default=None, ge=1, description="second level")
    l3_kib: int | None = Field(default=None, ge=1, description="third level")


class BadVersion(_Part):
    """Versions of onnxruntime that are known to fail on this type of device."""

    specifier: Annotated[str, AfterValidator(_specifier)] = Field(
        description="PEP 440 versions, such as '==1.21.0'"
    )
    reason: str = Field(min_length=1, description="what happens")
    fix: str = Field(min_length=1, description="what to do instead")


class Thermal(_Part):
    """Where the device tells its heat or its throttling."""

    kind: Literal["zone", "vcgencmd", "hwmon", "x86_counter"] = Field(
        description="zone: /sys/class/thermal; vcgencmd: the Raspberry Pi's command; hwmon: /sys/class/hwmon; "
        "x86_counter: .../cpu*/thermal_throttle"
    )
    match: str = Field(
        default="*", min_length=1, description="zone: glob of its 'type'; hwmon: glob of its 'name'"
    )


class Cool(_Part):
    """When a measurement waits for the device to cool down."""

    start_above_c: float = Field(description="wait above this temperature, in degrees Celsius")
    resume_below_c: float = Field(description="until it is below this one")
    wait_s: float = Field(
        default=120.0, gt=0, description="but no longer, in seconds, by each process that measures"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.resume_below_c > self.start_above_c:
            raise ValueError("resume_below_c must not be above start_above_c")
        return self


class PowerSource(_Part):
    """What measures the electrical power. The agent reads it; nothing is ever estimated."""

    kind: Literal["hwmon", "iio", "rapl"] = Field(
        description="hwmon: /sys/class/hwmon; iio: /sys/bus/iio; rapl: /sys/class/powercap"
    )
    match: str = Field(
        min_length=1,
        description="glob of a 'name': of the chip, such as ina226; rapl: of the zone, such as package-0",
    )
    channel: int | None = Field(
        default=None, ge=0, description="number of the channel (power1, in_power1: 1); none: the first one"
    )

    @model_validator(mode="after")
    def _channel_of_hwmon(self) -> Self:
        if self.kind == "rapl" and self.channel is not None:
            raise ValueError("a rapl zone has no channel")
        return self


class Facts(_Part):
    """What is known about a type of device before it is connected."""

    name: str = Field(description="name of the device type: the file's name without .yaml")
    description: str = Field(description="one sentence for people")
    transport: Literal["null", "local", "ssh", "adb"] = Field(description="how the device is reached")
    host: Annotated[str, AfterValidator(_host)] | None = Field(
        default=None,
        description="ssh: alias or [user@]host[:port], none: the device's name; adb: serial number",
    )
    experimental: bool = Field(default=False, description="not known to work: said in lists")
    arch: str = Field(description="CPU architecture as uname -m says it; 'host': this machine's")
    extensions: tuple[str, ...] = Field(
        default=(), description="instruction set extensions as /proc/cpuinfo names them"
    )
    cores: int | None = Field(default=None, ge=1, description="CPU cores; none: asked when connected")
    pin_cores: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="cores that measurements are pinned to; empty: no pinning"
    )
    caches: Caches | None = Field(default=None, description="cache sizes; none: not known")
    memory_bandwidth_gb_s: float | None = Field(
        default=None, gt=0, description="peak memory bandwidth in GB/s (1e9 bytes); none: not known"
    )
    triple: str | None = Field(
        default=None, description="toolchain triple, such as aarch64-linux-gnu; none: the host's"
    )
    python: str = Field(default="python3", min_length=1, description="the device's interpreter, 3.9 or newer")
    wheel_platforms: tuple[str, ...] = Field(
        default=(), description="platform tags of wheels that run there, best first"
    )
    bad_onnxruntime: tuple[BadVersion, ...] = Field(
        default=(), description="versions of onnxruntime known to fail there"
    )
    timeout_s: float | None = Field(
        default=None, gt=0, description="longest wait for one request, in seconds; none: the experiment's"
    )
    max_retries: int = Field(default=3, ge=0, description="how often a block is repeated after throttling")
    max_temperature_c: float | None = Field(
        default=None, description="CPU temperature where throttling starts, in degrees Celsius"
    )
    thermal: tuple[Thermal, ...] = Field(default=(), description="what tells the temperature and throttling")
    cool: Cool | None = Field(default=None, description="cool-down before a measurement; none: never waits")
    power: tuple[PowerSource, ...] = Field(
        default=(), description="what tells the electrical power; empty: nothing on board"
    )
    cost: NullCost | None = Field(default=None, description="the cost model of a null device")

    def bad_version(self, version: str) -> BadVersion | None:
        """What is known against this version of onnxruntime, None for nothing."""
        try:
            found = Version(version)
        except InvalidVersion:
            return None
        return next(
            (b for b in self.bad_onnxruntime if SpecifierSet(b.specifier).contains(found, prereleases=True)),
            None,
        )


def load_facts(name: str) -> Facts:
    """Facts of a device type by its name, or of a ``.yaml`` file by its path. Raises ConfigError."""
    if name.endswith(_SUFFIXES):
        return _read(Path(name).expanduser())
    path = next(_files(name), None) if _NAME.fullmatch(name) else None
    if path is None:
        raise ConfigError(
            f"no device '{name}'",
            expected=", ".join(sorted(known_devices())) + ", or the path of a .yaml file",
            found=name,
            do=f"give the type of the board, or write its facts into {user_folder() / f'{name}.yaml'}"
            if _NAME.fullmatch(name)
            else None,
        )
    document = read_yaml(path)
    facts = checked(document)
    if facts.name != name:
        raise ConfigError(
            f"{document.place(('name',))}: wrong value of 'name'",
            expected=f"'{name}', as the file is called",
            found=f"'{facts.name}'",
        )
    return facts


def known_devices() -> dict[str, Path]:
    """Names of all device types that ``load_facts`` finds, sorted, and their files."""
    found: dict[str, Path] = {}
    for folder in _working_folders():
        for path in _yaml_files(folder):
            if _is_device_file(path):
                found.setdefault(path.stem, path)
    for path in _yaml_files(user_folder()):
        found.setdefault(path.stem, path)
    for file in shipped_names("devices"):
        if file.endswith(".yaml"):
            found.setdefault(file.removesuffix(".yaml"), shipped("devices", file))
    return dict(sorted(found.items()))


def user_folder() -> Path:
    """Where a user's own device files are: ``${XDG_CONFIG_HOME:-~/.config}/opadapt/devices``."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if Path(configured).is_absolute() else Path.home() / ".config"  # as XDG says
    return base / "opadapt" / "devices"


def _files(name: str) -> Iterator[Path]:
    """Files of that name, first found first."""
    for folder in _working_folders():
        path = folder / f"{name}.yaml"
        if path.is_file() and _is_device_file(path):
            yield path
    path = user_folder() / f"{name}.yaml"
    if path.is_file():
        yield path
    if f"{name}.yaml" in shipped_names("devices"):
        yield shipped("devices", f"{name}.yaml")


def _working_folders() -> tuple[Path, ...]:
    return Path.cwd(), Path.cwd() / "devices"


def _yaml_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    return [file for file in files if file.is_file() and _NAME.fullmatch(file.stem)]


def _is_device_file(path: Path) -> bool:
    try:  # not parsed: a broken device file is still one, and says where when it is read
        with path.open("rb") as file:
            return _MARK.search(file.read(MAX_BYTES)) is not None
    except OSError:
        return False


def _read(path: Path) -> Facts:
    return checked(read_yaml(path))


def checked(document: Document) -> Facts:
    """Facts that agree with each other. Raises ConfigError with the place."""
    facts = validate(Facts, document)
    if (facts.transport == "null") != (facts.cost is not None):
        raise ConfigError(
            f"{document.place(('cost',) if facts.cost else ('transport',))}: a null device, and no other, "
            "has a 'cost'",
            found=f"transport '{facts.transport}' {'with' if facts.cost else 'without'} 'cost'",
        )
    for number, core in enumerate(facts.pin_cores):
        if facts.cores is not None and core >= facts.cores:
            raise ConfigError(
                f"{document.place(('pin_cores', number))}: wrong value of 'pin_cores'",
                expected=f"cores from 0 to {facts.cores - 1}",
                found=str(core),
            )
    return facts

"""A device times, profiles and runs ONNX models. Facts are data (devices/*.yaml), behaviour is code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from opadapt.errors import ConfigError
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.resources import shipped, shipped_names
from opadapt.yamlfile import read_yaml, validate

NDArrayAny = NDArray[np.generic]


class NullCost(BaseModel):
    """The null device's cost model: each node costs overhead + MACs / rate + bytes / rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overhead_s: float = Field(gt=0, description="seconds per node, whatever it does")
    dense_macs_per_s: float = Field(gt=0, description="multiply-accumulates per second, groups of 1")
    grouped_macs_per_s: float = Field(gt=0, description="multiply-accumulates per second, groups")
    depthwise_macs_per_s: float = Field(gt=0, description="multiply-accumulates per second, depthwise")
    bytes_per_s: float = Field(gt=0, description="bytes read and written per second")


class Facts(BaseModel):
    """What is known about a type of device before it is connected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the device type: the file's name without .yaml")
    description: str = Field(description="one sentence for people")
    transport: Literal["null", "local"] = Field(description="how the device is reached")
    arch: str = Field(description="CPU architecture as uname -m says it; 'host': this machine's")
    cores: int | None = Field(default=None, ge=1, description="CPU cores; none: asked when connected")
    triple: str | None = Field(
        default=None, description="toolchain triple, such as aarch64-linux-gnu; none: the host's"
    )
    timeout_s: float = Field(default=600.0, gt=0, description="longest wait for one request, in seconds")
    max_temperature_c: float | None = Field(
        default=None, description="CPU temperature where throttling starts"
    )
    thermal: tuple[str, ...] = Field(default=(), description="what tells the temperature and throttling")
    power: tuple[str, ...] = Field(
        default=(), description="what tells the electrical power; empty: nothing on board"
    )
    cost: NullCost | None = Field(default=None, description="the cost model of a null device")


@dataclass(frozen=True)
class Kernel:
    """One node of the optimised model: its profiled time per run, inflated by the profiling itself."""

    name: str
    op_type: str
    latency_s: float


@dataclass(frozen=True, eq=False)
class RawProfile:
    """What a device tells about one model: kernels in execution order, the model as optimised there
    (serialised ONNX), and un-profiled block times of the same model (``[1, blocks]``)."""

    kernels: tuple[Kernel, ...]
    optimized: bytes
    times: BlockTimes


class Device(Protocol):
    """Context manager; models are serialised ONNX files with static shapes. Failures raise DeviceError."""

    facts: Facts
    threads: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def hello(self) -> Mapping[str, Any]:
        """What the device says about itself: versions, CPU, cores, memory."""

    def conditions(self) -> dict[str, Any]:
        """Heat, clocks, throttling and load now, with the versions that every sample is filed under."""

    def time(self, models: Sequence[bytes], timing: Timing) -> BlockTimes:
        """Latency of each model on made-up inputs, blocks interleaved."""

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        """Kernel times, the optimised model and un-profiled times of one model."""

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        """Outputs by name."""


def load_facts(name: str) -> Facts:
    """Facts of a shipped device type, or of a ``.yaml`` file given by its path. Raises ConfigError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else None
    if path is None:
        known = sorted(file.removesuffix(".yaml") for file in shipped_names("devices"))
        if name not in known:
            raise ConfigError(
                f"no device '{name}'",
                expected=", ".join(known) + ", or the path of a .yaml file",
                found=name,
            )
        path = shipped("devices", f"{name}.yaml")
    facts = validate(Facts, read_yaml(path))
    if (facts.transport == "null") != (facts.cost is not None):
        raise ConfigError(f"{path}: a null device, and no other, has a 'cost'", found=f"{facts.transport}")
    return facts

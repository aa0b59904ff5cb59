"""What measuring over SSH costs against measuring here: a table of bytes and seconds per candidate.

    python scripts/bench/remote_overhead.py [--model model.onnx] [--rounds 8] [--rtt-ms 0]

Starts an OpenSSH server on loopback (the tests' own), and times candidates as a search does: four in one request,
interleaved with the model they change, once with the agent as a child process and once over SSH, in turns. All
candidates are the model with other weights, so each has to travel. "around" is everything but the request that
measures: uploading, verifying, removing, and one round trip. The difference of the two "around" is what SSH costs.
``--rtt-ms`` delays the loopback's bytes, as a network does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from boards.sshd_server import ALIAS, Sshd, Wire, why_not  # noqa: E402

from opadapt.measure.agent_device import AgentDevice  # noqa: E402
from opadapt.measure.facts import load_facts  # noqa: E402
from opadapt.measure.ssh.transport import SshTransport  # noqa: E402
from opadapt.measure.timing import Timing  # noqa: E402
from opadapt.measure.transport import LocalTransport, Transport  # noqa: E402
from opadapt.steps.latency import TOGETHER  # noqa: E402

QUIET_LOAD = 0.5  # per core; above it the figures are provisional


class Watched:
    """A transport whose requests that measure are timed, and whose bytes are counted."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.measuring_s = 0.0
        self.put_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put(self, data: bytes, path: str) -> None:
        self.put_bytes += len(data)
        self.inner.put(data, path)

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        began = time.perf_counter()
        answer = self.inner.request(message, timeout_s)
        if message["do"] == "time":
            self.measuring_s += time.perf_counter() - began
        return answer


@dataclass
class Row:
    """Per candidate, one entry per request."""

    seconds: list[float] = field(default_factory=list)
    around_s: list[float] = field(default_factory=list)
    file_bytes: list[float] = field(default_factory=list)
    sent_bytes: list[float] = field(default_factory=list)


def variants(model: onnx.ModelProto, count: int, rng: np.random.Generator) -> list[bytes]:
    """The model with other weights: nothing of it is on the board already."""
    made = []
    for _ in range(count):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        for tensor in changed.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                noise = (1e-3 * rng.standard_normal(values.shape)).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
        made.append(changed.SerializeToString())
    return made


def at_batch_1(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return model


@contextlib.contextmanager
def server(folder: Path, rtt_s: float) -> Iterator[Sshd]:
    """The board, its client's home in place of the user's."""
    sshd = Sshd(folder)
    os.environ["HOME"] = str(sshd.client)
    os.environ.pop("SSH_AUTH_SOCK", None)
    sshd.start()
    wire = Wire(sshd.port, delay_s=rtt_s / 2) if rtt_s else None
    if wire is not None:
        sshd.trust(wire.port)
        sshd.reach(wire.port)
    try:
        yield sshd
    finally:
        if wire is not None:
            wire.close()
        sshd.close()


def empty_round_trip_s(device: AgentDevice, transport: Watched) -> float:
    """A request that asks for nothing."""
    device.hello()
    times = []
    for _ in range(20):
        began = time.perf_counter()
        transport.request({"do": "forget", "paths": []}, 60)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "configs/quickstart/fashion_cnn.onnx")
    parser.add_argument("--rounds", type=int, default=8, help="requests of each kind")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round trip time to add to the loopback's")
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(f"no OpenSSH server: {reason}")
    model, rng = at_batch_1(options.model), np.random.default_rng(0)
    base = model.SerializeToString()
    timing = Timing(blocks=6, min_block_s=0.02, warmup_s=0.05)  # as candidates are timed by default
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, server(Path(folder, "board"), options.rtt_ms / 1e3) as sshd:
        transports = {"local": Watched(LocalTransport()), "ssh": Watched(SshTransport(ALIAS, sshd.facts()))}
        devices = {name: AgentDevice(load_facts("local"), transports[name], 1) for name in transports}
        rows = {name: Row() for name in devices}
        trips_s = {name: empty_round_trip_s(devices[name], transports[name]) for name in devices}
        for number in range(options.rounds + 1):
            candidates = variants(model, TOGETHER, rng)
            for name in list(devices)[:: -1 if number % 2 else 1]:
                found = one_request(devices[name], transports[name], [base, *candidates], timing)
                if number:  # the first one carries the base
                    add(rows[name], found, trips_s[name])
        for device in devices.values():
            device.close()
    busy = max(load_before, os.getloadavg()[0]) / (os.cpu_count() or 1)
    show(options.model, len(base), rows, trips_s, busy)


def one_request(
    device: AgentDevice, transport: Watched, models: list[bytes], timing: Timing
) -> tuple[float, float, int, int]:
    """Seconds in all, seconds in the request that measures, bytes of files, bytes sent."""
    connection = getattr(transport.inner, "connection", None)
    measured_s, put, sent = (
        transport.measuring_s,
        transport.put_bytes,
        connection.bytes_sent if connection else 0,
    )
    began = time.perf_counter()
    device.time(models, timing)
    return (
        time.perf_counter() - began,
        transport.measuring_s - measured_s,
        transport.put_bytes - put,
        connection.bytes_sent - sent if connection else 0,
    )


def add(row: Row, found: tuple[float, float, int, int], trip_s: float) -> None:
    total_s, measuring_s, put, sent = found
    row.seconds.append(total_s / TOGETHER)
    row.around_s.append((total_s - measuring_s + trip_s) / TOGETHER)
    row.file_bytes.append(put / TOGETHER)
    row.sent_bytes.append(sent / TOGETHER)


def show(model: Path, size: int, rows: Mapping[str, Row], trips_s: Mapping[str, float], busy: float) -> None:
    print(f"{model.name}: {size:,} bytes; {TOGETHER} candidates in a request, medians per candidate\n")
    print(
        f"{'':8}{'file bytes':>12}{'bytes sent':>12}{'seconds':>10}{'around, ms':>12}{'empty trip, ms':>16}"
    )
    for name, row in rows.items():
        medians = [statistics.median(values) for values in (row.file_bytes, row.sent_bytes, row.seconds)]
        around_ms, trip_ms = 1e3 * statistics.median(row.around_s), 1e3 * trips_s[name]
        print(
            f"{name:8}{medians[0]:12,.0f}{medians[1]:12,.0f}{medians[2]:10.3f}{around_ms:12.1f}{trip_ms:16.2f}"
        )
    cost_ms = 1e3 * (statistics.median(rows["ssh"].around_s) - statistics.median(rows["local"].around_s))
    print(
        f"\noverhead of SSH beyond the measuring: {cost_ms:.1f} ms per candidate (asked: under 50 ms on loopback)"
    )
    if busy > QUIET_LOAD:
        print(f"provisional: the machine was busy, load {busy:.1f} per core")


if __name__ == "__main__":
    main()

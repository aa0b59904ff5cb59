"""A device behind an agent, whatever the transport."""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.device import Kernel, NDArrayAny, RawProfile
from opadapt.measure.facts import Facts
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.measure.transport import AGENT, Transport

PROTOCOL = 1
GRACE_S = (
    30.0  # the agent keeps the time limit; only when it is silent this much longer, the transport gives up
)

_DO = {
    "signal": "try another onnxruntime there, or a smaller model",
    "timeout": "allow more time (timeout_s), or measure less (blocks, min_block_s)",
    "memory": "use a smaller model or batch",
    "throttled": "give the board a heat sink, a fan or a stronger power supply; `cool` and `max_retries` of its "
    "device file say how long it may wait",
    "pinning": "correct `pin_cores` in its device file",
}
_LOST = ("throttled",)  # kinds of errors that are the board's, whatever it was asked


class AgentDevice:
    """Device over a transport. The agent is started at first use, and again after it was lost."""

    parallel = 1

    def __init__(self, facts: Facts, transport: Transport, threads: int) -> None:
        self.facts = facts
        self.threads = threads
        self._transport = transport
        self._hello: dict[str, Any] | None = None
        self._tokens = itertools.count()
        self._one_at_a_time = threading.RLock()

    def __enter__(self) -> Self:
        self.hello()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._hello = None
        self._transport.close()

    def hello(self) -> Mapping[str, Any]:
        known = self._hello
        if known is None:
            with self._one_at_a_time:
                known = self._hello = self._hello or self._started()
        return known

    def _started(self) -> dict[str, Any]:
        self._transport.start()
        try:
            hello = self._ask({"do": "hello"}, self.facts.timeout_s)
            self._check(hello)
        except BaseException:
            self._transport.close()
            raise
        return hello

    def _check(self, hello: Mapping[str, Any]) -> None:
        wanted = hashlib.sha256(AGENT.read_bytes()).hexdigest()
        if hello["protocol"] != PROTOCOL or hello["sha256"] != wanted:
            raise DeviceError(
                f"{self.facts.name}: another agent answered",
                expected=f"protocol {PROTOCOL}, sha256 {wanted}",
                found=f"protocol {hello['protocol']}, sha256 {hello['sha256']}",
            )
        if self.facts.arch not in ("host", hello["machine"]):
            raise DeviceError(
                f"{self.facts.name}: not that kind of board",
                expected=f"arch {self.facts.arch}",
                found=str(hello["machine"]),
                do="choose the device type that fits",
            )

    def conditions(self) -> dict[str, Any]:
        self.hello()
        request = {"do": "conditions", "threads": self.threads, "board": _board(self.facts)}
        return self._ask(request, self.facts.timeout_s)

    def time(self, models: Sequence[bytes], timing: Timing, energy: bool = False) -> BlockTimes:
        if not models:
            raise ValueError("nothing to time")
        with self._files(models) as paths:
            request = {"do": "time", "models": paths, **self._how(timing), "energy": energy}
            return _block_times(self._ask(request, self._limit_s(timing)))

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        with self._files([model]) as paths:
            request = {"do": "profile", "model": paths[0], **self._how(timing)}
            answer = self._ask(request, self._limit_s(timing))
            kernels = tuple(Kernel(k["name"], k["op_type"], k["latency_s"]) for k in answer["kernels"])
            return RawProfile(
                kernels, self._transport.get(answer["optimized"]), _block_times(answer["times"])
            )

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **{f"a{i}": value for i, value in enumerate(feeds.values())})
        with self._files([model, packed.getvalue()]) as paths:
            request = {"do": "run", "model": paths[0], "feeds": paths[1], "names": list(feeds)}
            answer = self._ask({**request, "threads": self.threads}, self.facts.timeout_s)
            with np.load(io.BytesIO(self._transport.get(answer["outputs"])), allow_pickle=False) as arrays:
                return {name: arrays[f"a{i}"] for i, name in enumerate(answer["names"])}

    def _how(self, timing: Timing) -> dict[str, Any]:
        return {"timing": timing.model_dump(), "board": _board(self.facts)}

    def _limit_s(self, timing: Timing) -> float:
        """The time limit does not include the waiting for a hot board."""
        return timing.timeout_s + (self.facts.cool.wait_s if self.facts.cool else 0.0)

    @contextmanager
    def _files(self, contents: Sequence[bytes]) -> Iterator[list[str]]:
        """Paths of files in the agent's folder; they and what was made of them (path.*) are removed after."""
        folder, token = self.hello()["folder"], next(self._tokens)
        paths: dict[bytes, str] = {}
        for data in contents:
            if data not in paths:
                paths[data] = f"{folder}/{token}-{len(paths)}.model"
                self._transport.put(data, paths[data])
        try:
            yield [paths[data] for data in contents]
        finally:
            if self._hello is not None:
                self._ask({"do": "forget", "paths": list(paths.values())}, GRACE_S)

    def _ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            with self._one_at_a_time:
                answer = self._transport.request({**request, "timeout_s": timeout_s}, timeout_s + GRACE_S)
        except DeviceError:
            self._hello = None  # the agent is gone: the next request starts another
            raise
        error = answer.get("error")
        if error is None:
            return answer
        where = f" ({error['stage']})" if error.get("stage") else ""
        kind = LostDevice if error["kind"] in _LOST else DeviceError
        raise kind(
            f"{self.facts.name}: {request['do']} failed{where}",
            found=error["message"] + (f"\n{error['log']}" if error.get("log") else ""),
            do=_DO.get(error["kind"]),
        )


def _board(facts: Facts) -> dict[str, Any]:
    """How this type of board is measured: the agent's ``Board`` takes it."""
    return facts.model_dump(mode="json", include={"pin_cores", "cool", "thermal", "power", "max_retries"})


def _block_times(answer: Mapping[str, Any]) -> BlockTimes:
    energy_j = answer["energy_j"]
    return BlockTimes(
        np.array(answer["latency_s"], dtype=np.float64),
        answer["conditions"],
        tuple(answer["order"]),
        None if energy_j is None else tuple(energy_j),
    )

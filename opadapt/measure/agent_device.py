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

from opadapt.errors import DeviceError
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
}


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
        return self._ask({"do": "conditions", "threads": self.threads}, self.facts.timeout_s)

    def time(self, models: Sequence[bytes], timing: Timing) -> BlockTimes:
        if not models:
            raise ValueError("nothing to time")
        with self._files(models) as paths:
            request = {"do": "time", "models": paths, "timing": timing.model_dump()}
            return _block_times(self._ask(request, timing.timeout_s))

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        with self._files([model]) as paths:
            request = {"do": "profile", "model": paths[0], "timing": timing.model_dump()}
            answer = self._ask(request, timing.timeout_s)
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
        raise DeviceError(
            f"{self.facts.name}: {request['do']} failed{where}",
            found=error["message"] + (f"\n{error['log']}" if error.get("log") else ""),
            do=_DO.get(error["kind"]),
        )


def _block_times(answer: Mapping[str, Any]) -> BlockTimes:
    return BlockTimes(
        np.array(answer["latency_s"], dtype=np.float64), answer["conditions"], tuple(answer["order"])
    )

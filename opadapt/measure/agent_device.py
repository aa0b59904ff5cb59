"""A device behind an agent, whatever the transport.

Files are named by the hash of their content in the agent's folder (``sent``). When the connection breaks, the whole
piece of work is tried again, on a new agent: measuring twice does no harm, and the transport waits for the board.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np

from opadapt.errors import DeviceError, FullDisk, LostDevice
from opadapt.measure.device import SAME, Kernel, NDArrayAny, OnProcess, RawProfile
from opadapt.measure.facts import Facts
from opadapt.measure.sent import Sent
from opadapt.measure.timing import BlockTimes, Timing, of_processes
from opadapt.measure.transport import AGENT, Transport

PROTOCOL = 1
GRACE_S = (
    30.0  # the agent keeps the time limit; only when it is silent this much longer, the transport gives up
)
REQUEST_S = 600.0  # longest wait for what has no Timing, where the facts name no limit
TRIES = 3  # of one piece of work, when the connection or the agent is lost in the middle of it
T = TypeVar("T")

_TOLD = {
    "locked": "another opadapt is measuring on this board",
    "space": "no space left on the board",
}
_DO = {
    "locked": "wait for it to end, or choose another board",
    "space": "make room there (df -h); opadapt's own part is ~/.cache/opadapt",
    "signal": "try another onnxruntime there, or a smaller model",
    "timeout": "allow more time (`timeout_s` of its device file), or measure less (blocks, min_block_s)",
    "memory": "use a smaller model or batch",
    "throttled": "give the board a heat sink, a fan or a stronger power supply; `cool` and `max_retries` of its "
    "device file say how long it may wait",
    "pinning": "correct `pin_cores` in its device file",
}
# kinds of errors that are the board's, whatever it was asked
_LOST: Mapping[str, type[LostDevice]] = MappingProxyType({"throttled": LostDevice, "space": FullDisk})


class AgentDevice:
    """Device over a transport. The agent is started at first use, and again after it was lost."""

    parallel = 1

    def __init__(self, facts: Facts, transport: Transport, threads: int) -> None:
        self.facts = facts
        self.threads = threads
        self._transport = transport
        self._hello: dict[str, Any] | None = None
        self._was_there = False
        self._sent = Sent()
        host = getattr(transport, "host", None)
        self._label = f"{facts.name}@{host}" if host else facts.name
        self._one_at_a_time = threading.RLock()
        self._closed = False
        self._request_s = facts.timeout_s or REQUEST_S
        self._same: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        self._closed, self._same = False, None
        self.hello()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agent, and with it whatever another thread is measuring: that is not begun anew, and nothing else
        is until the device is entered again."""
        self._closed = True
        self._hello = None
        self._transport.close()

    def hello(self) -> Mapping[str, Any]:
        return self._hello or self._again(self._present)

    def _again(self, work: Callable[[], T]) -> T:
        """The result of a piece of work, begun anew when the connection or the agent is lost in the middle. After an
        interrupt an answer may still be due, so that agent is asked nothing more."""
        with self._one_at_a_time:
            self._check_open()
            for left in reversed(range(TRIES)):
                try:
                    return work()
                except LostDevice as lost:
                    if lost.given_up or self._closed or not left:
                        if self._was_there:
                            hint = lost.do or "see that the board is on and in the network"
                            lost.do = f"{hint}; the run goes on with `opadapt resume`"
                        raise
                except Exception:
                    raise
                except BaseException:  # Ctrl-C
                    self._hello = None
                    self._transport.close()
                    raise
        raise AssertionError("unreachable")

    def _check_open(self) -> None:
        if self._closed:
            self._hello = None
            raise DeviceError(f"{self._label}: the device was closed")

    def _present(self) -> Mapping[str, Any]:
        """What the agent said when it was started; it is started if need be."""
        known = self._hello
        if known is None:
            known = self._started()
            self._check_same(known)
            self._hello = known
            self._was_there = True
            self._sent.start(known.get("files", {}))
            self._check_open()
        return known

    def _started(self) -> dict[str, Any]:
        self._transport.start()
        try:
            self._check_open()  # it may have been closed meanwhile
            hello = self._ask({"do": "hello"}, self._request_s)
            self._check(hello)
        except LostDevice:
            raise
        except BaseException:
            self._transport.close()
            raise
        return hello

    def _check(self, hello: Mapping[str, Any]) -> None:
        wanted = hashlib.sha256(AGENT.read_bytes()).hexdigest()
        if hello["protocol"] != PROTOCOL or hello["sha256"] != wanted:
            raise DeviceError(
                f"{self._label}: another agent answered",
                expected=f"protocol {PROTOCOL}, sha256 {wanted}",
                found=f"protocol {hello['protocol']}, sha256 {hello['sha256']}",
            )
        if self.facts.arch not in ("host", hello["machine"]):
            raise DeviceError(
                f"{self._label}: not that kind of board",
                expected=f"arch {self.facts.arch}",
                found=str(hello["machine"]),
                do="choose the device type that fits",
            )

    def _check_same(self, told: Mapping[str, Any]) -> None:
        """Raises LostDevice for another machine behind the address, or another onnxruntime, than there was when the
        device was entered: what they measure must not be filed under the name of the first."""
        found = {key: told[key] for key in SAME}
        self._same = self._same or found
        if found != self._same:
            self._hello = None
            self._transport.close()
            lost = LostDevice(
                f"{self._label}: it is not what it was at the beginning",
                expected=_listed(self._same),
                found=_listed(found),
                do="put back what it was, or let all of it be measured anew",
            )
            lost.given_up = True
            raise lost

    def conditions(self) -> dict[str, Any]:
        request = {"do": "conditions", "threads": self.threads, "board": _board(self.facts)}

        def work() -> dict[str, Any]:
            self._present()
            return self._ask(request, self._request_s)

        return self._again(work)

    def time(
        self,
        models: Sequence[bytes],
        timing: Timing,
        energy: bool = False,
        on_process: OnProcess | None = None,
    ) -> BlockTimes:
        if not models:
            raise ValueError("nothing to time")

        # one by each process; what is there is not measured again after a broken connection
        found: list[BlockTimes] = []

        def work(paths: list[str]) -> BlockTimes:
            request = {"do": "time", "models": paths, **self._how(timing), "energy": energy}
            while len(found) < timing.processes:
                found.append(self._block_times(self._ask(request, self._limit_s(timing, len(models)))))
                if on_process is not None:
                    on_process(len(found))
            return of_processes(found)

        return self._with_files(models, work, base_first=True)

    def profile(self, model: bytes, timing: Timing) -> RawProfile:
        def work(paths: list[str]) -> RawProfile:
            request = {"do": "profile", "model": paths[0], **self._how(timing)}
            answer = self._ask(request, self._limit_s(timing))
            times = self._block_times(answer["times"])
            kernels = tuple(Kernel(k["name"], k["op_type"], k["latency_s"]) for k in answer["kernels"])
            return RawProfile(kernels, self._get(answer["optimized"]), times)

        return self._with_files([model], work)

    def run(self, model: bytes, feeds: Mapping[str, NDArrayAny]) -> dict[str, NDArrayAny]:
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **{f"a{i}": value for i, value in enumerate(feeds.values())})

        def work(paths: list[str]) -> dict[str, NDArrayAny]:
            request = {"do": "run", "model": paths[0], "feeds": paths[1], "names": list(feeds)}
            answer = self._ask({**request, "threads": self.threads}, self._request_s)
            with np.load(io.BytesIO(self._get(answer["outputs"])), allow_pickle=False) as arrays:
                return {name: arrays[f"a{i}"] for i, name in enumerate(answer["names"])}

        return self._with_files([model, packed.getvalue()], work)

    def _how(self, timing: Timing) -> dict[str, Any]:
        return {"timing": timing.model_dump(), "board": _board(self.facts)}

    def _limit_s(self, timing: Timing, models: int = 1) -> float:
        """For so many models; the board's own limit where its facts name one. It does not include the waiting for a
        hot board."""
        limit_s = (self.facts.timeout_s or timing.timeout_s) * models
        return limit_s + (self.facts.cool.wait_s if self.facts.cool else 0.0)

    def _with_files(
        self, contents: Sequence[bytes], work: Callable[[list[str]], T], base_first: bool = False
    ) -> T:
        """Do something with files in the agent's folder. With ``base_first`` the first of them stays there, and
        the work makes no files of its own."""
        files = {hashlib.sha256(data).hexdigest(): data for data in contents}
        names = [hashlib.sha256(data).hexdigest() for data in contents]
        self._sent.ask_for(files)

        def with_files() -> T:
            with self._there(files, names[:1] if base_first else [], not base_first) as folder:
                return work([f"{folder}/{name}" for name in names])

        return self._again(with_files)

    @contextmanager
    def _there(self, files: Mapping[str, bytes], base: Sequence[str], untidy: bool) -> Iterator[str]:
        """The agent's folder with these files in it. Afterwards those that need not stay are removed, and with
        ``untidy`` what was made of the others (path.*)."""
        folder = self._present()["folder"]
        try:
            for name, data in files.items():
                if not self._sent.has(name):
                    self._put(data, f"{folder}/{name}")
                self._sent.put(name, len(data))
            yield folder
        except Exception:
            self._tidy(folder, files, base, untidy)
            raise
        self._tidy(folder, files, base, untidy)

    def _tidy(self, folder: str, files: Mapping[str, bytes], base: Sequence[str], untidy: bool) -> None:
        gone = self._sent.finish(files, base)
        if self._hello is not None and (gone or untidy):
            paths = [f"{folder}/{name}" for name in {**dict.fromkeys(gone), **files}]
            keep = [f"{folder}/{name}" for name in files if name not in gone]
            with suppress(DeviceError):  # what was measured counts, whatever becomes of the files
                self._ask({"do": "forget", "paths": paths, "keep": keep}, GRACE_S)

    def _put(self, data: bytes, path: str) -> None:
        with self._noticing():
            self._transport.put(data, path)

    def _get(self, path: str) -> bytes:
        with self._noticing():
            return self._transport.get(path)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """When the connection goes, the agent is gone, too: the next request starts another."""
        try:
            yield
        except FullDisk:
            raise
        except LostDevice:
            self._hello = None
            raise

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
        told = _TOLD.get(error["kind"], f"{request['do']} failed")
        found = error["message"] + (f"\n{error['log']}" if error.get("log") else "")
        kind = _LOST.get(error["kind"], DeviceError)
        raised = kind(
            f"{self._label}: {told}{where}", found=found, do=_DO.get(error["kind"]), kind=error["kind"]
        )
        if isinstance(raised, LostDevice):
            raised.given_up = True
        raise raised

    def _block_times(self, answer: Mapping[str, Any]) -> BlockTimes:
        """Raises LostDevice where they are another machine's."""
        self._check_same(answer["conditions"])
        energy_j = answer["energy_j"]
        return BlockTimes(
            np.array(answer["latency_s"], dtype=np.float64),
            answer["conditions"],
            tuple(answer["order"]),
            None if energy_j is None else tuple(energy_j),
        )


def _board(facts: Facts) -> dict[str, Any]:
    """How this type of board is measured: the agent's ``Board`` takes it."""
    return facts.model_dump(mode="json", include={"pin_cores", "cool", "thermal", "power", "max_retries"})


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())

#!/usr/bin/env python3
"""The measuring agent: one self-contained file that runs on the board.

Needs Python >= 3.9, numpy and onnxruntime, nothing of opadapt. Speaks JSON lines: one request on stdin, one
answer on stdout: ``{"id", "do", ...}`` -> ``{"id", ...}`` or ``{"id", "error": {"kind", "message", ...}}``.

    hello                     sha256, folder, versions, cpu, ...
    conditions                temperature, governor, clock, throttling, load, versions
    time     models, timing   latency_s[model][block], order, conditions
    profile  model, timing    kernels, the path of the optimised model, un-profiled times
    run      model, feeds     the path of the outputs
    forget   paths            how many files were removed, those made of them included

Whoever sends files puts them into ``folder``; it goes with everything in it when stdin closes. What touches
onnxruntime runs in a child process, so an illegal instruction, a segmentation fault, the memory killer or a
timeout becomes an answer that names it, and the agent lives on. The agent itself is single-threaded and needs
the standard library alone.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROTOCOL = 1
PROVIDER = "CPUExecutionProvider"
PROFILED_RUNS = 100  # at most: the profile of 250 nodes is then about 15 MB of JSON
PROFILE_WARMUP = 3  # profiled runs that are not counted
HERE = Path(__file__).resolve()
SYS = Path("/sys")
_STAGE = Path("stage")  # in the child's folder: the mark of what it was at, which outlives a crash


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def cpu_model() -> str:
    """The CPU's model name; ARM kernels give none, the board's name takes its place."""
    fields: dict[str, str] = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    named = fields.get("model name") or _read(Path("/proc/device-tree/model")) or fields.get("hardware")
    return named or platform.processor() or platform.machine()


def _throttled() -> str | None:
    """A Raspberry Pi's word of flags, x86's counter, or None where the system tells nothing."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["vcgencmd", "get_throttled"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip().partition("=")[2]
    counters = SYS.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    counts = [int(text) for text in map(_read, counters) if text.isdigit()]
    return str(sum(counts)) if counts else None


def conditions() -> dict[str, Any]:
    """What may differ from one measurement to the next. What the system does not tell is None or empty."""
    temperature_c = {}
    for zone in sorted(SYS.glob("class/thermal/thermal_zone*")):
        value = _read(zone / "temp")
        if value.lstrip("-").isdigit():
            temperature_c[f"{zone.name}:{_read(zone / 'type')}"] = int(value) / 1000
    clocks = map(_read, sorted(SYS.glob("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")))
    governors = set(map(_read, SYS.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor"))) - {""}
    return {
        "temperature_c": temperature_c,
        "governor": ",".join(sorted(governors)) or None,
        "clock_mhz": [int(text) / 1000 for text in clocks if text.isdigit()],
        "throttled": _throttled(),
        "load_average": list(os.getloadavg()),
    }


def _session(path: str, threads: int, profile: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path.cwd() / "profile")
        options.optimized_model_filepath = f"{path}.optimized"
    return ort.InferenceSession(path, options, providers=[PROVIDER])


def _inputs(session: Any, seed: int) -> dict[str, Any]:
    """Normal numbers for floats, zeros for all else (an index of zero is in range everywhere)."""
    import numpy as np

    names = {"tensor(float)": "float32", "tensor(double)": "float64"}
    feeds = {}
    for number, wanted in enumerate(session.get_inputs()):
        if not all(isinstance(dim, int) and dim > 0 for dim in wanted.shape):
            raise ValueError(f"input '{wanted.name}' has the free shape {wanted.shape}: pin it")
        dtype = np.dtype(names.get(wanted.type) or wanted.type[len("tensor(") : -1])
        feeds[wanted.name] = np.zeros(wanted.shape, dtype)
        if dtype.kind == "f":
            normal = np.random.default_rng([seed, number]).standard_normal(wanted.shape)
            feeds[wanted.name] = normal.astype(dtype)
    return feeds


def _runner(session: Any, seed: int) -> Any:
    """What runs the session once; bound beforehand, to keep Python's part out of the time."""
    binding = session.io_binding()
    for name, value in _inputs(session, seed).items():
        binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _block(run: Any, min_s: float, min_runs: int) -> list[int]:
    """Times [ns] of consecutive runs, for at least ``min_s`` seconds and ``min_runs`` runs."""
    clock = time.perf_counter_ns
    times: list[int] = []
    run()  # the block before may have evicted the caches: that is another question
    now = clock()
    end = now + int(min_s * 1e9)
    while now < end or len(times) < min_runs:
        before = now
        run()
        now = clock()
        times.append(now - before)
    return times


def block_order(models: int, blocks: int) -> list[int]:
    """Which model each block runs: A B B A, B A A B, ...; more models: rounds mirrored in pairs, rotated."""
    order: list[int] = []
    for turn in range(blocks):
        rotated = [(turn // 2 + i) % models for i in range(models)]
        order.extend(reversed(rotated) if turn % 2 else rotated)
    return order


def _do_hello(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _do_conditions(request: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime as ort

    fixed = {"cpu": cpu_model(), "machine": platform.machine(), "onnxruntime": ort.__version__}
    return {**fixed, "provider": PROVIDER, "threads": request["threads"], "before": conditions()}


def _do_time(request: dict[str, Any]) -> dict[str, Any]:
    timing = request["timing"]
    found = _do_conditions(timing)
    runners = []
    for number, path in enumerate(request["models"]):
        _STAGE.write_text(f"model {number}: making the session")
        runners.append(_runner(_session(path, timing["threads"]), timing["seed"]))
        _STAGE.write_text(f"model {number}: warming up")
        _block(runners[number], timing["warmup_s"], 1)
    order = block_order(len(runners), timing["blocks"])
    latency_s: list[list[float]] = [[] for _ in runners]
    gc.collect()
    gc.disable()
    for number in order:
        _STAGE.write_text(f"model {number}: block {len(latency_s[number])}")
        times = _block(runners[number], timing["min_block_s"], timing["min_runs"])
        latency_s[number].append(statistics.median(times) / 1e9)
    gc.enable()
    return {"latency_s": latency_s, "order": order, "conditions": {**found, "after": conditions()}}


def _kernels(path: str) -> list[dict[str, Any]]:
    """Per node of the optimised model the interquartile mean of its times, which are whole microseconds."""
    suffix = "_kernel_time"
    found: dict[Any, list[int]] = {}
    for event in json.loads(Path(path).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            key = (event["name"], event["args"].get("op_name"), event["args"].get("node_index"))
            found.setdefault(key, []).append(event["dur"])
    kernels = []
    for (event_name, op_type, _), durations in found.items():
        name = event_name[: -len(suffix)]
        counted = sorted(durations[PROFILE_WARMUP:])
        middle = counted[len(counted) // 4 : len(counted) - len(counted) // 4]
        kernels.append({"name": name, "op_type": op_type, "latency_s": statistics.mean(middle) / 1e6})
    return kernels


def _do_profile(request: dict[str, Any]) -> dict[str, Any]:
    timing, path = request["timing"], request["model"]
    times = _do_time({"models": [path], "timing": timing})
    _STAGE.write_text("model 0: making the profiled session")
    session = _session(path, timing["threads"], profile=True)
    run = _runner(session, timing["seed"])
    _STAGE.write_text("model 0: profiled runs")
    end = time.perf_counter() + timing["profile_s"]
    for number in range(PROFILE_WARMUP + max(PROFILED_RUNS, timing["min_runs"])):
        run()
        if number >= PROFILE_WARMUP + timing["min_runs"] and time.perf_counter() > end:
            break
    return {"kernels": _kernels(session.end_profiling()), "optimized": f"{path}.optimized", "times": times}


def _do_run(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    with np.load(request["feeds"], allow_pickle=False) as arrays:
        feeds = {name: arrays[f"a{i}"] for i, name in enumerate(request["names"])}
    _STAGE.write_text("model 0: making the session")
    session = _session(request["model"], request["threads"])
    _STAGE.write_text("model 0: running")
    outputs = session.run(None, feeds)
    path = request["model"] + ".outputs.npz"
    arrays = {f"a{i}": np.asarray(value) for i, value in enumerate(outputs)}
    np.savez(path, allow_pickle=False, **arrays)
    return {"outputs": path, "names": [output.name for output in session.get_outputs()]}


_NAMES = {"hello": _do_hello, "conditions": _do_conditions}
ACTIONS = {**_NAMES, "time": _do_time, "profile": _do_profile, "run": _do_run}


def child() -> None:
    """Serve one request in the working directory; the answer goes where stdout was at the start."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what libraries print belongs to the log
        request = json.loads(sys.stdin.readline())
        # reading ends when the agent's end of the pipe is gone, however it went
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
        try:
            result = ACTIONS[request["do"]](request)
        except Exception as error:
            kind = "memory" if isinstance(error, MemoryError) or "alloc" in str(error) else "exception"
            result = {"error": {"kind": kind, "message": f"{type(error).__name__}: {error}"}}
        json.dump(result, answer)
    os._exit(0)  # a finished child does not wait for its watching thread


class _Closed(Exception):
    """stdin is at its end, or a signal asked the agent to go."""


def _how_it_ended(code: int, log: str) -> dict[str, Any]:
    """The error of a child that ended without an answer."""
    if code >= 0:
        return {"kind": "exit", "message": f"ended with exit code {code}", "log": log}
    name = {s.value: s.name for s in signal.Signals}.get(-code, f"signal {-code}")
    note = {"SIGKILL": ": out of memory?", "SIGILL": ": an instruction this CPU lacks"}.get(name, "")
    return {"kind": "signal", "signal": name, "message": f"killed by {name}{note}", "log": log}


class Agent:
    """Reads requests, starts a child for each that measures, answers."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="opadapt-agent-")).resolve()
        self.sha256 = hashlib.sha256(HERE.read_bytes()).hexdigest()
        self.buffer = b""

    def take_input(self) -> None:
        """Read what there is on stdin. Raises _Closed at its end."""
        data = os.read(0, 1 << 16)
        if not data:
            raise _Closed
        self.buffer += data

    def collect(self, pipe: int, limit_s: float) -> bytes | None:
        """The child's output up to its end, None after the time limit. Watches stdin, whose end ends all."""
        output, deadline = b"", time.monotonic() + limit_s
        while True:
            left = deadline - time.monotonic()
            ready = select.select([0, pipe], [], [], max(0.0, left))[0]
            if 0 in ready:
                self.take_input()
            if pipe in ready:
                data = os.read(pipe, 1 << 16)
                if not data:
                    return output
                output += data
            elif left <= 0:
                return None

    def in_child(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one request in a child process and say how it went."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        limit_s = float(request.get("timeout_s", 600))
        command, pipe = [sys.executable, str(HERE), "--child"], subprocess.PIPE
        with (folder / "log").open("wb") as log:
            # a session of its own, so that it can be killed with whatever it started
            options: dict[str, Any] = {"stderr": log, "cwd": folder, "start_new_session": True}
            process: Any = subprocess.Popen(command, stdin=pipe, stdout=pipe, **options)
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            output = self.collect(process.stdout.fileno(), limit_s)
            if output is None:
                error = {"kind": "timeout", "message": f"no result within {limit_s:g} s"}
            elif process.wait() != 0:
                error = _how_it_ended(process.returncode, _read(folder / "log")[-2000:])
            else:
                result: dict[str, Any] = json.loads(output)
                if "error" not in result:
                    return result
                error = result["error"]
            return {"error": {**error, "stage": _read(folder / "stage")}}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)

    def answer(self, line: bytes) -> dict[str, Any]:
        request: dict[str, Any] = {}
        try:
            request = dict(json.loads(line))
            if request["do"] == "forget":  # files of the folder, and those made of them (path.*)
                roots = tuple(f"{path}." for path in request["paths"])
                mine = [file for file in self.folder.iterdir() if f"{file}.".startswith(roots)]
                result: dict[str, Any] = {"removed": len(mine)}
                for file in mine:
                    file.unlink()
            elif request["do"] in ACTIONS:
                result = self.in_child(request)
            else:
                raise ValueError(f"no such request: {request['do']}")
        except (ValueError, KeyError, TypeError) as problem:
            result = {"error": {"kind": "request", "message": f"{type(problem).__name__}: {problem}"}}
        if request.get("do") == "hello":  # known even where onnxruntime cannot be imported
            result.update(protocol=PROTOCOL, sha256=self.sha256, folder=str(self.folder))
        return {**result, "id": request.get("id")}

    def serve(self) -> None:
        try:
            while True:
                while b"\n" not in self.buffer:
                    self.take_input()
                line, _, self.buffer = self.buffer.partition(b"\n")
                sys.stdout.write(json.dumps(self.answer(line)) + "\n")
                sys.stdout.flush()
        except (_Closed, BrokenPipeError):
            pass
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        child()

    def go(number: int, frame: Any) -> None:
        for other in ends:
            signal.signal(other, signal.SIG_IGN)  # tidying up is not to be disturbed
        raise _Closed

    ends = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    for number in ends:
        signal.signal(number, go)
    Agent().serve()


if __name__ == "__main__":
    main()

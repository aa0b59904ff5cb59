#!/usr/bin/env python3
"""Is a run's reported speed what anybody gets? Times original.onnx and adapted.onnx of a run folder with plain
onnxruntime, without opadapt: onnx.checker on both, then blocks of runs that alternate (ABBA), one thread, batch 1, in
several processes one after the other: where one lies in memory makes a small model up to a tenth faster or slower.

    python scripts/bench/plain_onnxruntime.py runs/NAME [--processes 8] [--blocks 10] [--threads 1]

Needs onnx, onnxruntime and numpy alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

BLOCK_S = 0.1


def session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(path: Path) -> dict[str, Any]:
    """Normal numbers; a free dimension is 1."""
    model = onnx.load(path)
    stored = {i.name for i in model.graph.initializer}
    rng = np.random.default_rng(0)
    made = {}
    for info in model.graph.input:
        if info.name not in stored:
            tensor = info.type.tensor_type
            shape = [d.dim_value or 1 for d in tensor.shape.dim]
            made[info.name] = rng.standard_normal(shape).astype(
                onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            )
    return made


def block(one: ort.InferenceSession, inputs: dict[str, Any]) -> float:
    """The median time of a run in a block, in seconds."""
    times: list[float] = []
    one.run(None, inputs)
    end = time.perf_counter() + BLOCK_S
    while time.perf_counter() < end:
        began = time.perf_counter()
        one.run(None, inputs)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measured(files: list[Path], blocks: int, threads: int) -> list[float]:
    """The median time (s) of each file, by this process."""
    inputs = feeds(files[0])
    sessions = [session(file, threads) for file in files]
    for one in sessions:
        block(one, inputs)
    times: list[list[float]] = [[] for _ in files]
    for turn in range(blocks):
        for which in range(len(files)) if turn % 2 == 0 else reversed(range(len(files))):
            times[which].append(block(sessions[which], inputs))
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=10, help="per file and process")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    files = [given.run / "original.onnx", given.run / "adapted.onnx"]
    for file in files:
        onnx.checker.check_model(onnx.load(file), full_check=True)
    found = []
    for _ in range(given.processes):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found.append(process.submit(measured, files, given.blocks, given.threads).result())
    print(f"onnxruntime {ort.__version__}, {given.threads} thread(s), onnx.checker: both files pass")
    for file, times in zip(files, zip(*found, strict=True), strict=True):
        print(f"{file.name:14} {statistics.median(times) * 1e3:8.3f} ms")
    ratios = sorted(original / adapted for original, adapted in found)
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"speedup        {statistics.median(ratios):8.2f}x   (each process: {each})")
    report = given.run / "report.json"
    if report.exists():
        reported = json.loads(report.read_text())["latency"]["speedup"]
        print(f"reported       {reported['value']:8.2f}x   ({reported['low']:.2f} to {reported['high']:.2f})")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Is a run's reported speed what anybody gets? Times original.onnx and adapted.onnx of a run folder with plain
onnxruntime, without opadapt: onnx.checker on both, then blocks of runs that alternate (ABBA), one thread, batch 1.

    python scripts/bench/plain_onnxruntime.py runs/NAME [--blocks 20] [--threads 1]

Needs onnx, onnxruntime and numpy alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    files = [given.run / "original.onnx", given.run / "adapted.onnx"]
    for file in files:
        onnx.checker.check_model(onnx.load(file), full_check=True)
    inputs = feeds(files[0])
    sessions = [session(file, given.threads) for file in files]
    for one in sessions:
        block(one, inputs)
    times: list[list[float]] = [[], []]
    for turn in range(given.blocks):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append(block(sessions[which], inputs))
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    print(f"onnxruntime {ort.__version__}, {given.threads} thread(s), onnx.checker: both files pass")
    for file, found in zip(files, times, strict=True):
        print(f"{file.name:14} {statistics.median(found) * 1e3:8.3f} ms")
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    print(f"speedup        {statistics.median(ratios):8.2f}x   (8 of 10 pairs: {low:.2f} to {high:.2f})")
    report = given.run / "report.json"
    if report.exists():
        reported = json.loads(report.read_text())["latency"]["speedup"]
        print(f"reported       {reported['value']:8.2f}x   ({reported['low']:.2f} to {reported['high']:.2f})")


if __name__ == "__main__":
    main()

"""The truth test: for random valid programs, every implementation of the instruction table agrees.

The numpy meaning, ONNX Runtime on the lowered nodes and the torch module of those nodes are compared on batches 1
and 3; onnx.reference joins for a part. The tolerance of a program is the sum of ``Spec.rtol`` over its instructions,
relative to the largest magnitude among its result and what is summed into it.

``OPADAPT_TRUTH=50000`` runs that many programs; ``OPADAPT_TRUTH_FIRST`` is the first seed.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from magnitude import RULES, magnitude
from onnx.reference import ReferenceEvaluator

from opadapt.ir.instructions import TABLE
from opadapt.ir.interpret import run
from opadapt.ir.program import Program
from opadapt.ir.text import print_program
from opadapt.lower import to_model
from opadapt.search.generate import random_binding, random_program
from opadapt.torchgraph import build

PROGRAMS = int(os.environ.get("OPADAPT_TRUTH", "2000"))
FIRST = int(os.environ.get("OPADAPT_TRUTH_FIRST", "0"))
CHUNKS = 20 if PROGRAMS <= 5000 else 200
REFERENCE_EVERY = 25  # onnx.reference is slow
BATCHES = (1, 3)


def program_of(seed: int) -> tuple[Program, dict[str, np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(seed)
    program = random_program(rng, None, set(TABLE), int(rng.integers(1, 13)))
    return program, random_binding(program, rng), rng


def ort_session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def disagreements(seed: int) -> list[str]:
    """What differs from the numpy meaning for one seed, each as a line."""
    program, binding, rng = program_of(seed)
    model = to_model(program, binding, None)
    onnx.checker.check_model(model, full_check=True)
    session, module = ort_session(model), build(model)
    found: list[str] = []
    for batch in BATCHES:
        feeds = [rng.normal(size=t.at_batch(batch)).astype(np.float32) for t in program.inputs]
        expected = run(program, feeds, binding)
        allowed = sum(TABLE[step.op].rtol for step in program.body) * magnitude(program, feeds, binding)
        named = {f"x{i}": a for i, a in enumerate(feeds)}
        with torch.no_grad():
            results = {
                "onnxruntime": session.run(None, named)[0],
                "torch": module(*map(torch.from_numpy, feeds)).numpy(),
            }
        if seed % REFERENCE_EVERY == 0 and not _misread_by_reference(model):
            results["onnx.reference"] = ReferenceEvaluator(model).run(None, named)[0]
        for name, result in results.items():
            if result.shape != expected.shape or result.dtype != np.float32:
                found.append(f"{name}, batch {batch}: {result.dtype}{result.shape} not {expected.shape}")
                continue
            error = float(np.abs(result - expected).max())
            if not error <= allowed:  # also where either is not finite
                found.append(f"{name}, batch {batch}: error {error:.2e}, tolerance {allowed:.2e}")
    return found


POOLS = {"GlobalMaxPool", "MaxPool", "AveragePool"}


def _misread_by_reference(model: onnx.ModelProto) -> bool:
    """onnx.reference 1.23 is right about pools over two spatial axes only, padded alike on both sides.

    It gives GlobalMaxPool of three axes a fourth, and mistakes the high padding of MaxPool for the low one.
    """
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in [*model.graph.input, *model.graph.value_info]}
    for node in model.graph.node:
        pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
        uneven = pads[: len(pads) // 2] != pads[len(pads) // 2 :]
        if node.op_type in POOLS and (ranks.get(node.input[0]) != 4 or uneven):
            return True
    return False


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_implementations_agree(chunk: int) -> None:
    torch.set_num_threads(1)
    failures = []
    for seed in range(FIRST + chunk, FIRST + PROGRAMS, CHUNKS):
        try:
            lines = disagreements(seed)
        except Exception as error:
            lines = [f"{type(error).__name__}: {error}"]
        if lines:
            text = print_program(program_of(seed)[0])
            failures.append("\n".join([f"seed {seed}", *lines, text]))
    assert not failures, f"{len(failures)} programs differ\n\n" + "\n\n".join(failures)


def test_every_instruction_occurs_often() -> None:
    counts: Counter[str] = Counter()
    for seed in range(2000):
        counts.update({step.op for step in program_of(seed)[0].body})
    rare = {op: counts[op] for op in TABLE if counts[op] < 20}
    assert not rare


def test_every_computing_instruction_has_a_magnitude() -> None:
    assert set(RULES) == {op for op, spec in TABLE.items() if spec.kind != "leaf"}

"""What the shipped rules make runs: ONNX Runtime on the lowered program agrees with its meaning."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from rule_programs import PROGRAMS, sample, weights

from opadapt.ir.interpret import run
from opadapt.lower import to_model
from opadapt.search.rewrite import apply, variants
from opadapt.search.space import Rule, load_space


@pytest.mark.parametrize("rule", load_space().rules, ids=lambda r: r.name)
def test_first_variant_of_each_program_runs(rule: Rule) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    ran = 0
    for program in PROGRAMS.values():
        for match, choice in variants(rule, program):
            changed, binding = apply(rule, program, match, choice, weights(program), np.random.default_rng(0))
            model = to_model(changed, binding, 2).SerializeToString()
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            inputs = sample(changed)
            (result,) = session.run(None, {f"x{i}": value for i, value in enumerate(inputs)})
            expected = run(changed, inputs, binding)
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            ran += 1
            break
    assert ran

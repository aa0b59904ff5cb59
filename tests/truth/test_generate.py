"""The random generator: what it may use, what it must end with, and that its values stay tame."""

from __future__ import annotations

import numpy as np
import pytest

from opadapt.errors import ProgramError
from opadapt.ir.canonical import live_values
from opadapt.ir.instructions import TABLE
from opadapt.ir.interpret import run
from opadapt.ir.program import Program, Signature
from opadapt.ir.types import TensorType
from opadapt.search.generate import random_binding, random_program
from opadapt.search.moves import MOVES

SIGNATURES = [
    Signature((TensorType(("N", 6, 8, 8)),), TensorType(("N", 6, 8, 8))),
    Signature((TensorType(("N", 3, 9, 7)),), TensorType(("N", 8, 5, 4))),
    Signature((TensorType(("N", 4, 5, 5)),), TensorType(("N", 10))),
    Signature((TensorType(("N", 4, 12)), TensorType(("N", 4, 12))), TensorType(("N", 6, 24))),
    Signature((TensorType(("N", 12)),), TensorType(("N", 2, 6, 3))),
    Signature((TensorType(("N", 5, 8)), TensorType((5, 8))), TensorType((8, 7))),
    Signature((TensorType((3, 4)),), TensorType((3, 4))),
    Signature((TensorType((4, "N", 5)),), TensorType((2, 3, "N"))),
]
ALL = frozenset(TABLE)


def evaluated(program: Program, rng: np.random.Generator) -> np.ndarray:
    inputs = [rng.normal(size=t.at_batch(2)).astype(np.float32) for t in program.inputs]
    return run(program, inputs, random_binding(program, rng))


def test_moves_cover_the_instruction_table() -> None:
    assert set(MOVES) == set(TABLE)


@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
def test_programs_keep_the_signature(signature: Signature) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        program = random_program(rng, signature, ALL, int(rng.integers(1, 10)))
        assert program.signature == signature
        assert np.isfinite(evaluated(program, rng)).all()


def test_values_stay_tame() -> None:
    largest = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        largest.append(float(np.abs(evaluated(random_program(rng, None, ALL, 10), rng)).max()))
    assert max(largest) < 200
    assert float(np.median(largest)) > 0.1


def test_only_allowed_instructions_are_used() -> None:
    allowed = {"param", "pad", "window", "contract", "relu", "reshape", "add"}
    used: set[str] = set()
    for seed in range(60):
        program = random_program(np.random.default_rng(seed), SIGNATURES[0], allowed, 8)
        used |= {step.op for step in program.body}
    assert used == allowed


def test_no_dead_code_and_about_the_wanted_length() -> None:
    lengths = []
    for seed in range(100):
        program = random_program(np.random.default_rng(seed), None, ALL, 12)
        assert live_values(program) >= set(range(len(program.inputs), len(program.types)))
        lengths.append(len(program.body))
    assert 12 <= np.median(lengths) <= 20
    assert max(lengths) <= 30


def test_the_seed_decides() -> None:
    first, second = (random_program(np.random.default_rng(7), SIGNATURES[1], ALL, 9) for _ in range(2))
    assert first == second
    bindings = [random_binding(first, np.random.default_rng(8)) for _ in range(2)]
    for name, value in bindings[0].items():
        np.testing.assert_array_equal(value, bindings[1][name])


def test_an_unknown_instruction_is_refused() -> None:
    with pytest.raises(ProgramError, match="no instruction 'convolve'"):
        random_program(np.random.default_rng(0), None, {"convolve"}, 3)


def test_a_type_out_of_reach_is_refused() -> None:
    with pytest.raises(ProgramError, match="cannot make axis"):
        random_program(np.random.default_rng(0), SIGNATURES[1], {"relu"}, 3)
    no_batch = Signature((TensorType((3, 4)),), TensorType(("N", 4)))
    with pytest.raises(ProgramError, match="no value to make"):
        random_program(np.random.default_rng(0), no_batch, ALL, 3)

"""The error tree: what a message says, and that a refusal survives the way out of a worker process."""

from __future__ import annotations

import copy

from opadapt.errors import DataError, OpadaptError, Refused


def test_message_says_expected_found_and_what_to_do() -> None:
    error = DataError("no labels", expected="labels", found="none", do="add them")
    assert str(error) == "no labels\n  expected: labels\n  found: none\n  do: add them"
    assert isinstance(error, OpadaptError)


def test_refusal_can_be_copied_as_a_worker_process_does() -> None:
    again = copy.copy(Refused("torch", "no builder for operator LSTM"))
    assert (again.stage, again.reason) == ("torch", "no builder for operator LSTM")

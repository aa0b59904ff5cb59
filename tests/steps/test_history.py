"""What kept a run from its target."""

from __future__ import annotations

import pytest

from opadapt.report.data import Attempt
from opadapt.steps.history import History


def attempt(aim: float, speedup: float | None, accepted: bool, reason: str = "") -> Attempt:
    return Attempt(
        round=1,
        attempt=1,
        aim_speedup=aim,
        replacements=1,
        speedup=speedup,
        difference=None,
        accepted=accepted,
        reason=reason,
    )


@pytest.mark.parametrize(
    ("attempts", "bound"),
    [
        ([], "search: nothing was tried"),
        ([attempt(3.0, None, False, "all save 1 ms, 2 are needed")], "search: all save 1 ms, 2 are needed"),
        (
            [attempt(3.0, 3.02, False, "lost 3.1 points, 1 is allowed"), attempt(2.5, 2.51, True)],
            "tolerance: at 3.02x lost 3.1 points, 1 is allowed",
        ),
        ([attempt(3.0, 2.8, True)], "search: no selection was faster than 2.80x"),
        ([attempt(3.0, 3.01, True)], "latency: 3.01x when it was selected, 2.90x as exported"),
    ],
)
def test_which_constraint_bound(attempts: list[Attempt], bound: str) -> None:
    assert History(attempts=attempts).bound(2.9) == bound

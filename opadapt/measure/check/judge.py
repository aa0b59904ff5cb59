"""Is a board fit to measure on? One finding per item, each with a verdict and, unless it is ok, a remedy.

``bad``: measuring there fails, or its results would be wrong. ``warn``: it works, less precisely or for longer.
What a board does not tell counts as ok and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from opadapt.measure.check import software, state
from opadapt.measure.check.finding import Case, Finding


def judge(case: Case) -> list[Finding]:
    """All findings, in the order of ``CHECKS``."""
    return [check(case) for check in CHECKS.values()]


CHECKS: Mapping[str, Callable[[Case], Finding]] = MappingProxyType(
    {
        "system": software.system,
        "architecture": software.architecture,
        "cores": software.cores,
        "memory": state.memory,
        "disk": state.disk,
        "python": software.python,
        "onnxruntime": software.onnxruntime,
        "governor": state.governor,
        "clock": state.clock,
        "temperature": state.temperature,
        "throttling": state.throttling,
        "load": state.load,
    }
)


def usable(findings: list[Finding]) -> bool:
    """Whether the board can run a model at all."""
    needed = ("system", "architecture", "cores", "python", "onnxruntime")
    return not any(f.verdict == "bad" and f.item in needed for f in findings)

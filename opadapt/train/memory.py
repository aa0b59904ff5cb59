"""Memory that runs out: the machine's fault, never a candidate's. Libraries tell it in their own ways."""

from __future__ import annotations

from opadapt.errors import RunError, first_line

# torch: "DefaultCPUAllocator: can't allocate memory", "CUDA out of memory"; ONNX Runtime: "Failed to allocate memory
# for requested buffer", "bad allocation"; both: "std::bad_alloc"
_SIGNS = ("allocate memory", "out of memory", "not enough memory", "bad_alloc", "bad allocation")


def ran_out(error: Exception) -> bool:
    """Whether an error of numpy, torch or ONNX Runtime says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _SIGNS)


def out_of_memory(error: Exception) -> RunError:
    """The error of the run to raise from one that ``ran_out``."""
    return RunError(
        "memory ran out",
        found=first_line(error),
        do="set search.workers to 1 or end other programs, then `opadapt resume` the run: nothing finished is lost",
    )

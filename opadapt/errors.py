"""The error tree.

OpadaptError              anything that opadapt refuses; the command line prints it and exits with 2
├── ModelError            an ONNX file that cannot be used
├── DataError             data that is missing, or does not fit the model
├── ConfigError           a YAML file, a flag or a shipped file that says something impossible
├── DeviceError           a device that cannot be reached, or failed while measuring
│   └── LostDevice        the connection or the device itself is gone
│       └── FullDisk      the device's disk is full
├── ProgramError          a program of math instructions that does not type-check or parse
├── RunError              a run folder that cannot be written, resumed or found
└── Refused               a candidate turned down; carries the stage and the reason
"""

from __future__ import annotations


class OpadaptError(Exception):
    """Base of all refusals: one sentence, then what was expected, what was found and what to do."""

    def __init__(
        self, message: str, *, expected: str | None = None, found: str | None = None, do: str | None = None
    ) -> None:
        self.message = message
        self.expected = expected
        self.found = found
        self.do = do
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        for label, text in (("expected", self.expected), ("found", self.found), ("do", self.do)):
            if text is not None:
                lines.append(f"  {label}: {text}")
        return "\n".join(lines)


class ModelError(OpadaptError):
    """An ONNX file that cannot be used."""


class DataError(OpadaptError):
    """Data that is missing or does not fit the model."""


class ConfigError(OpadaptError):
    """A YAML file, a flag or a shipped file that says something impossible."""


class DeviceError(OpadaptError):
    """A device that cannot be reached, or failed while measuring. ``kind``: what went wrong in the measuring process,
    by the agent's name for it ("signal", "timeout", ...); None for whatever the host itself found."""

    def __init__(
        self,
        message: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        do: str | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message, expected=expected, found=found, do=do)
        self.kind = kind


class LostDevice(DeviceError):
    """The connection or the device itself is gone, whatever was asked of it: another device, or a later try, may
    do. A plain DeviceError means that the request failed. ``given_up``: to try again at once is no use."""

    given_up = False


class FullDisk(LostDevice):
    """The device's disk is full: no fault of what was asked. The device answers, but is no use until there is room."""

    given_up = True


class ProgramError(OpadaptError):
    """A program of math instructions that does not type-check or parse."""


class RunError(OpadaptError):
    """A run folder that cannot be written, resumed or found."""


class Refused(OpadaptError):
    """A candidate turned down by a stage of the evaluation, with the reason."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:
        return Refused, (self.stage, self.reason)


def first_line(error: Exception) -> str:
    """What an error of a library says, without its trace, and without the number and the path that Python puts into an
    OSError; its kind where it says nothing."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return next((line for line in text.splitlines() if line.strip()), type(error).__name__)

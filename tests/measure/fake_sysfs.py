"""A /sys in a folder and a ``vcgencmd`` on the PATH, for agents that are started with ``--sysfs``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opadapt.measure.facts import load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.lock import MeasuringLock
from opadapt.measure.transport import LocalTransport

# The script runs in the folder of the measuring child, where the file "stage" says what is being measured. The
# first time that it is $event, what $action says is done, and the word is the first of the two; the second one
# afterwards.
_SCRIPT = """#!/bin/sh
read -r stage < stage 2>/dev/null
echo "$stage: $*" >> "{root}/calls"
case "$1" in
measure_clock) echo "frequency(48)=1500398464"; exit 0 ;;
esac
read -r event < "{root}/event" 2>/dev/null
word=$(cat "{root}/word")
if [ "$event" ] && [ "$stage" = "$event" ]; then
  mv "{root}/event" "{root}/done"
  word=$(cat "{root}/word_once")
  sh "{root}/action"
fi
echo "throttled=$word"
"""


class FakeSysfs:
    """Files are replaced, never rewritten: a reader sees the old value or the new one, as in the kernel's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.sys = root, root / "sys"
        self.sys.mkdir()
        self._monkeypatch = monkeypatch

    def write(self, path: str, value: object) -> None:
        file = self.sys / path
        file.parent.mkdir(parents=True, exist_ok=True)
        new = self.root / "new"
        new.write_text(f"{value}\n")
        new.replace(file)

    def zone(self, number: int, kind: str, celsius: float) -> None:
        self.write(f"class/thermal/thermal_zone{number}/type", kind)
        self.write(f"class/thermal/thermal_zone{number}/temp", round(1000 * celsius))

    def hwmon(self, number: int, name: str, **values: int) -> None:
        self.write(f"class/hwmon/hwmon{number}/name", name)
        for attribute, value in values.items():
            self.write(f"class/hwmon/hwmon{number}/{attribute}", value)

    def vcgencmd(
        self, word: str = "0x0", once: str | None = None, event: str = "", action: str = "true"
    ) -> None:
        """A command that answers ``get_throttled`` with ``word``; once, when the child's stage is ``event``, with
        ``once``, and runs the shell's ``action`` then."""
        for name, text in (("word", word), ("word_once", once or word), ("action", action)):
            (self.root / name).write_text(text + "\n")
        if event:
            (self.root / "event").write_text(event + "\n")
        script = self.root / "bin" / "vcgencmd"
        script.parent.mkdir(exist_ok=True)
        script.write_text(_SCRIPT.format(root=self.root))
        script.chmod(0o755)
        self._monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")

    def happened(self) -> bool:
        """Whether the event did."""
        return (self.root / "done").exists()

    def calls(self, stage: str) -> int:
        """How often the throttling was asked for at that stage."""
        return (self.root / "calls").read_text().splitlines().count(f"{stage}: get_throttled")


def board(sysfs: FakeSysfs, **facts: object) -> LocalDevice:
    """A local device on that /sys, of a type with these facts and no others about heat and power."""
    none = {"thermal": (), "cool": None, "power": (), "pin_cores": ()}
    made = load_facts("local").model_copy(update={**none, **facts})
    transport = LocalTransport(options=("--sysfs", str(sysfs.sys)))
    return LocalDevice(made, 1, transport, MeasuringLock(sysfs.root / "lock"))

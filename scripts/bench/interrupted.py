#!/usr/bin/env python3
"""A run that is killed at random moments and resumed: does it end, and is anything finished paid for twice?

    python scripts/bench/interrupted.py --minutes 40 [--kills 5] [--seed 0] -- -c configs/cifar10_resnet20.yaml
        --data build/cifar10.npz --name killed models/cifar10_resnet20.onnx

What stands after ``--`` goes to ``opadapt run``, with ``--name``. ``--minutes`` is how long the run is expected to
take: the moments are drawn from that time without the first minute. Each ends the whole process group by SIGKILL, and
``opadapt resume`` goes on. Prints the moments, what the run printed at the end, and a table of the journal by stage:
trials finished, trials begun (those that a kill cut off are begun again), and trials begun again after they were
finished, which is an error (exit code 1).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

QUERY = """
SELECT stage, COUNT(*), (SELECT COUNT(*) FROM attempt a WHERE a.stage = t.stage),
  (SELECT COUNT(*) FROM attempt a JOIN trial d USING (stage, key)
   WHERE a.stage = t.stage AND a.started_at > d.finished_at)
FROM trial t GROUP BY stage ORDER BY MIN(finished_at)
"""


def killed(command: list[str], after_s: float) -> bool:
    """Run a command and kill its process group after some seconds; False where it ended before."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="+", help="of opadapt run, after --")
    given = parser.parse_args()
    if "--name" not in given.arguments:
        parser.error("give the run a --name")
    folder = Path("runs") / given.arguments[given.arguments.index("--name") + 1]
    opadapt = str(Path(sys.executable).with_name("opadapt"))
    draw = random.Random(given.seed)
    moments = sorted(draw.uniform(60, 60 * given.minutes) for _ in range(given.kills))
    print("killed after", ", ".join(f"{m / 60:.1f}" for m in moments), "minutes of running", flush=True)
    command, before, landed = [opadapt, "run", *given.arguments], 0.0, 0
    for moment in moments:
        landed += killed(command, moment - before)
        command, before = [opadapt, "resume", str(folder)], moment
    code = subprocess.run(command).returncode
    print(f"{landed} kills; the last session ended with exit code {code}", flush=True)
    table = Table("stage", "finished", "begun", "begun again after it was finished")
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as journal:
        rows = journal.execute(QUERY).fetchall()
    for stage, *counts in rows:
        table.add_row(stage, *map(str, counts))
    Console(width=80).print(table)
    sys.exit(code or int(any(again for *_, again in rows)))


if __name__ == "__main__":
    main()

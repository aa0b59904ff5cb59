"""How the boards of a fleet compare: each measured the same unchanged models beside the candidates."""

from __future__ import annotations

from statistics import median

from opadapt.measure.fleet import FleetDevice
from opadapt.report.data import BoardFacts
from opadapt.steps.context import Context


def compare_boards(context: Context) -> tuple[BoardFacts, ...]:
    """The boards of the run, in the order of its address; nothing where there is only one.

    Latencies are compared per model: a later round's is another one. A board's ``relative`` is the median, over the
    models that it and others measured, of its latency over the middle of all boards'.
    """
    rows = [row for _, row in context.journal.results("board")]
    device = context.device
    asked = [board.host for board in device.boards] if isinstance(device, FleetDevice) else []
    hosts = list(dict.fromkeys([*asked, *(row["board"] for row in rows)]))
    if len(hosts) < 2:
        return ()
    readings: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        readings.setdefault(row["base"], {}).setdefault(row["board"], []).append(row["latency_s"])
    medians = [{host: median(s) for host, s in boards.items()} for boards in readings.values()]
    middles = [median(boards.values()) for boards in medians]
    shares = {
        host: [
            b[host] / middle for b, middle in zip(medians, middles, strict=True) if host in b and len(b) > 1
        ]
        for host in hosts
    }
    return tuple(
        BoardFacts(
            host=host,
            requests=sum(row["board"] == host for row in rows),
            latency_s=medians[0].get(host) if medians else None,
            relative=median(shares[host]) if shares[host] else None,
            dropped=context.lost.get(host),
        )
        for host in hosts
    )

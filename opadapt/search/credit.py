"""Which ways of variation pay: probability matching (Goldberg 1990; Thierens 2005, doi 10.1145/1068009.1068251).

A way is tried as often as its share says, times how often it has improved the front of this search: most mutations of
a small program only make it slower, and which ones help differs from region to region.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

PRIOR = 5.0  # trials at the mean rate that every way begins with: what was tried little is neither lost nor preferred


class Credit:
    """Counts of trials and of improvements, by way of variation. ``shares``: how often each is tried before anything is
    known, summing to 1; what has none is never tried."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = dict(shares)
        self._tried: Counter[str] = Counter()
        self._improved: Counter[str] = Counter()

    def record(self, way: str, improved: bool) -> None:
        """What became of one trial."""
        self._tried[way] += 1
        self._improved[way] += improved

    def shares(self) -> dict[str, float]:
        """How often each way is to be tried now, summing to 1."""
        mean = (self._improved.total() + 1) / (self._tried.total() + 1)
        weights = {
            way: share * (self._improved[way] + PRIOR * mean) / (self._tried[way] + PRIOR)
            for way, share in self._shares.items()
        }
        total = sum(weights.values())
        return {way: weight / total for way, weight in weights.items()}

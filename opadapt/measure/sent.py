"""Which files lie in an agent's folder, by the hash of their content: a model travels once, not once per request."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping

KEPT_BYTES = 256 << 20  # least recently used files are forgotten above that


class Sent:
    """Files there, least recently used first; ``present``: those that the agent says it has, with their sizes.

    A candidate is measured once and goes; what is asked for a second time, or is called a base, stays.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._uses: Counter[str] = Counter()

    def start(self, present: Mapping[str, int]) -> None:
        """An agent has started: it has these files and no others."""
        self._sizes = OrderedDict(present)

    def ask_for(self, hashes: Iterable[str]) -> None:
        """A piece of work needs these files; to be called once for it, however often it is tried."""
        self._uses.update(set(hashes))

    def has(self, digest: str) -> bool:
        return digest in self._sizes

    def put(self, digest: str, size: int) -> None:
        """It lies there now, and is the last used."""
        self._sizes[digest] = size
        self._sizes.move_to_end(digest)

    def finish(self, hashes: Collection[str], base: Collection[str]) -> list[str]:
        """The work with these files is done: which ones are to be removed. They count as removed from now on."""
        gone = [h for h in hashes if self.has(h) and h not in base and self._uses[h] < 2]
        for digest in gone:
            del self._sizes[digest]
        idle = [h for h in self._sizes if h not in hashes]
        while sum(self._sizes.values()) > self._limit and idle:
            gone.append(idle.pop(0))
            del self._sizes[gone[-1]]
        return gone

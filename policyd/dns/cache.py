"""What the DNS said and how long that holds, bounded in entries and octets."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from policyd.lookup import UNKNOWN, Found

#: An answer is remembered for its TTL, but at least and at most so long, s.
LEAST_TTL, MOST_TTL = 60, 3600
#: "Nobody could say" is remembered only to spare the next few requests, s.
UNKNOWN_TTL = 2
#: Whatever the octets: a bound on what a flood of random names leaves behind.
MOST_ENTRIES = 100_000
#: The dictionary's share, the key, the entry and its numbers; measured.
_OVERHEAD = 480

Key = tuple[str, str]


def clamp(ttl: int | None) -> int:
    """How long an answer is remembered whose records say ``ttl``, s."""
    return min(max(ttl or 0, LEAST_TTL), MOST_TTL)


class Entry(NamedTuple):
    """One remembered answer."""

    #: By the clock.
    expires: float
    found: Found
    octets: int


class Cache:
    """Remembered answers by (name, type). When it is full, what was remembered first goes first."""

    def __init__(
        self, clock: Callable[[], float], most_octets: int, most_entries: int = MOST_ENTRIES
    ) -> None:
        #: For the resolver's shortest way; whoever reads it looks at ``expires`` too.
        self.entries: OrderedDict[Key, Entry] = OrderedDict()
        self.octets = 0
        self.most_octets = most_octets
        self.most_entries = most_entries
        self._clock = clock

    def get(self, key: Key) -> Found | None:
        """The remembered answer with what is left of its TTL, if it still holds."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        left = entry.expires - self._clock()
        if left <= 0:
            return None
        return entry.found._replace(ttl=int(left) + 1)

    def put(self, key: Key, found: Found) -> None:
        """Remember ``found`` for its TTL; what nobody could say, for a moment."""
        self.drop(key)
        seconds = UNKNOWN_TTL if found.status == UNKNOWN else found.ttl
        octets = _OVERHEAD + len(key[0]) + sum(_size(record) for record in found.records)
        self.entries[key] = Entry(self._clock() + seconds, found, octets)
        self.octets += octets
        self.trim()

    def drop(self, key: Key) -> None:
        """Forget one answer."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.octets -= entry.octets

    def trim(self) -> None:
        """Keep to the bounds."""
        while self.entries and (self.octets > self.most_octets or len(self.entries) > self.most_entries):
            _, entry = self.entries.popitem(last=False)
            self.octets -= entry.octets

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()
        self.octets = 0


def _size(record: object) -> int:
    if isinstance(record, tuple):
        return sys.getsizeof(record) + sum(sys.getsizeof(part) for part in record) + 8
    return sys.getsizeof(record) + 8

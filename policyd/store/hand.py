"""Goes round the rows of one kind of remembered facts: counts them, and deletes what has expired or has to make room."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from policyd.units import HOUR, MINUTE

#: A hand begins another round so long after it ended one, ms of ledger time.
ROUND = HOUR

_LOOK = "SELECT key, expires_at FROM memory WHERE kind = ? AND key > ? ORDER BY key LIMIT ?"
_DELETE = "DELETE FROM memory WHERE kind = ? AND key > ? AND key <= ? AND expires_at <= ?"


class Pass(NamedTuple):
    """What a hand did in a transaction that is not committed yet."""

    cursor: str
    seen: dict[int, int]
    deleted: list[tuple[str, int]]


class Hand:
    """Goes round the rows of one kind. Counts are by the minute in which rows expire."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        #: Rows, once a round has ended; ``None``: not known yet.
        self.total: int | None = None
        self.by_minute: dict[int, int] = {}
        self.cursor = ""
        self._seen: dict[int, int] = {}
        #: In this round rows go that expire by then, ms.
        self._limit = 0
        self._crowded = False
        #: When the last round ended, ms.
        self.ended_at = -ROUND

    def crowd(self, more: int, cap: int) -> bool:
        """Whether room has to be made, with ``more`` rows to come: an eighth of the bound is for what comes meanwhile."""
        crowded = self.total is not None and self.total + more > cap - cap // 8
        if crowded and not self._crowded:
            self._limit = max(self._limit, self._first_quarter())
        self._crowded = crowded
        return crowded

    def _first_quarter(self) -> int:
        """The time by which the quarter of the rows has expired that goes first, ms."""
        left = (self.total or 0) / 4
        for minute in sorted(self.by_minute):
            left -= self.by_minute[minute]
            if left <= 0:
                return (minute + 1) * MINUTE - 1
        return 0

    def look(self, connection: sqlite3.Connection, rows: int, now: int) -> Pass:
        """Look at the next ``rows`` rows and delete those that have to go, within the caller's transaction."""
        limit = max(self._limit, now)
        found = connection.execute(_LOOK, (self.kind, self.cursor, rows)).fetchall()
        deleted = [row for row in found if row[1] <= limit]
        if deleted:
            connection.execute(_DELETE, (self.kind, self.cursor, found[-1][0], limit))
        seen: dict[int, int] = {}
        for _, expires_at in found:
            if expires_at > limit:
                minute = expires_at // MINUTE
                seen[minute] = seen.get(minute, 0) + 1
        return Pass(found[-1][0] if len(found) == rows else "", seen, deleted)

    def add(self, key: str, expires_at: int, number: int) -> None:
        """A row came (1) or went (-1)."""
        minute = expires_at // MINUTE
        if self.total is not None:
            self.total += number
            _add(self.by_minute, minute, number)
        # What the hand has not reached yet it will count, or not find, when it comes by.
        if key <= self.cursor:
            _add(self._seen, minute, number)

    def took(self, passed: Pass, now: int) -> None:
        """The transaction of a :meth:`look` was committed."""
        if self.total is not None:
            self.total -= len(passed.deleted)
            for _, expires_at in passed.deleted:
                _add(self.by_minute, expires_at // MINUTE, -1)
        for minute, number in passed.seen.items():
            _add(self._seen, minute, number)
        self.cursor = passed.cursor
        if not self.cursor:
            self.by_minute, self._seen = self._seen, {}
            self.total = sum(self.by_minute.values())
            self.ended_at = now
            self._limit = self._first_quarter() if self._crowded else 0


def _add(counts: dict[int, int], minute: int, number: int) -> None:
    left = counts.get(minute, 0) + number
    if left > 0:
        counts[minute] = left
    else:
        counts.pop(minute, None)

"""Remembered facts (``memory`` table): read and written a batch at a time, bounded per kind, what expires first goes first.

The bound is kept where rows are written: a flood makes its own room, by the facts of its kind that expire first. What is
held in memory is a small cache of the table; whoever else deletes rows says so in the change table, and then all of it is
dropped. While the database is in trouble, what is decided waits here until it can be written.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from policyd.opinion import Memory, MemoryKey
from policyd.store.statements import MOST, chunked, flat, values
from policyd.units import HOUR, SECOND

#: Rows of each kind unless the configuration says otherwise; a greylist triplet takes about 300 octets.
ROWS = 1_000_000
#: Facts that are kept while they cannot be written; one that is lost costs one mail another delay.
UNWRITTEN = 20_000
#: Facts of the table that are held in memory.
CACHED = 8_000
#: Rows deleted, and rows counted, in one step.
STEP_ROWS = 300
COUNTED_ROWS = 5_000
#: Between two counts of all rows, ms of ledger time: what others delete is noticed then.
COUNT_AGAIN = HOUR
#: Between two looks at what has expired, ms of ledger time.
LOOK = 10 * SECOND

Row = tuple[str, str, int, int, int, int]
_FIRST = ("", "")


@lru_cache(maxsize=MOST)
def _select(rows: int) -> str:
    return (
        f"WITH w (kind, key) AS (VALUES {values(2, rows)}) "
        "SELECT m.kind, m.key, m.first_at, m.last_at, m.hits, m.expires_at FROM w CROSS JOIN memory AS m "
        "ON m.kind = w.kind AND m.key = w.key"
    )


@lru_cache(maxsize=MOST)
def _upsert(rows: int) -> str:
    return (
        f"INSERT INTO memory (kind, key, first_at, last_at, hits, expires_at) VALUES {values(6, rows)} "
        "ON CONFLICT (kind, key) DO UPDATE SET first_at = excluded.first_at, last_at = excluded.last_at, "
        "hits = excluded.hits, expires_at = excluded.expires_at"
    )


_EVICT = (
    "DELETE FROM memory WHERE kind = ?1 AND key IN "
    "(SELECT key FROM memory WHERE kind = ?1 ORDER BY expires_at LIMIT ?2) RETURNING kind, key"
)
_EXPIRE = (
    "DELETE FROM memory WHERE kind = ?1 AND key IN "
    "(SELECT key FROM memory WHERE kind = ?1 AND expires_at <= ?3 ORDER BY expires_at LIMIT ?2) RETURNING kind, key"
)
_EXPIRED = "SELECT 1 FROM memory WHERE kind = ?1 AND expires_at <= ?2 LIMIT 1"
_KINDS = (
    "WITH RECURSIVE k (kind) AS (SELECT min(kind) FROM memory UNION ALL "
    "SELECT (SELECT min(kind) FROM memory WHERE memory.kind > k.kind) FROM k WHERE kind IS NOT NULL) "
    "SELECT kind FROM k WHERE kind IS NOT NULL"
)


class Memories:
    """The facts that a batch works on. One batch at a time: read, put, prepare and write, then written, forget or keep."""

    def __init__(self, cap: int = ROWS) -> None:
        #: Rows of each kind at the most.
        self.cap = cap
        #: What the table says; ``None``: it has no such row.
        self._cache: dict[MemoryKey, Memory | None] = {}
        #: Of this batch.
        self._fresh: dict[MemoryKey, Memory] = {}
        #: Of batches that were decided and could not be written.
        self._unwritten: dict[MemoryKey, Memory] = {}
        #: Rows of each kind, as far as they were counted: up to the cursor, without one all.
        self._counts: dict[str, int] = {}
        self._cursor: tuple[str, str] | None = _FIRST
        self._counted_at = 0
        self._next_look = 0
        #: What a transaction under way does to the counts.
        self._pending: list[tuple[str, str, int]] = []

    # --- one batch ---------------------------------------------------------------------------------------------------

    def unread(self, keys: Iterable[MemoryKey]) -> set[MemoryKey]:
        """Those of ``keys`` that the database has to be asked about."""
        cache, fresh, unwritten = self._cache, self._fresh, self._unwritten
        return {key for key in keys if key not in cache and key not in fresh and key not in unwritten}

    def read(self, connection: sqlite3.Connection, keys: Iterable[MemoryKey]) -> None:
        """Read what is remembered of ``keys``.

        :raises sqlite3.Error: it is not known; what is not known counts as not remembered.
        """
        missing = sorted(self.unread(keys))
        found: dict[MemoryKey, Memory] = {}
        for chunk in chunked(missing):
            for kind, key, *fact in connection.execute(_select(len(chunk)), flat(chunk)).fetchall():
                found[MemoryKey(kind, key)] = Memory(*fact)
        for key in missing:
            self._cache[key] = found.get(key)

    def of(self, key: MemoryKey) -> Memory | None:
        """What is remembered of ``key``, expired or not."""
        return self._fresh.get(key) or self._unwritten.get(key) or self._cache.get(key)

    def known(self, keys: Iterable[MemoryKey], now: int) -> dict[MemoryKey, Memory]:
        """Those of ``keys`` that are remembered and have not expired at ledger time ``now``."""
        found = {}
        for key in keys:
            fact = self.of(key)
            if fact is not None and fact.expires_at > now:
                found[key] = fact
        return found

    def put(self, key: MemoryKey, fact: Memory) -> None:
        """Remember ``fact``; later operations of the same batch see it."""
        self._fresh[key] = fact

    def prepare(self) -> list[Row]:
        """The rows to write: of this batch, and what could not be written before."""
        if not (self._fresh or self._unwritten):
            return []
        return [(*key, *fact) for key, fact in sorted({**self._unwritten, **self._fresh}.items())]

    def write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Write ``rows``, and make room for them, within the caller's transaction.

        :raises sqlite3.Error: the caller rolls back.
        """
        self._pending = []
        if not rows:
            return
        for chunk in chunked(rows):
            connection.execute(_upsert(len(chunk)), flat(chunk))
        added: dict[str, int] = {}
        for kind, key, *_ in rows:
            # A plain tuple finds what a MemoryKey does.
            if self._cache.get((kind, key)) is None:  # type: ignore[call-overload]
                self._pending.append((kind, key, 1))
                added[kind] = added.get(kind, 0) + 1
        for kind, number in added.items():
            over = self.count(kind) + number - self.cap
            if over > 0:
                # A few more than came, so that a bound that was lowered is reached again.
                self._delete(connection, _EVICT, kind, min(over, 2 * number + 8))

    def written(self) -> None:
        """The transaction was committed."""
        self._cache.update(self._unwritten)
        self._cache.update(self._fresh)
        self._unwritten.clear()
        self._fresh.clear()
        self._take_pending()
        excess = len(self._cache) - CACHED
        if excess > 0:
            for key in list(self._cache)[: excess + CACHED // 8]:
                del self._cache[key]

    def forget(self) -> None:
        """The batch did not come about: it is decided again, or not at all."""
        self._pending = []
        self._fresh.clear()

    def keep(self) -> None:
        """The batch was decided, and is not on disk: it is written with the next one that is."""
        self._pending = []
        self._unwritten.update(self._fresh)
        self._fresh.clear()
        unwritten = self._unwritten
        if len(unwritten) > UNWRITTEN:
            excess = len(unwritten) - UNWRITTEN + UNWRITTEN // 8
            for key in heapq.nsmallest(excess, unwritten, key=lambda key: unwritten[key].expires_at):
                del unwritten[key]
        if len(self._cache) > CACHED:
            self._cache.clear()

    def changed(self) -> None:
        """Somebody else has changed the table: nothing that was read holds any more."""
        self._cache.clear()

    def reopened(self) -> None:
        """The database may be another one: what was read does not hold, and its rows are counted anew."""
        self._cache.clear()
        self._pending = []
        self._begin_count()

    # --- bounds ------------------------------------------------------------------------------------------------------

    def count(self, kind: str) -> int:
        """Rows of ``kind``, as far as they are counted."""
        return self._counts.get(kind, 0)

    def tend(self, connection: sqlite3.Connection, now: int) -> bool:
        """One step of upkeep, in a transaction of its own: count some, or delete some. Whether there is more to do at once.

        :raises sqlite3.Error: nothing was done.
        """
        if self._cursor is not None:
            self._count_some(connection, now)
            return True
        if now < self._next_look:
            return False
        for (kind,) in connection.execute(_KINDS).fetchall():
            over = self.count(kind) - self.cap
            if connection.execute(_EXPIRED, (kind, now)).fetchone() is not None:
                self._delete_now(connection, _EXPIRE, kind, STEP_ROWS, now)
                return True
            if over > 0 and self._delete_now(connection, _EVICT, kind, min(STEP_ROWS, over), now):
                return True
        self._next_look = now + LOOK
        if now - self._counted_at >= COUNT_AGAIN:
            self._begin_count()
        return False

    def _delete_now(
        self, connection: sqlite3.Connection, statement: str, kind: str, rows: int, now: int
    ) -> int:
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._pending = []
            deleted = self._delete(connection, statement, kind, rows, now)
            connection.execute("COMMIT")
        except sqlite3.Error:
            self._pending = []
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._take_pending()
        return deleted

    def _delete(
        self, connection: sqlite3.Connection, statement: str, kind: str, rows: int, now: int = 0
    ) -> int:
        arguments = (kind, rows, now) if statement is _EXPIRE else (kind, rows)
        deleted = connection.execute(statement, arguments).fetchall()
        self._pending += [(of, key, -1) for of, key in deleted]
        return len(deleted)

    def _take_pending(self) -> None:
        cursor = self._cursor
        for kind, key, number in self._pending:
            # What the cursor has not reached yet will be counted, or be missing, when it comes by.
            if cursor is None or (kind, key) <= cursor:
                self._counts[kind] = self._counts.get(kind, 0) + number
            if number < 0:
                self._cache.pop(MemoryKey(kind, key), None)
        self._pending = []

    def _begin_count(self) -> None:
        self._counts, self._cursor = {}, _FIRST

    def _count_some(self, connection: sqlite3.Connection, now: int) -> None:
        rows = connection.execute(
            "SELECT kind, key FROM memory WHERE (kind, key) > (?, ?) ORDER BY kind, key LIMIT ?",
            (*(self._cursor or _FIRST), COUNTED_ROWS),
        ).fetchall()
        for kind, _ in rows:
            self._counts[kind] = self._counts.get(kind, 0) + 1
        self._cursor = rows[-1] if len(rows) == COUNTED_ROWS else None
        self._counted_at = now


# --- for policyctl ---------------------------------------------------------------------------------------------------


class Remembered(NamedTuple):
    """One fact with its key."""

    key: str
    fact: Memory


def facts(connection: sqlite3.Connection, kind: str, begins: str = "") -> Iterator[Remembered]:
    """The facts of ``kind`` whose keys begin with ``begins``, in the order of their keys."""
    rows = connection.execute(
        "SELECT key, first_at, last_at, hits, expires_at FROM memory "
        "WHERE kind = ? AND key >= ? AND key < ? ORDER BY key",
        (kind, begins, begins + "\U0010ffff"),
    )
    return (Remembered(key, Memory(*fact)) for key, *fact in rows)


def newest(
    connection: sqlite3.Connection,
    kind: str,
    begins: str,
    wanted: Callable[[Remembered], bool],
    limit: int,
) -> list[Remembered]:
    """At most ``limit`` of the facts that are ``wanted``, those that held last; 0: all."""
    found = (each for each in facts(connection, kind, begins) if wanted(each))
    if limit:
        return heapq.nlargest(limit, found, key=lambda each: each.fact.last_at)
    return sorted(found, key=lambda each: each.fact.last_at, reverse=True)


def delete(connection: sqlite3.Connection, kind: str, keys: Sequence[str]) -> int:
    """Forget facts, within the caller's transaction; how many there were. The daemon drops its copies."""
    deleted = 0
    for chunk in chunked(keys):
        marks = ", ".join("?" * len(chunk))
        deleted += connection.execute(
            f"DELETE FROM memory WHERE kind = ? AND key IN ({marks})", (kind, *chunk)
        ).rowcount
    connection.execute("INSERT INTO change (tbl, key) VALUES ('memory', json_array(?))", (kind,))
    return deleted

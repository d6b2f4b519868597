"""Remembered facts (``memory`` table): read and written a batch at a time, bounded per kind, what expires first goes first.

Each kind has a hand that goes round its rows in the order of their keys, counts them, and deletes what has expired; when
a kind comes near its bound it also deletes the quarter that expires first, and is driven by the writing itself: for
each row that comes in it looks at eight. So the bound holds under any flood, and neighbours go together: a delete costs
no page of its own, and no index by time is needed. What is held in memory of the table is a small cache; whoever else
deletes rows says so in the change table, and then all of it is dropped. Over the cache lie, newest first, the facts of what
is decided and not yet written: to take a decision back, they are cleared. While the database is in trouble, what is
decided waits here until it can be written.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from policyd.opinion import Memory, MemoryKey
from policyd.store.hand import ROUND, Hand, Pass
from policyd.store.statements import MOST, chunked, flat, values
from policyd.units import MINUTE

#: Rows of each kind unless the configuration says otherwise; a greylist triplet takes about 150 octets.
ROWS = 1_000_000
#: Facts that are kept while they cannot be written; one that is lost costs one mail another delay.
UNWRITTEN = 20_000
#: Facts of the table that are held in memory.
CACHED = 8_000
#: Rows that a hand looks at in one step of upkeep, and for each row that is written.
STEP_ROWS = 500
ROWS_EACH = 8
Row = tuple[str, str, int, int, int, int]
Facts = dict[MemoryKey, Memory]


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


_KINDS = (
    "WITH RECURSIVE k (kind) AS (SELECT min(kind) FROM memory UNION ALL "
    "SELECT (SELECT min(kind) FROM memory WHERE memory.kind > k.kind) FROM k WHERE kind IS NOT NULL) "
    "SELECT kind FROM k WHERE kind IS NOT NULL"
)


class Memories:
    """The facts that batches work on: read, put, decided; then piled, written, kept or cleared."""

    def __init__(self, cap: int = ROWS) -> None:
        #: Rows of each kind at the most.
        self.cap = cap
        #: What the table says; ``None``: it has no such row.
        self._cache: dict[MemoryKey, Memory | None] = {}
        #: Of the batch that is being decided.
        self._fresh: Facts = {}
        #: Of what is decided and not written yet, newest first. What has been written or taken back is empty.
        self._piles: tuple[Facts, ...] = ()
        #: Of batches that were decided and could not be written.
        self.unwritten: Facts = {}
        self._hands: dict[str, Hand] = {}
        self._next_round = 0
        #: What a transaction under way does: rows that come and go, and what hands did.
        self._pending: list[tuple[str, str, int, int]] = []
        self._passes: list[tuple[Hand, Pass, int]] = []

    # --- on the loop too ---------------------------------------------------------------------------------------------

    def unread(self, keys: Iterable[MemoryKey]) -> set[MemoryKey]:
        """Those of ``keys`` that the database has to be asked about."""
        cache = self._cache
        return {key for key in keys if key not in cache and self.of(key) is None}

    def of(self, key: MemoryKey) -> Memory | None:
        """What is remembered of ``key``, expired or not."""
        fact = self._fresh.get(key)
        if fact is not None:
            return fact
        for pile in self._piles:
            fact = pile.get(key)
            if fact is not None:
                return fact
        # Last: what is being written goes here before it leaves its pile.
        return self.unwritten.get(key) or self._cache.get(key)

    def known(self, keys: Iterable[MemoryKey], now: int) -> Facts:
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

    def decided(self) -> Facts:
        """The facts of the batch, which is decided now; nobody sees them until they are piled, written or kept."""
        facts, self._fresh = self._fresh, {}
        return facts

    def pile(self, facts: Facts, onto: Facts) -> None:
        """Lay ``facts`` on a pile that will be written; what is decided from now on sees them."""
        if facts:
            onto.update(facts)
            if not any(pile is onto for pile in self._piles):
                self._piles = (onto, *[pile for pile in self._piles if pile])

    # --- on the writer's thread --------------------------------------------------------------------------------------

    def read(self, connection: sqlite3.Connection, keys: Iterable[MemoryKey]) -> None:
        """Read what is remembered of ``keys``.

        :raises sqlite3.Error: it is not known; what is not known counts as not remembered.
        """
        missing = sorted(self.unread(keys))
        found: Facts = {}
        for chunk in chunked(missing):
            for kind, key, *fact in connection.execute(_select(len(chunk)), flat(chunk)).fetchall():
                found[MemoryKey(kind, key)] = Memory(*fact)
        for key in missing:
            self._cache[key] = found.get(key)

    def write(self, connection: sqlite3.Connection, facts: Facts) -> None:
        """Write ``facts``, and make room for them, within the caller's transaction.

        :raises sqlite3.Error: the caller rolls back.
        """
        self._pending, self._passes = [], []
        if not facts:
            return
        rows: list[Row] = [(*key, *fact) for key, fact in sorted(facts.items())]
        for chunk in chunked(rows):
            connection.execute(_upsert(len(chunk)), flat(chunk))
        new: dict[str, int] = {}
        for kind, key, _, _, _, expires_at in rows:
            # A plain tuple finds what a MemoryKey does.
            before = self._cache.get((kind, key))  # type: ignore[call-overload]
            if before is None:
                new[kind] = new.get(kind, 0) + 1
            elif before.expires_at // MINUTE != expires_at // MINUTE:
                self._pending.append((kind, key, before.expires_at, -1))
            else:
                continue
            self._pending.append((kind, key, expires_at, 1))
        # When the newest of them held.
        now = max(row[3] for row in rows)
        for kind, number in new.items():
            hand = self._hand(kind)
            if hand.total is None or hand.crowd(number, self.cap):
                self._passes.append((hand, hand.look(connection, ROWS_EACH * number, now), now))

    def written(self, facts: Facts) -> None:
        """The transaction was committed.

        The loop may be deciding meanwhile: at every moment the pile or the cache tells of a fact, or both.
        """
        self._cache.update(facts)
        self._take_pending()
        facts.clear()

    def keep(self, facts: Facts) -> None:
        """They were decided, and are not on disk: they are written when it is well."""
        self._pending, self._passes = [], []
        unwritten = self.unwritten
        unwritten.update(facts)
        facts.clear()
        if len(unwritten) > UNWRITTEN:
            excess = len(unwritten) - UNWRITTEN + UNWRITTEN // 8
            for key in heapq.nsmallest(excess, unwritten, key=lambda key: unwritten[key].expires_at):
                del unwritten[key]
        self.trim()

    def trim(self) -> None:
        """Let go of what was read first; of what is decided and not written, what the table says stays known."""
        excess = len(self._cache) - CACHED
        if excess > 0:
            for key in list(self._cache)[: excess + CACHED // 8]:
                if not any(key in pile for pile in self._piles):
                    del self._cache[key]

    def recover(self) -> None:
        """After a failure that nobody foresaw: what is not in the table was never decided."""
        self._cache.clear()
        self._fresh = {}
        self._piles = ()
        self._pending, self._passes = [], []

    def changed(self) -> None:
        """Somebody else has changed the table: nothing that was read holds any more."""
        self._cache.clear()

    def reopened(self) -> None:
        """The database may be another one: what was read does not hold, and its rows are counted anew."""
        self._cache.clear()
        self._pending, self._passes = [], []
        self._hands.clear()
        self._next_round = 0

    # --- bounds ------------------------------------------------------------------------------------------------------

    def count(self, kind: str) -> int:
        """Rows of ``kind``; 0 while they are not counted yet."""
        return self._hand(kind).total or 0

    def _hand(self, kind: str) -> Hand:
        hand = self._hands.get(kind)
        if hand is None:
            hand = self._hands[kind] = Hand(kind)
        return hand

    def tend(self, connection: sqlite3.Connection, now: int) -> bool:
        """One step of upkeep, in a transaction of its own. Whether there is more to do at once.

        :raises sqlite3.Error: nothing was done.
        """
        if now >= self._next_round:
            self._next_round = now + ROUND
            for (kind,) in connection.execute(_KINDS).fetchall():
                self._hand(kind)
        for hand in self._hands.values():
            full = hand.crowd(0, self.cap) and self.count(hand.kind) > self.cap
            if full or hand.cursor or now - hand.ended_at >= ROUND:
                self._step(connection, hand, now)
                return True
        return False

    def _step(self, connection: sqlite3.Connection, hand: Hand, now: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._pending = []
            self._passes = [(hand, hand.look(connection, STEP_ROWS, now), now)]
            connection.execute("COMMIT")
        except sqlite3.Error:
            self._passes = []
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._take_pending()

    def _take_pending(self) -> None:
        # In this order: what a hand came by in this transaction it has counted itself.
        for kind, key, expires_at, number in self._pending:
            self._hand(kind).add(key, expires_at, number)
        for hand, passed, now in self._passes:
            hand.took(passed, now)
            for key, _ in passed.deleted:
                self._cache.pop(MemoryKey(hand.kind, key), None)
        self._pending, self._passes = [], []


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

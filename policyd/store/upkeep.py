"""What the writer does between batches: checkpoints, indexes of closed partitions, retention. In small steps."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from dataclasses import dataclass

from policyd.steering import TABLES
from policyd.store import partitions
from policyd.store.checkpoints import Checkpoints
from policyd.store.instances import IDENTITY
from policyd.store.ledger import Ledger
from policyd.store.suspensions import end_expired
from policyd.units import DAY

log = logging.getLogger("policyd.store")

#: Rows deleted in one step.
STEP_ROWS = 2_000
#: Changes that the change table keeps.
CHANGES = 1_000
#: How long events are kept, ms.
EVENTS = 90 * DAY
#: Between two sweeps of the counters, s.
SWEEP = 3600.0
#: Between two looks at what has become old, s, and at sizes.
LOOK = 30.0
SIZE_LOOK = 0.25
#: Between two warnings that room is made, s: in a flood it is made every few seconds.
WARN = 3600.0
#: Upkeep rests for so many times as long as a step of it took: as a rule, with little room left, and with none.
SHARE, URGENT_SHARE, OVERFULL_SHARE = 20, 4, 1
#: So much of max_size, one part of, is kept free for what comes while room is made, and for the log; no partition takes more.
RESERVE = 12
#: Octets of a decision's row with its indexes, and rows of a partition at the least.
ROW, FEWEST_ROWS = 1_000, 1_000


@dataclass(frozen=True)
class Keep:
    """``[keep]``: how long decisions stay. Counts and bans are never dropped for space."""

    #: ms.
    decisions: int = 90 * DAY
    #: Octets of the database in use.
    max_size: int = 10_000_000_000
    #: Octets free on its file system.
    min_free: int = 1_000_000_000
    #: Remembered facts of each kind.
    memory: int = 1_000_000


class Upkeep:
    """One step at a time, each short enough not to be felt."""

    def __init__(self, ledger: Ledger, path: str, keep: Keep) -> None:
        self._ledger = ledger
        self._path = path
        self.checkpoints = Checkpoints(path)
        self._keep = keep
        self._cursor: tuple[str, str, str] | None = ("", "", "")
        #: Whether the recipients are being gone through.
        self._recipients = False
        self._next_look = 0.0
        self._next_sweep = 0.0
        self._next_size_look = 0.0
        self._next_warning = 0.0
        #: Of its size, how much the database may still take, octets.
        self._room = 0
        self._crowded = False
        #: What cannot be dropped takes all there is, and that was told.
        self._stuck = False
        #: Partitions from which passed mail was taken out already.
        self._refused_only: set[int] = set()
        #: Little is free on the file system, or the file itself is larger than it may be.
        self._short = False
        self._long_log = False
        self._take_over(keep)

    def _take_over(self, keep: Keep) -> None:
        self._keep = keep
        self._ledger.memories.cap = keep.memory
        fits = keep.max_size // RESERVE // ROW
        self._ledger.partition_rows = min(partitions.FULL, max(FEWEST_ROWS, fits))

    def share(self) -> int:
        """For how many times as long as a step took the next one can wait.

        :raises sqlite3.Error: the database is in trouble.
        """
        self._look_at_sizes()
        if self._crowded and self._room < 0:
            return OVERFULL_SHARE
        return URGENT_SHARE if self._crowded or self._long_log else SHARE

    def step(self, idle: bool, keep: Keep) -> bool:
        """Do the most urgent thing; whether there is more to do at once."""
        self._take_over(keep)
        self._look_at_sizes()
        clock = time.monotonic()
        self.checkpoints.step(self._ledger.connection)
        if not idle:
            if clock >= self._next_look:
                self._next_look = clock + LOOK
                self._look()
            # What fills the disk does not wait until it has ended.
            return self._crowded and self._retire_one()
        step = self._ledger.clock.step()
        if step:
            log.error(
                "clock-step: the wall clock moved by %+.1f s; limits, bans and expiries go on by elapsed time",
                step / 1000,
            )
        if clock >= self._next_look:
            self._next_look = clock + LOOK
            self._look()
        ledger = self._ledger
        # First what is promised within seconds; then what there is most of: room, when there is none.
        return (
            ledger.accounts.save(ledger.begin, ledger.connection, ledger.clock.now())
            or (self._crowded and self._retire_one())
            or ledger.instances.fill(ledger.connection, ledger.partitions, ledger.clock.now() - IDENTITY)
            or self._retire_one()
            or self._give_back()
            # In a flood what was indexed a moment ago would be dropped for room.
            or (not self._crowded and self._index_one())
            or self._sweep_counters()
            or ledger.memories.tend(ledger.connection, ledger.clock.now())
            or self._sweep_recipients()
        )

    def _look_at_sizes(self) -> None:
        clock = time.monotonic()
        if clock < self._next_size_look:
            return
        self._next_size_look = clock + SIZE_LOOK
        connection = self._ledger.connection
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        try:
            disk = os.statvfs(os.path.dirname(os.path.abspath(self._path)))
            left = disk.f_bavail * disk.f_frsize
        except OSError:
            left = self._keep.min_free
        used, most = (pages - free) * size, self._keep.max_size
        self._room = most - used
        crowded = used > most - most // RESERVE or left < self._keep.min_free
        if crowded and clock >= self._next_warning:
            self._next_warning = clock + WARN
            log.warning(
                "keep: the database has %d MB, the disk %d MB free; decisions that said DUNNO go first",
                used // 1_000_000,
                left // 1_000_000,
            )
        self._crowded = crowded
        self._stuck = self._stuck and crowded
        self._short = left < self._keep.min_free or pages * size > most
        self._long_log = self.checkpoints.behind()

    def _look(self) -> None:
        """Start over with the sweep of the counters, and let go of old changes."""
        if self._cursor is None and time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP
            self._cursor = ("", "", "")
            self._recipients = True
        self._prune_changes()

    def _index_one(self) -> bool:
        """Give one closed partition one of its indexes."""
        for partition in reversed(self._ledger.partitions):
            if partition.closed_at and not partition.indexed:
                connection = self._ledger.connection
                have = {row[1] for row in connection.execute(f"PRAGMA index_list({partition.table})")}
                for statement in partitions.index_statements(partition):
                    if statement.split("EXISTS ", 1)[1].split()[0] not in have:
                        connection.execute(statement)
                        return True
                connection.execute(
                    "UPDATE decision_partition SET indexed = 1 WHERE number = ?", (partition.number,)
                )
                self._ledger.partitions = partitions.catalogue(connection)
                return True
        return False

    def _retire_one(self) -> bool:
        """Drop the oldest partition when it is past its age; with little room, passed mail first, oldest first."""
        closed = [partition for partition in reversed(self._ledger.partitions) if partition.closed_at]
        if not closed:
            self._tell_stuck()
            return False
        oldest = closed[0]
        if oldest.closed_at < self._ledger.clock.now() - self._keep.decisions:
            return self._drop(oldest)
        if not self._crowded:
            return False
        connection = self._ledger.connection
        for partition in closed:
            if partition.number in self._refused_only:
                continue
            deleted = connection.execute(
                f"DELETE FROM {partition.table} WHERE id IN "
                f"(SELECT id FROM {partition.table} WHERE verdict = 'pass' LIMIT ?)",
                (STEP_ROWS,),
            ).rowcount
            if deleted:
                self._next_size_look = 0.0
                return True
            if connection.execute(f"SELECT 1 FROM {partition.table} LIMIT 1").fetchone() is None:
                # Its pages are too many for nothing.
                return self._drop(partition)
            self._refused_only.add(partition.number)
            # That was a look at the whole of it; the next one is another step.
            return True
        self._next_size_look = 0.0
        return self._drop(oldest)

    def _tell_stuck(self) -> None:
        if self._crowded and self._room < 0 and not self._stuck:
            self._stuck = True
            log.error(
                "keep: counts, bans and what is remembered take more than [keep] max_size by themselves, and are not dropped"
                " for room; raise max_size, or lower [keep] memory"
            )

    def _give_back(self) -> bool:
        """Give freed pages back to the file system, when it has little left or the file is too large."""
        connection = self._ledger.connection
        if not self._short or not connection.execute("PRAGMA freelist_count").fetchone()[0]:
            return False
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute("PRAGMA incremental_vacuum(500)").fetchall()
        # A database that was made without incremental vacuum gives nothing back.
        return bool(connection.execute("PRAGMA page_count").fetchone()[0] < pages)

    def _drop(self, partition: partitions.Partition) -> bool:
        connection = self._ledger.connection
        # In steps, each short: its indexes one by one, then the table. Row by row it would take ten times as long.
        # What requests are known by goes with the table: without it each look for one would read all of it.
        index = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND name <> ? AND sql IS NOT NULL LIMIT 1",
            (partition.table, partition.identity),
        ).fetchone()
        if index is not None:
            connection.execute(f'DROP INDEX "{index[0]}"')
            return True
        connection.execute("BEGIN IMMEDIATE")
        try:
            partitions.drop(connection, partition)
            connection.execute("COMMIT")
        except sqlite3.Error:
            self._ledger.rollback()
            raise
        self._ledger.partitions = partitions.catalogue(connection)
        return True

    def _sweep_counters(self) -> bool:
        """Delete the counters that can count nothing any more, a stretch of the table at a time."""
        if self._cursor is None:
            return False
        connection = self._ledger.connection
        rows = connection.execute(
            "SELECT scope, value, unit, expires_at FROM counter WHERE (scope, value, unit) > (?, ?, ?) "
            "ORDER BY scope, value, unit LIMIT ?",
            (*self._cursor, STEP_ROWS),
        ).fetchall()
        now = self._ledger.clock.now()
        old = [(*row[:3], now) for row in rows if row[3] < now]
        if old:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(
                    "DELETE FROM counter WHERE scope = ? AND value = ? AND unit = ? AND expires_at < ?",
                    old,
                )
                connection.execute("COMMIT")
            except sqlite3.Error:
                self._ledger.rollback()
                raise
            self._ledger.forget_counters()
        self._cursor = rows[-1][:3] if len(rows) == STEP_ROWS else None
        return self._cursor is not None

    def _sweep_recipients(self) -> bool:
        """Forget recipients that were not written to for long, a stretch of the table at a time."""
        if not self._recipients:
            return False
        ledger = self._ledger
        self._recipients = ledger.accounts.sweep(ledger.connection, ledger.clock.now())
        return self._recipients

    def _prune_changes(self) -> None:
        """Delete old changes and expired entries, after what they say was taken in."""
        ledger, connection = self._ledger, self._ledger.connection
        ledger.begin()
        try:
            connection.execute(
                "DELETE FROM change WHERE generation < (SELECT max(generation) FROM change) - ?", (CHANGES,)
            )
            connection.execute("DELETE FROM event WHERE at < ?", (ledger.clock.now() - EVENTS,))
            end_expired(connection, ledger.clock.now())
            for table in TABLES:
                connection.execute(
                    f"DELETE FROM {table} WHERE expires_at > 0 AND expires_at < ?",
                    (ledger.clock.now() - 7 * DAY,),
                )
            connection.execute("COMMIT")
        except sqlite3.Error:
            ledger.rollback()
            raise

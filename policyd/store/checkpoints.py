"""When the write-ahead log is copied into the database: before it grows long, and no more often than it fills.

Each copying waits for the disk twice, and answers wait with it. The file keeps its size when it is written from its
beginning again; how much of it is new is told by how fast it filled before, and that more than expected came by its growth.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time

from policyd.errors import StoreBusy
from policyd.store import locks

log = logging.getLogger("policyd.store")

#: Octets of the log that are to be copied at once, at the least.
ENOUGH = 8 * 1024 * 1024
#: The same where room may be short: what is in the log takes room twice, and a disk full of it could not be copied from.
SHORT = 1024 * 1024
#: With so many times as much it is urgent.
BEHIND = 3
#: Octets that mean that a reader keeps the copying from its end.
ALARM = 256 * 1024 * 1024
#: Between two looks, and between two copyings of a log that has not grown, s.
LOOK, MOST = 0.2, 5.0


class Checkpoints:
    """Of the database at ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._next_look = 0.0
        #: When the log was copied last, and when it holds enough again, if it fills as fast as before.
        self._copied_at = self._full_at = 0.0
        #: The size of its file then.
        self._size = 0
        self._alarmed = False

    def behind(self) -> bool:
        """Whether several times as much came as is enough."""
        octets = self._octets()
        late = time.monotonic() - self._copied_at >= BEHIND * (self._full_at - self._copied_at)
        return octets > ENOUGH and (late or octets > self._size + BEHIND * ENOUGH)

    def step(self, connection: sqlite3.Connection) -> None:
        """Copy, if it is time for that.

        :raises sqlite3.Error: the database is in trouble.
        """
        clock = time.monotonic()
        if clock < self._next_look:
            return
        self._next_look = clock + LOOK
        octets = self._octets()
        if octets > ENOUGH and (clock >= self._full_at or octets > self._size + ENOUGH):
            self.copy(connection)

    def spare_room(self, connection: sqlite3.Connection) -> None:
        """Copy all but a short log.

        :raises sqlite3.Error: the database is in trouble.
        """
        if self._octets() > SHORT:
            self.copy(connection)

    def copy(self, connection: sqlite3.Connection, wait: bool = False) -> None:
        """Copy the log into the database, unless a ``policyctl`` is changing something at this moment.

        :param wait: for its end, and for readers; the log is empty then.
        :raises sqlite3.Error: the database is in trouble.
        """
        try:
            with locks.write_lock(self._path, 5.0 if wait else 0.0):
                mode = "TRUNCATE" if wait else "PASSIVE"
                _, frames, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except StoreBusy:
            return
        clock, self._size = time.monotonic(), self._octets()
        came = max(1, frames) * connection.execute("PRAGMA page_size").fetchone()[0]
        self._full_at = clock + min(MOST, (clock - self._copied_at) * ENOUGH / came)
        self._copied_at = clock
        if self._size > ALARM and not self._alarmed:
            log.error(
                "wal-growth: %s-wal has %d MB; a reader holds it, see 'policyctl status'",
                self._path,
                self._size >> 20,
            )
        self._alarmed = self._size > ALARM

    def _octets(self) -> int:
        try:
            return os.stat(f"{self._path}-wal").st_size
        except OSError:
            return 0

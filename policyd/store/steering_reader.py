"""The steering data as the loop's thread reads them: over a connection of its own, never failing."""

from __future__ import annotations

import logging
import os
import sqlite3

from policyd.steering import Steering
from policyd.store.connect import quoted, writable
from policyd.store.steering_sync import SteeringMirror

log = logging.getLogger("policyd.store")

#: How long a read may wait for a lock, s; in WAL mode it hardly ever does.
PATIENCE = 0.05


class SteeringReader:
    """Gives the steering data as of now, or the last that could be read."""

    def __init__(self, path: str, known: Steering) -> None:
        """
        :param known: what holds until the file can be read.
        """
        self._path = path
        self._failed = False
        self._mirror = SteeringMirror(sqlite3.connect(":memory:"))
        self._mirror.steering = known
        self.reopen()

    def open(self) -> None:
        """Open the file that is there now; it is never made here.

        :raises sqlite3.Error: it cannot be read.
        """
        if not writable(self._path):
            # Nothing changes there; and a connection that cannot write keeps all others of this process from writing
            # later on, since they share what it has opened.
            raise sqlite3.OperationalError(f"{self._path} cannot be written")
        uri = f"file:{quoted(os.path.abspath(self._path))}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=PATIENCE)
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        mirror = SteeringMirror(connection)
        mirror.load()
        self._mirror = mirror

    def reopen(self) -> None:
        """Open anew; what is known stays if that fails."""
        old = self._mirror
        try:
            self.open()
            old.connection.close()
        except sqlite3.Error as error:
            self._failed = True
            log.error("steering data cannot be read: %s; what is known holds", error)

    def steering(self) -> Steering:
        """The steering data as of now; what was known before while they cannot be read."""
        try:
            self._mirror.refresh()
            self._failed = False
        except sqlite3.Error as error:
            if not self._failed:
                log.error("steering data cannot be read: %s; what is known holds", error)
            self._failed = True
        return self._mirror.steering

    def close(self) -> None:
        """Close the connection."""
        self._mirror.connection.close()

"""Keeps a Steering in memory equal to the steering tables, by the change table."""

from __future__ import annotations

import json
import logging
import sqlite3

from policyd.opinion import CounterKey
from policyd.steering import ROWS, TABLES, Steering

#: Changes that are applied one by one; with more to do everything is loaded anew.
MOST = 5_000


log = logging.getLogger("policyd.store")


class SteeringMirror:
    """A :class:`~policyd.steering.Steering` and the generation up to which it is true."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.steering = Steering()
        #: Accounts that the last refresh that found something named; ``None``: it may be any.
        self.changed_accounts: set[str] | None = None

    def load(self) -> None:
        """Load everything.

        :raises sqlite3.Error: what was loaded before stays.
        """
        fresh = Steering()
        # The generation first: a change that comes in between is applied once more, which does no harm.
        fresh.generation = self.current_generation()
        for table, row_class in ROWS.items():
            columns = ", ".join(row_class._fields)
            for row in self.connection.execute(f"SELECT {columns} FROM {table}").fetchall():
                fresh.put(table, row_class(*row))
        self.steering = fresh
        self.changed_accounts = None

    def refresh(self) -> list[CounterKey]:
        """Apply what has changed since; the counters that were reset by hand.

        :raises sqlite3.Error: what was loaded before stays.
        """
        if self.current_generation() == self.steering.generation:
            return []
        try:
            return self._refresh()
        except (ValueError, TypeError, KeyError, IndexError) as error:
            # A row that nobody of ours wrote: the tables themselves say what holds.
            log.error("a row of the change table is no change: %s; everything is loaded anew", error)
            self.load()
            return []

    def _refresh(self) -> list[CounterKey]:
        since = self.steering.generation
        changes = self.connection.execute(
            "SELECT generation, tbl, key FROM change WHERE generation > ? ORDER BY generation LIMIT ?",
            (since, MOST + 1),
        ).fetchall()
        if len(changes) > MOST or not changes or changes[0][0] != since + 1:
            reset = _reset(
                self.connection.execute(
                    "SELECT key FROM change WHERE generation > ? AND tbl = 'counter'", (since,)
                ).fetchall()
            )
            self.load()
            return reset
        self.changed_accounts = {str(json.loads(key)[0]) for _, table, key in changes if table == "account"}
        for _, table, key in changes:
            if table in TABLES:
                self._apply(table, tuple(str(part) for part in json.loads(key)))
        # Only now: what fails half way is applied once more, and its resets are told then.
        self.steering.generation = changes[-1][0]
        return _reset([(key,) for _, table, key in changes if table == "counter"])

    def _apply(self, table: str, key: tuple[str, ...]) -> None:
        row_class = ROWS[table]
        where = " AND ".join(f"{column} = ?" for column in TABLES[table])
        row = self.connection.execute(
            f"SELECT {', '.join(row_class._fields)} FROM {table} WHERE {where}", key
        ).fetchone()
        if row is None:
            self.steering.drop(table, key)
        else:
            self.steering.put(table, row_class(*row))

    def current_generation(self) -> int:
        """The number of the newest change in the database.

        :raises sqlite3.Error: it cannot be read.
        """
        row = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
        return int(row[0]) if row else 0


_UNITS = tuple(unit + suffix for unit in ("messages", "recipients", "bytes") for suffix in ("", "/external"))


def _reset(keys: list[tuple[str]]) -> list[CounterKey]:
    """The counters that these rows of the change table name."""
    owners = [json.loads(key)[:2] for (key,) in keys]
    return [CounterKey(str(scope), str(value), unit) for scope, value in owners for unit in _UNITS]

"""Keeps a Steering in memory equal to the steering tables, by the change table."""

from __future__ import annotations

import json
import sqlite3

from policyd.opinion import CounterKey
from policyd.steering import ROWS, TABLES, Steering

#: Changes that are applied one by one; with more to do everything is loaded anew.
MOST = 5_000


class SteeringMirror:
    """A :class:`~policyd.steering.Steering` and the generation up to which it is true."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.steering = Steering()

    def load(self) -> None:
        """Load everything.

        :raises sqlite3.Error: what was loaded before stays.
        """
        fresh = Steering()
        # The generation first: a change that comes in between is applied once more, which does no harm.
        fresh.generation = self._generation()
        for table, row_class in ROWS.items():
            columns = ", ".join(row_class._fields)
            for row in self.connection.execute(f"SELECT {columns} FROM {table}").fetchall():
                fresh.put(table, row_class(*row))
        self.steering = fresh

    def refresh(self) -> list[CounterKey]:
        """Apply what has changed since; the counters that were reset by hand.

        :raises sqlite3.Error: what was loaded before stays.
        """
        if self._generation() == self.steering.generation:
            return []
        since = self.steering.generation
        changes = self.connection.execute(
            "SELECT generation, tbl, key FROM change WHERE generation > ? ORDER BY generation LIMIT ?",
            (since, MOST + 1),
        ).fetchall()
        reset = [
            CounterKey(str(scope), str(value), unit)
            for _, table, key in changes
            if table == "counter"
            for scope, value in [json.loads(key)[:2]]
            for unit in _UNITS
        ]
        if len(changes) > MOST or not changes or changes[0][0] != since + 1:
            self.load()
            return reset
        for generation, table, key in changes:
            if table in TABLES:
                self._apply(table, tuple(str(part) for part in json.loads(key)))
            self.steering.generation = generation
        return reset

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

    def _generation(self) -> int:
        row = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
        return int(row[0]) if row else 0


_UNITS = tuple(unit + suffix for unit in ("messages", "recipients", "bytes") for suffix in ("", "/external"))

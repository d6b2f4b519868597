"""The decisions' tables: one open partition that takes all new rows, closed ones behind it, a view over all.

A partition is closed when the day changes or when it is full, so that inserting costs the same however many decisions there
are. The open one has the two indexes that the ledger needs; the others come when it is closed, one at a time, when
nothing else is to be done.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from policyd.store import migrate
from policyd.units import DAY

#: Rows of one partition at the most: giving a closed one an index holds up answers for about a tenth of a second.
FULL = 50_000
#: Partitions that the view can show, the newest: SQLite allows 500 terms. ``policyctl`` reads all there are.
MOST = 480


class Partition(NamedTuple):
    """A row of ``decision_partition``."""

    number: int
    opened_at: int
    closed_at: int
    first_id: int
    rows: int
    indexed: int

    @property
    def table(self) -> str:
        """The name of its table."""
        return table_name(self.number)

    @property
    def identity(self) -> str:
        """The name of the index by which requests are known again."""
        return f"{self.table}_instance"


def table_name(number: int) -> str:
    """The table of partition ``number``."""
    return f"decision_{number:d}"


def catalogue(connection: sqlite3.Connection) -> list[Partition]:
    """All partitions, newest first."""
    rows = connection.execute(
        "SELECT number, opened_at, closed_at, first_id, rows, indexed FROM decision_partition ORDER BY number DESC"
    )
    return [Partition(*row) for row in rows]


def is_due(partition: Partition, now: int, next_id: int, full: int = FULL) -> bool:
    """Whether the open partition is to be closed at ledger time ``now``: after ``full`` rows, or the day is over."""
    return next_id - partition.first_id >= full or now // DAY != partition.opened_at // DAY


def open_next(connection: sqlite3.Connection, now: int, next_id: int) -> Partition:
    """Close the open partition, if there is one, and open the next; inside the caller's transaction."""
    newest = next(iter(catalogue(connection)), None)
    if newest is not None and not newest.closed_at:
        connection.execute(
            "UPDATE decision_partition SET closed_at = ?, rows = ? WHERE number = ?",
            (max(now, 1), next_id - newest.first_id, newest.number),
        )
    number = newest.number + 1 if newest is not None else 1
    for statement in migrate.statements(migrate.text("decision.sql").replace("{n}", f"{number:d}")):
        connection.execute(statement)
    connection.execute("INSERT INTO decision_partition VALUES (?, ?, 0, ?, 0, 0)", (number, now, next_id))
    refresh_view(connection)
    return Partition(number, now, 0, next_id, 0, 0)


def refresh_view(connection: sqlite3.Connection) -> None:
    """Make the view ``decision`` show the partitions there are; inside the caller's transaction."""
    tables = [partition.table for partition in reversed(catalogue(connection))]
    connection.execute("DROP VIEW IF EXISTS decision")
    if tables:
        union = " UNION ALL ".join(f"SELECT * FROM {table}" for table in tables[-MOST:])
        connection.execute(f"CREATE VIEW decision AS {union}")


def index_statements(partition: Partition) -> list[str]:
    """The statements that give a closed partition its indexes; each may take a while."""
    return migrate.statements(migrate.text("decision_closed.sql").replace("{n}", f"{partition.number:d}"))


def drop(connection: sqlite3.Connection, partition: Partition) -> None:
    """Drop a closed partition; inside the caller's transaction."""
    connection.execute(f"DROP TABLE {partition.table}")
    connection.execute("DELETE FROM decision_partition WHERE number = ?", (partition.number,))
    refresh_view(connection)

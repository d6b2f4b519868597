"""What the database file holds, how large it is, and what is wrong with it."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from policyd.store import partitions
from policyd.store.known import all_counters
from policyd.store.read import in_partition, snapshot
from policyd.window import Counter


class Sizes(NamedTuple):
    """The database by what it holds; octets and rows."""

    page_size: int
    pages: int
    free_pages: int
    counters: int
    bans: int
    allows: int
    own_limits: int
    grants: int
    decisions: int
    partitions: int
    #: Wall-clock time (ms) of the oldest decision; 0 when there is none.
    oldest_wall: int


def sizes(connection: sqlite3.Connection) -> Sizes:
    """How much the database holds. Counts every counter, so it takes a moment with millions."""
    with snapshot(connection):
        page_size, pages, free = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        counted, bans, allows, own_limits, grants = connection.execute(
            "SELECT (SELECT count(*) FROM counter), (SELECT count(*) FROM ban), (SELECT count(*) FROM allow), "
            "(SELECT count(*) FROM user_limit), (SELECT count(*) FROM user_grant)"
        ).fetchone()
        listed = partitions.catalogue(connection)
        rows, oldest = 0, 0
        for partition in listed:
            if partition.closed_at:
                rows += partition.rows
            else:
                rows += int(
                    connection.execute(in_partition(partition, "SELECT count(*) FROM {table}")).fetchone()[0]
                )
        for partition in reversed(listed):
            row = connection.execute(
                in_partition(partition, "SELECT wall_at FROM {table} ORDER BY id LIMIT 1")
            ).fetchone()
            if row:
                oldest = int(row[0])
                break
    return Sizes(page_size, pages, free, counted, bans, allows, own_limits, grants, rows, len(listed), oldest)


def table_sizes(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Octets per table with its indexes, largest first; reads the whole file. Empty where SQLite was built without dbstat."""
    try:
        rows = connection.execute(
            "SELECT coalesce(m.tbl_name, s.name), sum(s.pgsize) FROM dbstat AS s "
            "LEFT JOIN sqlite_schema AS m ON m.name = s.name WHERE s.aggregate = TRUE GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
    except sqlite3.OperationalError as error:
        if "dbstat" in str(error):
            return []
        raise
    return [(str(name), int(octets)) for name, octets in rows]


def problems(connection: sqlite3.Connection, quick: bool = False) -> list[str]:
    """What is wrong with the file: pages, indexes, counters that cannot be read, tables that the catalogue misses."""
    pragma = "PRAGMA quick_check(100)" if quick else "PRAGMA integrity_check(100)"
    try:
        found = [str(row[0]) for row in connection.execute(pragma) if row[0] != "ok"]
        if found:
            return found
        for key, cells in all_counters(connection):
            try:
                Counter.unpack(cells)
            except ValueError as error:
                found.append(f"counter {key.scope} {key.value!r} {key.unit}: {error}")
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        return [str(error)]
    listed = {partition.table for partition in partitions.catalogue(connection)}
    found += [f"table {name} is missing" for name in sorted(listed - tables)]
    found += [
        f"table {name} is not in decision_partition"
        for name in sorted(tables - listed)
        if name.startswith("decision_") and name.removeprefix("decision_").isdigit()
    ]
    return found

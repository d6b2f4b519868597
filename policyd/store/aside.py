"""A damaged database is moved aside, and what the admin had set is saved into the new one."""

from __future__ import annotations

import os
import sqlite3
import time
from urllib.parse import quote

from policyd.errors import StoreRefused
from policyd.steering import ROWS, Row, Steering

#: The files that belong to a database in WAL mode.
SUFFIXES = ("", "-wal", "-shm")


def move(path: str) -> str:
    """Rename the database and what belongs to it; the new name. Nothing that exists is overwritten.

    :raises StoreRefused: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target, number = f"{path}.damaged-{stamp}", 1
    while any(os.path.exists(target + suffix) for suffix in SUFFIXES):
        number += 1
        target = f"{path}.damaged-{stamp}-{number}"
    try:
        for suffix in SUFFIXES:
            if os.path.exists(path + suffix):
                os.rename(path + suffix, target + suffix)
    except OSError as error:
        raise StoreRefused(f"{path} is damaged and cannot be moved aside: {error.strerror}") from None
    return target


def restore_steering(connection: sqlite3.Connection, damaged: str, known: Steering | None) -> int:
    """Write the steering rows that are known, else those that can still be read, into the new database; how many.

    :raises sqlite3.Error: nothing was written.
    """
    rows = (
        _readable(damaged) if known is None else [(table, row) for table in ROWS for row in known.rows(table)]
    )
    written = 0
    base = _readable_time(damaged)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table, row in rows:
            marks = ", ".join("?" * len(row))
            try:
                connection.execute(
                    f"INSERT OR REPLACE INTO {table} ({', '.join(row._fields)}) VALUES ({marks})", row
                )
            except sqlite3.IntegrityError:
                # Damage may leave any value; the tables take only what means something.
                continue
            written += 1
        if base is not None:
            # Expiries are ledger time: it has to go on where it stood.
            connection.execute("INSERT OR REPLACE INTO ledger_state VALUES (1, ?, ?, ?, ?, ?, 0)", base)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return written


def _readable(damaged: str) -> list[tuple[str, Row]]:
    """What can still be read of the steering tables in the damaged file."""
    rows: list[tuple[str, Row]] = []
    try:
        # Read only: the damaged file stays as it is.
        connection = sqlite3.connect(f"file:{quote(os.path.abspath(damaged))}?mode=ro", uri=True)
    except sqlite3.Error:
        return rows
    connection.text_factory = lambda octets: octets.decode("utf-8", "backslashreplace")
    try:
        for table, row_class in ROWS.items():
            try:
                for row in connection.execute(f"SELECT {', '.join(row_class._fields)} FROM {table}"):
                    rows.append((table, row_class(*row)))
            except sqlite3.Error:
                continue
    finally:
        connection.close()
    return rows


def _readable_time(damaged: str) -> tuple[str | int, ...] | None:
    """Where ledger time and the references stood in the damaged file, if it still says so."""
    try:
        connection = sqlite3.connect(f"file:{quote(os.path.abspath(damaged))}?mode=ro", uri=True)
        try:
            row = connection.execute(
                "SELECT boot_id, boottime, ledger, wall, ref_seq FROM ledger_state WHERE typeof(ledger) = 'integer'"
            ).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return None
    return tuple(row) if row else None

"""A damaged database is moved aside, and what the admin had set is saved into the new one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time

from policyd.errors import StoreRefused
from policyd.steering import ROWS, Row, Steering
from policyd.store import connect, locks

#: The files that belong to a database in WAL mode.
SUFFIXES = ("", "-wal", "-shm")


def move(path: str) -> str:
    """Rename the database and what belongs to it; the new name, ``""`` if there was nothing. Overwrites nothing.

    :raises StoreRefused: it cannot be renamed.
    """
    return _rename(path, "damaged", SUFFIXES)


def move_log(path: str) -> str:
    """Rename the write-ahead log alone, which belongs to another file than the one that is there now; see :func:`move`.

    SQLite tells by the name alone what a log belongs to, and would play it into the wrong database.
    :raises StoreError: it cannot be renamed, or policyctl is changing something and does not end.
    """
    with locks.write_lock(path):
        return _rename(path, "replaced", SUFFIXES[1:])


def remove(path: str) -> None:
    """Remove a database that was only begun."""
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def _rename(path: str, why: str, suffixes: tuple[str, ...]) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target, number = f"{path}.{why}-{stamp}", 1
    while any(os.path.exists(target + suffix) for suffix in SUFFIXES):
        number += 1
        target = f"{path}.{why}-{stamp}-{number}"
    moved = ""
    try:
        for suffix in suffixes:
            if os.path.exists(path + suffix):
                os.rename(path + suffix, target + suffix)
                moved = target
    except OSError as error:
        raise StoreRefused(f"{path} is {why} and cannot be moved aside: {error.strerror}") from None
    return moved


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
        connection = connect.open_whatever_it_is(damaged)
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
        connection = connect.open_whatever_it_is(damaged)
        try:
            row = connection.execute(
                "SELECT boot_id, boottime, ledger, wall, ref_seq FROM ledger_state WHERE typeof(ledger) = 'integer'"
            ).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return None
    return tuple(row) if row else None

"""How the daemon says its parts do, as it last wrote it down: the table ``health``."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any, NamedTuple


class Health(NamedTuple):
    """One part: a blocklist (``dnsbl/NAME``), a nameserver, ..."""

    subject: str
    state: str
    #: Since when it is so, and when it was written; wall clock, ms.
    since: int
    at: int
    figures: dict[str, Any]


def read_health(connection: sqlite3.Connection, prefix: str) -> list[Health]:
    """The parts whose subject begins with ``prefix``; none where no daemon has written any."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'health'")
    if known.fetchone() is None:
        return []
    rows = connection.execute(
        "SELECT subject, state, since, at, figures FROM health WHERE substr(subject, 1, length(?1)) = ?1 ORDER BY subject",
        (prefix,),
    )
    return [
        Health(subject, state, since, at, json.loads(figures)) for subject, state, since, at, figures in rows
    ]


def write_health(
    connection: sqlite3.Connection, parts: Iterable[tuple[str, str, int, dict[str, Any]]], at: int
) -> None:
    """Write how the parts do at wall time ``at`` (ms), in a transaction of its own.

    :raises sqlite3.Error: nothing was written.
    """
    rows = [(subject, state, since, json.dumps(figures), at) for subject, state, since, figures in parts]
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("DELETE FROM health")
        connection.executemany("INSERT INTO health VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise

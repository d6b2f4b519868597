"""Steering data changed by hand: each change one short transaction, with its row of history.

The triggers on the steering tables tell the daemon what has changed; nothing else goes between the two.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from policyd.steering import ROWS, TABLES, Row
from policyd.store.clock import ledger_now, wall
from policyd.store.suspensions import end_expired
from policyd.window import Counter

_SELECT = {
    "ban": "SELECT kind, value, reason, author, created_at, expires_at FROM ban ORDER BY kind, value",
    "allow": "SELECT kind, value, reason, author, created_at, expires_at FROM allow ORDER BY kind, value",
    "user_limit": "SELECT user, unit, window, amount, reason, author, created_at, expires_at FROM user_limit "
    "ORDER BY user, unit, window",
    "user_grant": "SELECT id, user, unit, amount, reason, author, created_at, expires_at FROM user_grant ORDER BY id",
    "check_mode": "SELECT name, mode, reason, author, created_at, expires_at FROM check_mode ORDER BY name",
    "sender_right": "SELECT user, sender, reason, author, created_at, expires_at FROM sender_right "
    "ORDER BY user, sender",
    "greylist_allow": "SELECT kind, value, reason, author, created_at, expires_at FROM greylist_allow "
    "ORDER BY kind, value",
    "suspension": "SELECT user, detector, reason, evidence, step, ref, author, created_at, expires_at FROM suspension "
    "ORDER BY user",
    "milestone": "SELECT name, reason, author, created_at, expires_at FROM milestone ORDER BY name",
}
_FIND = {
    "ban": "SELECT kind, value, reason, author, created_at, expires_at FROM ban WHERE kind = ? AND value = ?",
    "allow": "SELECT kind, value, reason, author, created_at, expires_at FROM allow WHERE kind = ? AND value = ?",
    "user_limit": "SELECT user, unit, window, amount, reason, author, created_at, expires_at FROM user_limit "
    "WHERE user = ? AND unit = ? AND window = ?",
    "user_grant": "SELECT id, user, unit, amount, reason, author, created_at, expires_at FROM user_grant WHERE id = ?",
    "check_mode": "SELECT name, mode, reason, author, created_at, expires_at FROM check_mode WHERE name = ?",
    "sender_right": "SELECT user, sender, reason, author, created_at, expires_at FROM sender_right "
    "WHERE user = ? AND sender = ?",
    "greylist_allow": "SELECT kind, value, reason, author, created_at, expires_at FROM greylist_allow "
    "WHERE kind = ? AND value = ?",
    "suspension": "SELECT user, detector, reason, evidence, step, ref, author, created_at, expires_at FROM suspension "
    "WHERE user = ?",
    "milestone": "SELECT name, reason, author, created_at, expires_at FROM milestone WHERE name = ?",
}
_PUT = {
    "ban": "INSERT INTO ban (kind, value, reason, author, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (kind, value) DO UPDATE SET reason = excluded.reason, author = excluded.author, "
    "created_at = excluded.created_at, expires_at = excluded.expires_at",
    "allow": "INSERT INTO allow (kind, value, reason, author, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (kind, value) DO UPDATE SET reason = excluded.reason, author = excluded.author, "
    "created_at = excluded.created_at, expires_at = excluded.expires_at",
    "user_limit": "INSERT INTO user_limit (user, unit, window, amount, reason, author, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user, unit, window) DO UPDATE SET amount = excluded.amount, "
    "reason = excluded.reason, author = excluded.author, created_at = excluded.created_at, "
    "expires_at = excluded.expires_at",
    "user_grant": "INSERT INTO user_grant (id, user, unit, amount, reason, author, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET user = excluded.user, unit = excluded.unit, "
    "amount = excluded.amount, reason = excluded.reason, author = excluded.author, "
    "created_at = excluded.created_at, expires_at = excluded.expires_at",
    "check_mode": "INSERT INTO check_mode (name, mode, reason, author, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET mode = excluded.mode, reason = excluded.reason, "
    "author = excluded.author, created_at = excluded.created_at, expires_at = excluded.expires_at",
    "sender_right": "INSERT INTO sender_right (user, sender, reason, author, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user, sender) DO UPDATE SET reason = excluded.reason, "
    "author = excluded.author, created_at = excluded.created_at, expires_at = excluded.expires_at",
    "greylist_allow": "INSERT INTO greylist_allow (kind, value, reason, author, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (kind, value) DO UPDATE SET reason = excluded.reason, "
    "author = excluded.author, created_at = excluded.created_at, expires_at = excluded.expires_at",
    "suspension": "INSERT INTO suspension (user, detector, reason, evidence, step, ref, author, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user) DO UPDATE SET detector = excluded.detector, "
    "reason = excluded.reason, evidence = excluded.evidence, step = excluded.step, ref = excluded.ref, "
    "author = excluded.author, created_at = excluded.created_at, expires_at = excluded.expires_at",
    "milestone": "INSERT INTO milestone (name, reason, author, created_at, expires_at) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET reason = excluded.reason, author = excluded.author, "
    "created_at = excluded.created_at, expires_at = excluded.expires_at",
}
_DROP = {
    "ban": "DELETE FROM ban WHERE kind = ? AND value = ?",
    "allow": "DELETE FROM allow WHERE kind = ? AND value = ?",
    "user_limit": "DELETE FROM user_limit WHERE user = ? AND unit = ? AND window = ?",
    "user_grant": "DELETE FROM user_grant WHERE id = ?",
    "check_mode": "DELETE FROM check_mode WHERE name = ?",
    "sender_right": "DELETE FROM sender_right WHERE user = ? AND sender = ?",
    "greylist_allow": "DELETE FROM greylist_allow WHERE kind = ? AND value = ?",
    "suspension": "DELETE FROM suspension WHERE user = ?",
    "milestone": "DELETE FROM milestone WHERE name = ?",
}
#: An expired row does nothing; it goes with the next change of its table. The end of a suspension is told, too.
_PURGE = {
    "ban": "DELETE FROM ban WHERE expires_at > 0 AND expires_at <= ?",
    "allow": "DELETE FROM allow WHERE expires_at > 0 AND expires_at <= ?",
    "user_limit": "DELETE FROM user_limit WHERE expires_at > 0 AND expires_at <= ?",
    "user_grant": "DELETE FROM user_grant WHERE expires_at > 0 AND expires_at <= ?",
    "check_mode": "DELETE FROM check_mode WHERE expires_at > 0 AND expires_at <= ?",
    "sender_right": "DELETE FROM sender_right WHERE expires_at > 0 AND expires_at <= ?",
    "greylist_allow": "DELETE FROM greylist_allow WHERE expires_at > 0 AND expires_at <= ?",
    "milestone": "DELETE FROM milestone WHERE expires_at > 0 AND expires_at <= ?",
}


def rows(connection: sqlite3.Connection, table: str, now: int) -> list[Any]:
    """The rows of a steering table that are in force at ledger time ``now``, in the order of their keys."""
    found = (ROWS[table](*row) for row in connection.execute(_SELECT[table]))
    return [row for row in found if in_force(row, now)]


def find(connection: sqlite3.Connection, table: str, key: tuple[str | int, ...], now: int) -> Any:
    """The row with this key, if it is in force at ledger time ``now``; else ``None``."""
    values = connection.execute(_FIND[table], key).fetchone()
    row = ROWS[table](*values) if values else None
    return row if row is not None and in_force(row, now) else None


def in_force(row: Row, now: int) -> bool:
    """Whether a row has not ended at ledger time ``now``."""
    return not row.expires_at or now < row.expires_at


def history(
    connection: sqlite3.Connection, subject: str, limit: int
) -> list[tuple[int, str, str, str, str, str]]:
    """The newest changes by hand, newest first: wall time (ms), author, action, subject, detail, reason.

    :param subject: only those about this account, value or check; empty: all.
    """
    return connection.execute(
        "SELECT wall_at, author, action, subject, detail, reason FROM history "
        "WHERE ?1 = '' OR subject = ?1 ORDER BY id DESC LIMIT ?2",
        (subject, limit),
    ).fetchall()


class Change:
    """A change that is being made; everything it does holds together, or not at all."""

    def __init__(self, connection: sqlite3.Connection, author: str, reason: str) -> None:
        self.connection = connection
        self.author = author
        self.reason = reason
        #: Ledger time of the change, ms.
        self.now = ledger_now(connection)

    def expires(self, lasts: int) -> int:
        """When something ends that lasts ``lasts`` ms from now; 0 stays 0: until taken back."""
        return self.now + lasts if lasts else 0

    def find(self, table: str, *key: str | int) -> Any:
        """The row with this key that is in force, or ``None``."""
        return find(self.connection, table, key, self.now)

    def put(self, table: str, row: Row) -> Any:
        """Write ``row``, and return what it replaces: a row that was in force, or ``None``."""
        if table == "suspension":
            end_expired(self.connection, self.now)
        else:
            self.connection.execute(_PURGE[table], (self.now,))
        before = find(self.connection, table, key_of(table, row), self.now)
        self.connection.execute(_PUT[table], row)
        return before

    def next_grant(self) -> int:
        """A number that no grant has."""
        return int(self.connection.execute("SELECT coalesce(max(id), 0) + 1 FROM user_grant").fetchone()[0])

    def drop(self, table: str, *key: str | int) -> Any:
        """Delete the row with this key; what it was, or ``None`` when none was in force."""
        row = self.find(table, *key)
        self.connection.execute(_DROP[table], key)
        return row

    def reset_usage(self, user: str) -> int:
        """Forget what the account has used; how many counters that were. The daemon drops its copies."""
        deleted = self.connection.execute(
            "DELETE FROM counter WHERE scope = 'user' AND value = ?", (user,)
        ).rowcount
        key = json.dumps(["user", user], ensure_ascii=False)
        self.connection.execute("INSERT INTO change (tbl, key) VALUES ('counter', ?)", (key,))
        return deleted

    def begin_usage(self, user: str, unit: str, counter: Counter) -> bool:
        """Let the account begin with what it has used elsewhere; whether it did: what is counted here already stays."""
        row = ("user", user, unit, counter.pack(), counter.expires(self.now))
        begun = (
            self.connection.execute("INSERT OR IGNORE INTO counter VALUES (?, ?, ?, ?, ?)", row).rowcount == 1
        )
        if begun:
            key = json.dumps(["user", user], ensure_ascii=False)
            self.connection.execute("INSERT INTO change (tbl, key) VALUES ('counter', ?)", (key,))
        return begun

    def record(self, action: str, subject: str, detail: str) -> None:
        """Put what was done into the history."""
        self.connection.execute(
            "INSERT INTO history (at, wall_at, author, action, subject, detail, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.now, wall(), self.author, action, subject, detail, self.reason),
        )


def key_of(table: str, row: Row) -> tuple[str | int, ...]:
    """The values of a row's key columns."""
    return tuple(row[: len(TABLES[table])])


@contextlib.contextmanager
def change(
    connection: sqlite3.Connection, author: str, reason: str = "", dry_run: bool = False
) -> Iterator[Change]:
    """One transaction. It is rolled back when an exception leaves it, and at the end of a dry run.

    :raises sqlite3.Error: nothing was changed.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield Change(connection, author, reason)
        connection.execute("ROLLBACK" if dry_run else "COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise

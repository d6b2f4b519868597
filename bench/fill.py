"""Fills an empty database of policyd with a past: so many accounts with counters, so many decisions over five days.

The tables are made by policyd's own store; only the rows are written here, in large transactions that do not wait for
the disk. The decisions lie in closed partitions with all their indexes, as they would after five days.
"""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

from bench import traffic
from policyd.store import clock, connect, partitions
from policyd.units import DAY, HOUR
from policyd.window import Counter, slot_width

#: Over how many days the decisions are spread; the newest is two hours old.
DAYS = 5
#: Different counters made; the accounts share them out.
_SHAPES = 2_000
#: Octets that an account and a decision take in the file, with their indexes, at the most.
_PER_USER, _PER_DECISION = 200, 720


def size_estimate(users: int, decisions: int) -> int:
    """How large the database will be at the most, in octets."""
    return users * _PER_USER + decisions * _PER_DECISION


def _counter(chance: random.Random, now: int) -> bytes:
    """The counter of an account that sent a few mails in the last day, asked for by both limits."""
    counter = Counter()
    counter.ask(slot_width(HOUR), now - DAY)
    counter.ask(slot_width(DAY), now - DAY)
    for at in sorted(now - chance.randrange(DAY) for _ in range(chance.randrange(1, 16))):
        counter.ask(slot_width(HOUR), at)
        counter.ask(slot_width(DAY), at)
        counter.add(1, at)
    return counter.pack()


def fill_counters(connection: sqlite3.Connection, users: int, now: int) -> None:
    """One row for each of ``users`` accounts, in the order of the key."""
    chance = random.Random(users)
    shapes = [_counter(chance, now) for _ in range(min(users, _SHAPES))]
    expires = now + 62 * slot_width(DAY)
    rows = (
        ("user", name, "recipients/external", shapes[at % len(shapes)], expires)
        for at, name in enumerate(sorted(traffic.user_name(number) for number in range(users)))
    )
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO counter VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("COMMIT")


# Made by SQLite itself, from a counting query: five million rows through Python would take minutes.
_ROWS = """
WITH RECURSIVE n (i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :first + :rows)
INSERT INTO {table} SELECT
    i, :at + (i - :first) * :step, :at + (i - :first) * :step, 'END-OF-MESSAGE', 'submission', :listener, 'submission',
    printf('%x.%x.%x.0', i % 32768, 1700000000 + i, i), printf('4F%08X', i),
    printf('u%d@example.org', i * 7919 % :users), printf('198.18.%d.%d', i / 250 % 250, i % 250),
    printf('host%d.example.net', i % 62500), printf('host%d.example.net', i % 62500),
    printf('u%d@example.org', i * 7919 % :users), printf('r%d@example.net', i % 1000000), 1, 2000,
    'DUNNO', 'pass', '', '', NULL, '', :detail,
    printf('[["user","u%d@example.org","recipients/external",1]]', i * 7919 % :users), 'bench', 400, ''
FROM n
"""


def fill_decisions(connection: sqlite3.Connection, decisions: int, users: int, now: int) -> None:
    """``decisions`` rows in closed, indexed partitions, ending two hours before ``now``, at least one partition a day."""
    each = max(1, min(partitions.FULL, -(-decisions // DAYS)))
    count = -(-decisions // each)
    span = DAYS * DAY // max(1, count)
    begin = now - 2 * HOUR - count * span
    detail = json.dumps(
        {
            "checks": [
                ["allow", "enforce", "-", 9, ""],
                ["bans", "enforce", "-", 12, ""],
                ["quota", "enforce", "limits", 21, ""],
            ],
            "limits": [["quota", "user", "u1@example.org", "recipients/external", DAY, 1, 1, 1, 1]],
        },
        separators=(",", ":"),
    )
    for number in range(count):
        first, at = 1 + number * each, begin + number * span
        rows = min(each, decisions - number * each)
        connection.execute("BEGIN")
        partition = partitions.open_next(connection, at, first)
        values = {
            "first": first,
            "rows": rows,
            "at": at,
            "step": span // rows,
            "listener": "bench",
            "users": users,
            "detail": detail,
        }
        connection.execute(_ROWS.format(table=partition.table), values)
        for statement in partitions.index_statements(partition):
            connection.execute(statement)
        connection.execute(
            "UPDATE decision_partition SET closed_at = ?, rows = ?, indexed = 1 WHERE number = ?",
            (at + span, rows, partition.number),
        )
        connection.execute("COMMIT")


def fill(path: Path, users: int, decisions: int) -> None:
    """Make the database ``path`` and fill it; the daemon can then be started on it."""
    connection = connect.open_for_daemon(str(path))
    try:
        now = clock.LedgerClock(clock.stored_base(connection)).now()
        # Nobody needs these rows after a power failure.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")
        fill_counters(connection, users, now)
        fill_decisions(connection, decisions, users, now)
        base = clock.Base(clock.boot_id(), clock.boottime(), now, clock.wall())
        connection.execute("BEGIN")
        connection.execute(
            "INSERT OR REPLACE INTO ledger_state VALUES (1, ?, ?, ?, ?, 0, ?)", (*base, decisions)
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()

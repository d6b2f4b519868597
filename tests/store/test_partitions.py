"""The decisions' tables: rolled by day and by size, one view over all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.store import clock, partitions
from policyd.store.connect import open_for_daemon
from policyd.store.partitions import Partition
from policyd.units import DAY
from tests.fakes import Disk, Store, ask, engine, quota_rule


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_for_daemon(str(tmp_path / "policyd.db"))
    yield connection
    connection.close()


def insert(connection: sqlite3.Connection, table: str, identifier: int) -> None:
    columns = len(connection.execute(f"PRAGMA table_info({table})").fetchall())
    values: list[object] = ["x"] * columns
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    for name in ("id", "at", "wall_at", "recipient_count", "size", "micros"):
        values[names.index(name)] = identifier
    connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", values)


def test_the_day_and_the_size_close_a_partition() -> None:
    """Whichever comes first."""
    opened = 5 * DAY + 100
    partition = Partition(1, opened, 0, 1_000, 0, 0)
    assert not partitions.is_due(partition, 6 * DAY - 1, 1_000 + partitions.FULL - 1)
    assert partitions.is_due(partition, 6 * DAY, 1_001)
    assert partitions.is_due(partition, opened, 1_000 + partitions.FULL)


def test_the_view_shows_all_in_order_and_a_dropped_one_no_more(connection: sqlite3.Connection) -> None:
    """Ids rise over all of them; closing notes when and how many."""
    identifier = 0
    for day in range(4):
        opened = partitions.open_next(connection, day * DAY + 7, identifier + 1)
        assert opened.table == f"decision_{day + 1}"
        for _ in range(3):
            identifier += 1
            insert(connection, opened.table, identifier)
    found = partitions.catalogue(connection)
    assert [partition.number for partition in found] == [4, 3, 2, 1]
    assert [partition.rows for partition in found] == [0, 3, 3, 3]
    assert [partition.closed_at for partition in found] == [0, 3 * DAY + 7, 2 * DAY + 7, DAY + 7]
    assert connection.execute("SELECT id FROM decision").fetchall() == [(n,) for n in range(1, 13)]
    partitions.drop(connection, found[-1])
    assert connection.execute("SELECT id FROM decision").fetchall() == [(n,) for n in range(4, 13)]
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name LIKE 'decision_1%'").fetchall()


def test_the_last_one_dropped_takes_the_view_along(connection: sqlite3.Connection) -> None:
    """An empty union would be no view."""
    partitions.drop(connection, partitions.open_next(connection, 1, 1))
    assert partitions.catalogue(connection) == []
    assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall() == []


def test_as_many_partitions_as_there_may_be_have_a_view(connection: sqlite3.Connection) -> None:
    """SQLite's limit of terms is not met, and the newest are shown."""
    connection.execute("BEGIN")
    for number in range(partitions.MOST + 5):
        opened = partitions.open_next(connection, number * DAY, number + 1)
        insert(connection, opened.table, number + 1)
    connection.execute("COMMIT")
    rows = connection.execute("SELECT count(*), max(id) FROM decision").fetchone()
    assert rows == (partitions.MOST, partitions.MOST + 5)


def test_a_closed_partition_s_indexes(connection: sqlite3.Connection) -> None:
    """The statements may run again."""
    partition = partitions.open_next(connection, 1, 1)
    for _ in range(2):
        for statement in partitions.index_statements(partition):
            connection.execute(statement)
    names = {row[1] for row in connection.execute(f"PRAGMA index_list({partition.table})")}
    assert {
        f"decision_1_{column}" for column in ("instance", "ref", "user", "sender", "client", "queue_id")
    } <= names


@pytest.mark.parametrize("column", ["user", "sender", "client", "queue_id", "ref", "instance"])
def test_the_indexes_are_used_through_the_view(connection: sqlite3.Connection, column: str) -> None:
    """A search scans no closed partition."""
    for number in range(3):
        partition = partitions.open_next(connection, number * DAY, number + 1)
        for statement in partitions.index_statements(partition):
            connection.execute(statement)
    where = f"{column} = ?"
    if column in ("user", "queue_id", "instance"):
        where += f" AND {column} <> ''"
    if column == "sender":
        where += " COLLATE NOCASE"
    plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT id FROM decision WHERE {where}", ("x",)).fetchall()
    assert not [row for row in plan if "SCAN decision" in row[3]], plan


def test_the_writer_rolls_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between batches; every decision is in the view once."""
    monkeypatch.setattr(partitions, "FULL", 10)
    path = tmp_path / "policyd.db"
    with Store(path, engine(quota_rule("999 messages per 1h"))) as store:
        for _ in range(30):
            store.decide(ask(), ask())
    disk = Disk(path)
    assert disk.query("SELECT id FROM decision ORDER BY id") == [(n,) for n in range(1, 61)]
    assert len(disk.query("SELECT number FROM decision_partition")) == 6


def test_the_writer_rolls_by_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ledger time; a request is known again across midnight."""
    now = [2_000 * DAY - 1_000]
    monkeypatch.setattr(clock, "boottime", lambda: now[0])
    monkeypatch.setattr(clock, "wall", lambda: now[0])
    path = tmp_path / "policyd.db"
    request = ask()
    with Store(path, engine(quota_rule("999 messages per 1h"))) as store:
        store.decide(request)
        now[0] += 2_000
        store.decide(ask())
        assert store.settled(request).mark == "repeat"
    rows = Disk(path).query(
        "SELECT opened_at, closed_at, first_id, rows FROM decision_partition ORDER BY number"
    )
    assert rows == [(2_000 * DAY - 1_000, 2_000 * DAY + 1_000, 1, 1), (2_000 * DAY + 1_000, 0, 2, 0)]
    assert Disk(path).used("messages/external") == 2

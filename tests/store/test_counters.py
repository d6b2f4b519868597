"""Counters in memory: what they say stands in the table, or is on its way there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.opinion import CounterKey
from policyd.store.connect import open_for_daemon
from policyd.store.counters import Counters
from policyd.units import DAY, HOUR

NOW = 1_000 * DAY
ALICE, BERT = (CounterKey("user", name, "messages") for name in ("alice", "bert"))


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_for_daemon(str(tmp_path / "policyd.db"))
    yield connection
    connection.close()


def charge(counters: Counters, key: CounterKey) -> None:
    counters.charge(key, counters.begin(key), (HOUR,), 1, NOW)


def test_a_part_of_a_backlog_in_a_former_database_says_nothing_of_a_new_one(
    connection: sqlite3.Connection,
) -> None:
    """It was written into the one that is damaged now; with the new one well, a count must be what its table says."""
    counters = Counters()
    charge(counters, ALICE)
    whole = counters.set_aside()
    counters.replay(connection, counters.decided())
    counters.part_written()
    counters.put_back(whole)
    counters.keep_only({BERT})
    charge(counters, BERT)
    counters.write(connection, counters.all_rows(NOW))
    counters.written_anew()
    counters.all_written()
    assert ALICE not in counters
    counters.read(connection, [ALICE])
    alice, bert = counters.of(ALICE), counters.of(BERT)
    assert alice is not None
    assert bert is not None
    assert (alice.used(HOUR, NOW), bert.used(HOUR, NOW)) == (0, 1)
    assert counters.changed() == set()

"""The steering data as the loop's thread reads them: as of now, or the last that could be read."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from policyd.steering import Steering
from policyd.store.connect import open_for_daemon
from policyd.store.steering_reader import SteeringReader


def banned(steering: Steering) -> set[str]:
    return {entry.value for entry in steering.bans}


def fresh(path: Path, *users: str) -> sqlite3.Connection:
    connection = open_for_daemon(str(path))
    for user in users:
        connection.execute("INSERT INTO ban VALUES ('user', ?, '', 'root', 0, 0)", (user,))
    return connection


def test_what_is_in_the_database_now(tmp_path: Path) -> None:
    """Each look sees what was committed before it, also while somebody writes."""
    daemon = fresh(tmp_path / "p.db", "a")
    reader = SteeringReader(str(tmp_path / "p.db"), Steering())
    assert banned(reader.steering()) == {"a"}
    daemon.execute("DELETE FROM ban")
    daemon.execute("BEGIN IMMEDIATE")
    daemon.execute("INSERT INTO ban VALUES ('user', 'b', '', 'root', 0, 0)")
    assert banned(reader.steering()) == set()
    daemon.execute("COMMIT")
    assert banned(reader.steering()) == {"b"}
    reader.close()
    daemon.close()


def test_what_is_known_holds_while_nothing_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once, and again after it was well."""
    daemon = fresh(tmp_path / "p.db", "a")
    reader = SteeringReader(str(tmp_path / "p.db"), Steering())
    for _ in range(2):
        daemon.execute("INSERT INTO allow VALUES ('sender', 'x', '', 'root', 0, 0)")
        daemon.execute("ALTER TABLE allow RENAME TO away")
        caplog.clear()
        assert banned(reader.steering()) == {"a"}
        assert banned(reader.steering()) == {"a"}
        assert len(caplog.records) == 1
        daemon.execute("ALTER TABLE away RENAME TO allow")
        assert banned(reader.steering()) == {"a"}
        daemon.execute("DELETE FROM allow")
        reader.steering()
    reader.close()
    daemon.close()


def test_a_file_in_the_place_of_the_old_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Read after it was told; one that cannot be read leaves what is known."""
    path = tmp_path / "p.db"
    fresh(path, "a").close()
    reader = SteeringReader(str(path), Steering())
    path.rename(tmp_path / "old.db")
    fresh(path, "b").close()
    reader.reopen()
    assert banned(reader.steering()) == {"b"}
    path.rename(tmp_path / "older.db")
    path.write_text("no database\n" * 999)
    reader.reopen()
    assert banned(reader.steering()) == {"b"}
    assert "what is known holds" in caplog.text
    reader.close()

"""The schema: upgraded equals fresh, a newer one is refused, and nothing is half done."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from policyd.errors import StoreRefused
from policyd.store import migrate
from policyd.store.connect import open_for_admin, open_for_daemon, open_for_reading
from policyd.store.steering_sync import SteeringMirror

NUMBERS = [number for number, _ in migrate.steps()]


def schema(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
    ).fetchall()


def at_version(path: Path, version: int) -> sqlite3.Connection:
    """A database as the policyd of that schema left it."""
    connection = sqlite3.connect(path, isolation_level=None)
    for number, script in migrate.steps():
        if number <= version:
            for statement in migrate.statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
    return connection


def test_the_numbers_have_no_gap() -> None:
    """Each schema file follows the one before."""
    assert list(range(1, len(NUMBERS) + 1)) == NUMBERS
    assert migrate.newest() == NUMBERS[-1]


@pytest.mark.parametrize("version", [0, *NUMBERS])
def test_upgraded_equals_fresh(tmp_path: Path, version: int) -> None:
    """From every schema there ever was."""
    fresh = open_for_daemon(str(tmp_path / "fresh.db"))
    at_version(tmp_path / "old.db", version).close()
    upgraded = open_for_daemon(str(tmp_path / "old.db"))
    try:
        assert schema(upgraded) == schema(fresh)
        assert migrate.version_of(upgraded) == migrate.newest()
    finally:
        fresh.close()
        upgraded.close()
    backups = [entry for entry in os.listdir(tmp_path) if "before-schema" in entry]
    assert bool(backups) == (0 < version < migrate.newest())


def contents(connection: sqlite3.Connection, tables: list[str]) -> dict[str, list[tuple[object, ...]]]:
    return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def test_a_database_in_use_is_upgraded_with_all_that_is_in_it(tmp_path: Path) -> None:
    """From schema 1: every row stays, the daemon's mirror tells of new tables' rows, and the backup is the old one whole."""
    path = tmp_path / "policyd.db"
    old = at_version(path, 1)
    old.executescript(
        """
        INSERT INTO ledger_state VALUES (1, 'boot', 5, 6, 7, 8, 9);
        INSERT INTO counter VALUES ('user', 'a@example.org', 'messages', x'00', 5);
        INSERT INTO ban VALUES ('user', 'a@example.org', 'phished', 'root', 1, 0);
        INSERT INTO allow VALUES ('client', '192.0.2.0/24', '', 'root', 1, 0);
        INSERT INTO user_grant VALUES (7, 'a@example.org', 'bytes', 5, '', 'root', 1, 0);
        INSERT INTO check_mode VALUES ('quota', 'shadow', '', 'root', 1, 0);
        INSERT INTO history VALUES (1, 1, 1, 'root', 'ban', 'a@example.org', '', '');
        """
    )
    tables = [
        name
        for (name,) in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not name.startswith("sqlite_")
    ]
    before, before_schema = contents(old, tables), schema(old)
    old.close()
    upgraded = open_for_daemon(str(path))
    try:
        assert contents(upgraded, tables) == before
        mirror = SteeringMirror(upgraded)
        mirror.load()
        upgraded.execute(
            "INSERT INTO sender_right VALUES ('a@example.org', '@example.net', '', 'root', 1, 0)"
        )
        upgraded.execute("INSERT INTO greylist_allow VALUES ('domain', 'example.net', '', 'root', 1, 0)")
        mirror.refresh()
        assert mirror.steering.may_send("a@example.org", "x@example.net", "example.net", 5)
        assert [entry.value for entry in mirror.steering.greylist_allows] == ["example.net"]
        assert [entry.value for entry in mirror.steering.bans] == ["a@example.org"]
    finally:
        upgraded.close()
    backup = sqlite3.connect(f"{path}.before-schema-{migrate.newest()}")
    try:
        assert migrate.version_of(backup) == 1
        assert schema(backup) == before_schema
        assert contents(backup, tables) == before
    finally:
        backup.close()


def test_every_column_is_commented_or_speaks_for_itself() -> None:
    """Each table of a schema file has a comment above it."""
    for _, script in migrate.steps():
        lines = script.splitlines()
        for number, line in enumerate(lines):
            if line.startswith("CREATE TABLE"):
                assert lines[number - 1].startswith("--"), line


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    """By the daemon, by changes and by reads; the text says what to do."""
    path = tmp_path / "policyd.db"
    connection = open_for_daemon(str(path))
    connection.execute(f"PRAGMA user_version = {migrate.newest() + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="written by a newer policyd"):
        open_for_daemon(str(path))
    for opening in (open_for_admin, open_for_reading):
        with pytest.raises(StoreRefused, match="install that version again"), opening(str(path)):
            pass
    assert path.read_bytes() == before


def test_an_older_schema_is_the_daemon_s_to_upgrade(tmp_path: Path) -> None:
    """policyctl never does."""
    path = tmp_path / "policyd.db"
    sqlite3.connect(path).close()
    path.write_bytes(b"")
    with pytest.raises(StoreRefused, match="start policyd once to upgrade it"), open_for_admin(str(path)):
        pass


def next_schema(monkeypatch: pytest.MonkeyPatch, script: str) -> int:
    """As if a newer policyd had one more schema file; its number."""
    number = migrate.newest() + 1
    known = migrate.steps()
    monkeypatch.setattr(migrate, "steps", lambda: [*known, (number, script)])
    return number


def test_an_upgrade_makes_a_backup_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, of the old schema, and for the same eyes as the database."""
    path = tmp_path / "policyd.db"
    connection = open_for_daemon(str(path))
    connection.execute("INSERT INTO ban VALUES ('user', 'a@example.org', '', 'root', 0, 0)")
    connection.close()
    old = migrate.newest()
    number = next_schema(monkeypatch, "CREATE TABLE extra (id INTEGER PRIMARY KEY);\n")
    mask = os.umask(0o022)
    try:
        open_for_daemon(str(path)).close()
    finally:
        os.umask(mask)
    copy = Path(f"{path}.before-schema-{number}")
    assert stat.S_IMODE(copy.stat().st_mode) & 0o007 == 0
    connection = sqlite3.connect(copy)
    try:
        assert connection.execute("PRAGMA user_version").fetchone() == (old,)
        assert connection.execute("SELECT value FROM ban").fetchall() == [("a@example.org",)]
    finally:
        connection.close()


def test_a_backup_cut_short_before_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it does not pass for one."""
    path = tmp_path / "policyd.db"
    open_for_daemon(str(path)).close()
    number = next_schema(monkeypatch, "CREATE TABLE extra (id INTEGER PRIMARY KEY);\n")
    partial = Path(f"{path}.before-schema-{number}.part")
    partial.write_bytes(b"half")
    open_for_daemon(str(path)).close()
    assert not partial.exists()
    assert Path(f"{path}.before-schema-{number}").stat().st_size > 4096


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema and version stay what they were."""
    path = tmp_path / "policyd.db"
    connection = open_for_daemon(str(path))
    before = schema(connection)
    connection.close()
    next_schema(monkeypatch, "CREATE TABLE extra (id INTEGER PRIMARY KEY);\nCREATE TABLE ban (id INTEGER);\n")
    with pytest.raises(Exception, match="table ban already exists"):
        open_for_daemon(str(path))
    monkeypatch.undo()
    connection = open_for_daemon(str(path))
    try:
        assert schema(connection) == before
    finally:
        connection.close()


KILLED = """
import os, signal, sqlite3, sys
from policyd.store import migrate
from policyd.store.connect import open_for_daemon
known = migrate.steps()
script = "CREATE TABLE extra (id INTEGER PRIMARY KEY);\\n" * 1 + "SELECT kill();\\n"
migrate.steps = lambda: [*known, (migrate_to, script)]
plain = sqlite3.connect
def connecting(*args, **options):
    connection = plain(*args, **options)
    connection.create_function("kill", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return connection
sqlite3.connect = connecting
open_for_daemon(sys.argv[1])
"""


def test_a_kill_in_the_middle_leaves_it_untouched(tmp_path: Path) -> None:
    """The next start finds the old schema, and the backup."""
    path = tmp_path / "policyd.db"
    connection = open_for_daemon(str(path))
    before = schema(connection)
    connection.close()
    script = f"migrate_to = {migrate.newest() + 1}\n" + KILLED
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -signal.SIGKILL
    connection = open_for_daemon(str(path))
    try:
        assert schema(connection) == before
        assert migrate.version_of(connection) == migrate.newest()
    finally:
        connection.close()


def test_statements_keep_triggers_whole() -> None:
    """A trigger's inner semicolons end no statement; comments alone are none."""
    script = (
        "-- about a; and b\nCREATE TABLE a (b INTEGER); -- b; c\nCREATE TRIGGER t AFTER INSERT ON a BEGIN\n"
        "    DELETE FROM a;\n    DELETE FROM a; END;\n"
    )
    found = migrate.statements(script)
    assert len(found) == 2
    assert found[1].startswith("-- b; c") or found[1].startswith("CREATE TRIGGER")
    assert found[1].endswith("END;")

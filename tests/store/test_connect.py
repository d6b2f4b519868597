"""How the database is opened, and what is said when it cannot be."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from policyd.errors import StoreBusy, StoreDamaged, StoreError, StoreRefused
from policyd.store import connect
from policyd.store.connect import open_for_admin, open_for_daemon, open_for_reading, translate


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_the_daemon_s_connection(tmp_path: Path, durability: str, synchronous: int) -> None:
    """WAL, the durability asked for, no checkpoint but by the daemon's own hand, and for few eyes whatever the umask."""
    path = tmp_path / "policyd.db"
    mask = os.umask(0)
    try:
        connection = open_for_daemon(str(path), durability)
    finally:
        os.umask(mask)
    try:
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "synchronous") == synchronous
        assert pragma(connection, "wal_autocheckpoint") == 0
        assert pragma(connection, "auto_vacuum") == 2
    finally:
        connection.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_policyctl_never_makes_a_database(tmp_path: Path) -> None:
    """It says what to do instead."""
    for opening in (open_for_admin, open_for_reading):
        with (
            pytest.raises(StoreRefused, match="start policyd once to make it"),
            opening(str(tmp_path / "no.db")),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_reading_cannot_write(tmp_path: Path) -> None:
    """Not even by mistake."""
    path = str(tmp_path / "policyd.db")
    open_for_daemon(path).close()
    with pytest.raises(StoreError), open_for_reading(path) as connection:
        connection.execute("DELETE FROM ban")


def test_a_change_holds_the_write_lock_from_open_to_close_and_makes_no_checkpoint(tmp_path: Path) -> None:
    """What a commit must not meet."""
    path = tmp_path / "policyd.db"
    daemon = open_for_daemon(str(path))
    try:
        with open_for_admin(str(path)) as connection:
            assert pragma(connection, "wal_autocheckpoint") == 0
            assert pragma(connection, "synchronous") == 2
            with pytest.raises(StoreBusy), connect.locks.write_lock(str(path), 0.0):
                pass
            connection.execute("INSERT INTO ban VALUES ('user', 'a', '', 'root', 0, 0)")
        with connect.locks.write_lock(str(path), 0.0):
            pass
        assert Path(f"{path}-wal").stat().st_size > 0
    finally:
        daemon.close()


@pytest.mark.parametrize("name", ["with space.db", "50%.db", "what?.db", "no#1.db", "%3f.db", "\u00fc.db"])
def test_any_file_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    """Nothing in it is special."""
    path = str(tmp_path / name)
    open_for_daemon(path).close()
    with open_for_admin(path) as connection:
        connection.execute("INSERT INTO ban VALUES ('user', 'a', '', 'root', 0, 0)")
    with open_for_reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM ban").fetchone() == (1,)
    assert {entry.split(".db")[0] for entry in os.listdir(tmp_path)} == {name.removesuffix(".db")}


def test_as_root_files_are_made_as_the_owner_s(tmp_path: Path) -> None:
    """A lock file of root's would keep the daemon out. Without root the owner is who runs."""
    path = tmp_path / "policyd.db"
    open_for_daemon(str(path)).close()
    if os.geteuid() == 0:
        tmp_path.chmod(0o777)
        for parent in tmp_path.parents:
            if parent != Path("/") and parent.stat().st_uid == 0 and parent.name.startswith("pytest"):
                parent.chmod(0o711)
        os.chown(tmp_path, 65534, 65534)
        os.chown(path, 65534, 65534)
    owner = path.stat().st_uid
    with open_for_admin(str(path)) as connection:
        assert os.geteuid() == owner
        connection.execute("INSERT INTO ban VALUES ('user', 'a', '', 'root', 0, 0)")
        beside = {entry.name: entry.stat().st_uid for entry in tmp_path.iterdir()}
    assert set(beside.values()) == {owner}
    assert os.geteuid() == os.getuid()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SQLITE_BUSY", StoreBusy),
        ("SQLITE_BUSY_SNAPSHOT", StoreBusy),
        ("SQLITE_FULL", StoreBusy),
        ("SQLITE_IOERR_WRITE", StoreBusy),
        ("SQLITE_CANTOPEN_ISDIR", StoreBusy),
        ("SQLITE_READONLY_DIRECTORY", StoreBusy),
        ("SQLITE_CORRUPT", StoreDamaged),
        ("SQLITE_CORRUPT_INDEX", StoreDamaged),
        ("SQLITE_NOTADB", StoreDamaged),
        ("SQLITE_ERROR", StoreError),
        ("", StoreError),
    ],
)
def test_errors_of_sqlite_in_policyd_s_terms(name: str, kind: type[StoreError]) -> None:
    """Passing trouble is told from damage, and each names the file."""
    error = sqlite3.OperationalError("text")
    error.sqlite_errorname = name
    translated = translate(error, "/x.db")
    assert type(translated) is kind
    assert "/x.db" in str(translated)
    assert "text" in str(translated)


def test_damage_is_told(tmp_path: Path) -> None:
    """By every opening."""
    path = tmp_path / "policyd.db"
    path.write_text("this is no database\n" * 500)
    with pytest.raises(StoreDamaged):
        open_for_daemon(str(path))
    for opening in (open_for_admin, open_for_reading):
        with pytest.raises(StoreDamaged), opening(str(path)):
            pass
    assert path.read_text() == "this is no database\n" * 500

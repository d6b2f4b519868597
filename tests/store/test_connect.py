"""How the database is opened, and what is said when it cannot be."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from policyd.errors import StoreBusy, StoreDamaged, StoreError, StoreRefused
from policyd.store import connect, locks
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


def test_a_symbolic_link_is_no_database(tmp_path: Path) -> None:
    """Neither the daemon nor policyctl takes it, and nothing is made beside it or where it leads."""
    there = tmp_path / "there"
    there.mkdir()
    open_for_daemon(str(there / "policyd.db")).close()
    before = sorted(there.iterdir())
    link = tmp_path / "policyd.db"
    for target in (there / "policyd.db", there / "nothing"):
        link.symlink_to(target)
        for opening in (open_for_admin, open_for_reading):
            with pytest.raises(StoreRefused, match=r"is a symbolic link.*name the file itself"):
                opening(str(link)).__enter__()
        with pytest.raises(StoreRefused, match="is a symbolic link"):
            open_for_daemon(str(link))
        link.unlink()
    assert sorted(there.iterdir()) == before
    assert list(tmp_path.iterdir()) == [there]


def test_a_directory_may_be_a_symbolic_link(tmp_path: Path) -> None:
    """As /var/lib/NAME is with systemd's DynamicUser."""
    (tmp_path / "private").mkdir()
    (tmp_path / "policyd").symlink_to("private")
    path = str(tmp_path / "policyd" / "policyd.db")
    open_for_daemon(path).close()
    with open_for_admin(path) as connection:
        connection.execute("INSERT INTO ban VALUES ('user', 'a', '', 'root', 0, 0)")


class Identity:
    """Who the process is, as the system would keep it; root at first, with a group of root's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owners: dict[str, int]) -> None:
        self.user, self.group, self.groups = 0, 0, [0, 4]
        genuine = os.lstat

        def status(path: str) -> os.stat_result:
            found = list(genuine(path))
            found[stat.ST_UID] = found[stat.ST_GID] = owners[os.fspath(path)]
            return os.stat_result(found)

        for name, replacement in {
            "lstat": status,
            "stat": status,
            "geteuid": lambda: self.user,
            "getegid": lambda: self.group,
            "getgroups": lambda: list(self.groups),
            "seteuid": lambda user: setattr(self, "user", user),
            "setegid": lambda group: setattr(self, "group", group),
            "setgroups": lambda groups: setattr(self, "groups", list(groups)),
        }.items():
            monkeypatch.setattr(connect.os, name, replacement)

    @property
    def now(self) -> tuple[int, int, list[int]]:
        return self.user, self.group, self.groups


@pytest.mark.parametrize(
    ("file", "directory", "acts_as"),
    [
        (1000, 1000, (1000, 1000, [])),
        (0, 1000, (1000, 1000, [])),
        (1000, 0, (1000, 1000, [])),
        (0, 0, (0, 0, [0, 4])),
    ],
)
def test_root_acts_as_whoever_could_have_put_the_file_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: int,
    directory: int,
    acts_as: tuple[int, int, list[int]],
) -> None:
    """A file of root's in a directory of somebody else's gives that one nothing of root's, groups included."""
    path = tmp_path / "policyd.db"
    path.touch()
    with monkeypatch.context() as patch:
        identity = Identity(patch, {str(path): file, str(tmp_path): directory})
        with connect.as_owner(str(path)):
            assert identity.now == acts_as
        assert identity.now == (0, 0, [0, 4])


def test_root_without_the_right_to_be_somebody_else_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without CAP_SETGID, say: one line, and nothing was done."""
    path = tmp_path / "policyd.db"
    path.touch()

    def refused(groups: list[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        identity = Identity(patch, {str(path): 1000})
        patch.setattr(connect.os, "setgroups", refused)
        with (
            pytest.raises(StoreRefused, match="cannot act as its owner, uid 1000"),
            connect.as_owner(str(path)),
        ):
            raise AssertionError("acted as root")
        assert identity.now == (0, 0, [0, 4])


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


def test_what_cannot_be_opened_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt on a full disk is made twice a second, and the next one is to find what this one found."""

    def no_room(connection: sqlite3.Connection, path: str) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    path = tmp_path / "policyd.db"
    monkeypatch.setattr(connect.migrate, "migrate", no_room)
    monkeypatch.setattr(connect, "_size", lambda path: 0)
    for opening in (open_for_daemon, connect.open_as_it_is):
        with pytest.raises(StoreError):
            opening(str(path))
        assert not list(tmp_path.glob("policyd.db*[!k]"))
        assert not path.exists()


def test_what_cannot_be_written_is_read_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a write-ahead log; nobody may write meanwhile, and everybody afterwards."""
    path = str(tmp_path / "policyd.db")
    daemon = open_for_daemon(path)
    daemon.execute("INSERT INTO ban VALUES ('user', 'a', '', 'root', 0, 0)")
    for _ in range(2):
        before = sorted(file.name for file in tmp_path.iterdir() if "lock" not in file.name)
        with monkeypatch.context() as patched:
            patched.setattr(connect, "writable", lambda path: False)
            reading = connect.open_as_it_is(path)
            assert reading.execute("SELECT value FROM ban").fetchall() == [("a",)]
            with pytest.raises(StoreBusy), connect.locks.write_lock(path, 0.0):
                pass
            reading.close()
        assert sorted(file.name for file in tmp_path.iterdir() if "lock" not in file.name) == before
        with open_for_admin(path) as connection:
            connection.execute("UPDATE ban SET reason = reason || 'x'")
        # The second time there is no log.
        daemon.close()
    assert not os.path.exists(path + "-wal")


def test_a_file_that_may_not_be_written_is_trouble_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon starts in memory then, and SQLite has not opened it for reading alone."""
    path = str(tmp_path / "policyd.db")
    open_for_daemon(path).close()
    monkeypatch.setattr(connect, "writable", lambda path: False)
    with pytest.raises(StoreBusy, match="cannot be written: check its rights"):
        open_for_daemon(path)


def test_a_change_waits_until_the_daemon_has_the_new_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment before a replaced database is noticed a ban would go into a log that is about to be moved aside."""
    path = str(tmp_path / "policyd.db")
    open_for_daemon(path).close()
    daemon = locks.DaemonLock(path)
    try:
        locks.tell_open(path, (1, 2))
        monkeypatch.setattr(connect, "REPLACED_WAIT", 0.0)
        with (
            pytest.raises(StoreBusy, match=r"was replaced while policyd runs.*try again in a moment"),
            open_for_admin(path),
        ):
            pass
        monkeypatch.setattr(connect, "REPLACED_WAIT", 60.0)
        status = os.stat(path)
        naps = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            # The daemon needs this lock to move the log: it must be free meanwhile.
            with locks.write_lock(path, 0.0):
                locks.tell_open(path, (status.st_dev, status.st_ino))

        monkeypatch.setattr(connect.time, "sleep", nap)
        with open_for_admin(path) as connection:
            connection.execute("INSERT INTO ban VALUES ('user', 'x@example.org', '', '', 1, 0)")
        assert naps == [0.05]
        locks.tell_open(path, None)
        with open_for_admin(path):
            pass
        assert not naps[1:]
        locks.tell_open(path, (1, 2))
    finally:
        daemon.release()
    # What a daemon that is gone had open says nothing.
    with open_for_admin(path):
        pass

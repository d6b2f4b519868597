"""Whole copies of the database: made while the daemon runs, put in its place while it does not, and made smaller."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from urllib.parse import quote

from policyd.errors import StoreDamaged, StoreRefused, UserError
from policyd.store import connect, contents, locks, migrate
from policyd.units import format_size


def backup(path: str, target: str) -> int:
    """Copy the database, as of one moment, to ``target``, checked and on disk; its size in octets. Overwrites nothing.

    :raises UserError: there is something at ``target``, or it cannot be written.
    :raises StoreError: the database cannot be read, or the copy is not sound.
    """
    if os.path.lexists(target):
        raise UserError(f"{target} exists, and a backup overwrites nothing; choose another name")
    partial = f"{target}.part"
    # Looked up before the owner of the database reads it, who may not see the target's directory.
    free = _free(target)
    with _new_file(partial) as copy:
        with connect.open_for_reading(path) as source:
            pages, size = (
                source.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
            )
            _need_room(target, pages * size, free)
            try:
                source.backup(copy)
            except sqlite3.Error as error:
                raise UserError(f"{target}: {error}; the backup is not made") from None
        copy.close()
        with _opened_alone(partial) as written:
            _must_be_sound(written, partial, quick=True)
        _sync(partial)
        try:
            _move_without_overwriting(partial, target)
        except OSError as error:
            raise UserError(f"{target}: {error.strerror}; the backup is not made") from None
    _sync(os.path.dirname(os.path.abspath(target)))
    return os.stat(target).st_size


def restore(source: str, path: str) -> str:
    """Put the copy ``source`` in the place of the database; where the old one was put, ``""`` if there was none.

    :raises UserError: there is no such copy.
    :raises StoreRefused: the daemon runs, or the copy is of a newer policyd.
    :raises StoreDamaged: the copy is not sound. Nothing is changed then.
    """
    if not os.path.isfile(source):
        raise UserError(f"{source}: there is no such file")
    if os.path.exists(path) and os.path.samefile(source, path):
        raise UserError(f"{source} is the database in use; name a backup")
    target = f"{path}.restoring"
    with _opened_alone(source) as copy:
        _must_be_ours(copy, source)
        _must_be_sound(copy, source)
        pages, size = (copy.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        with _as_owner(path), _alone(path), locks.write_lock(path):
            _need_room(path, pages * size, _free(path))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
            with _new_file(target) as new:
                try:
                    copy.backup(new)
                except sqlite3.Error as error:
                    raise UserError(f"{target}: {error}; nothing is restored") from None
                new.close()
                _sync(target)
                aside = _put_aside(path)
                if aside:
                    os.chmod(target, os.stat(aside).st_mode & 0o777)
                else:
                    os.chmod(target, 0o640)
                os.replace(target, path)
            _sync(os.path.dirname(os.path.abspath(path)))
    return aside


def compact(path: str) -> tuple[int, int]:
    """Rewrite the database without its free pages: its size before and after, in octets.

    :raises StoreRefused: the daemon runs.
    """
    with connect.as_owner(path), _alone(path), connect.open_for_admin(path) as connection:
        before = os.stat(path).st_size
        # The new database goes through a temporary file and the WAL.
        _need_room(path, 2 * before, _free(path))
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return before, os.stat(path).st_size


@contextlib.contextmanager
def _as_owner(path: str) -> Iterator[None]:
    with connect.as_owner(path if os.path.lexists(path) else os.path.dirname(os.path.realpath(path))):
        yield


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    try:
        lock = locks.DaemonLock(path)
    except StoreRefused:
        if locks.daemon_running(path):
            raise StoreRefused(f"policyd runs on {path}; stop it first (systemctl stop policyd)") from None
        raise
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[sqlite3.Connection]:
    """An empty database in a file that was not there; the name is gone afterwards, unless the file was moved."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise UserError(f"{path} is left from a copy that did not end; remove it first") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    inode = os.stat(path).st_ino
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        # Without a journal nothing but this file is ever opened, whoever this process is by then.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield connection
    finally:
        connection.close()
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == inode:
                os.unlink(path)


@contextlib.contextmanager
def _opened_alone(path: str) -> Iterator[sqlite3.Connection]:
    """A copy that nobody else uses, to read; with its WAL if it has one."""
    has_wal = os.path.exists(f"{path}-wal") and os.stat(f"{path}-wal").st_size > 0
    flags = "mode=rw" if has_wal else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(
            f"file:{quote(os.path.abspath(path))}?{flags}", uri=True, isolation_level=None
        )
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise connect.translate(error, path) from None


def _must_be_ours(connection: sqlite3.Connection, path: str) -> None:
    version = migrate.version_of(connection)
    if version > migrate.newest():
        migrate.check_version(connection, path)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not version or not {"ledger_state", "counter", "decision_partition"} <= tables:
        raise StoreRefused(f"{path} is no database of policyd; nothing is changed")


def _must_be_sound(connection: sqlite3.Connection, path: str, quick: bool = False) -> None:
    found = contents.problems(connection, quick)
    if found:
        raise StoreDamaged(f"{path} is damaged and not used: {found[0]}")


def _put_aside(path: str) -> str:
    """Give the database a second name, under which it stays; the first is then free to be replaced."""
    if not os.path.exists(path):
        return ""
    aside = f"{path}.before-restore-{time.strftime('%Y%m%d-%H%M%S')}"
    # A WAL that stayed behind would be played into the database that comes in its place.
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
    try:
        os.link(path, aside)
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}-wal", f"{aside}-wal")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}-shm")
    except OSError as error:
        raise UserError(f"{aside}: {error.strerror}; nothing is restored") from None
    return aside


def _move_without_overwriting(path: str, target: str) -> None:
    try:
        os.link(path, target)
    except PermissionError:
        # A file system without hard links, such as vfat.
        if os.path.lexists(target):
            raise
        os.rename(path, target)


def _free(path: str) -> int:
    """Octets free on the file system that ``path`` is to lie on."""
    try:
        disk = os.statvfs(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return disk.f_bavail * disk.f_frsize


def _need_room(path: str, octets: int, free: int) -> None:
    if free < octets:
        raise UserError(
            f"{path}: {format_size(octets)} are needed there and {format_size(free)} free; nothing is done"
        )


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

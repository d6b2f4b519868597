"""How the database is opened: by the daemon, by policyctl to change it, and to read it.

Only the daemon creates, upgrades and checkpoints. ``policyctl`` never creates a database, and as root it works as the owner of
the file, so that no file is left behind that the daemon cannot open.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from typing import ClassVar, TypeVar

from policyd.errors import StoreBusy, StoreDamaged, StoreError, StoreRefused
from policyd.store import locks, migrate

#: How long the daemon waits for somebody else's transaction before it goes on in memory, ms.
DAEMON_BUSY = 250
ADMIN_BUSY = 5_000
#: How long policyctl waits for the daemon to open a file that was put in the database's place, s.
REPLACED_WAIT = 5.0
#: Size to which the WAL file is cut after a checkpoint, octets.
WAL_LIMIT = 64 * 1024 * 1024
#: Octets free on a file system that is called full.
NO_ROOM = 64 * 1024

_BUSY = {
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_PERM",
}
# The file is shorter than it says it is: cut off, or emptied under the daemon's hands.
_SHORTER = {"SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS"}
_A_LINK = "{} is a symbolic link, with locks of its own beside it; name the file itself in [store] url"
_DAMAGED = {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT"}


def translate(error: sqlite3.Error, path: str) -> StoreError:
    """The error of SQLite in policyd's terms."""
    name = getattr(error, "sqlite_errorname", "") or ""
    family = "_".join(name.split("_")[:2])
    if family in _DAMAGED or name in _SHORTER or "malformed" in str(error):
        return StoreDamaged(f"{path} is damaged: {error}")
    if family in _BUSY:
        holder = ": another program writes to it ('fuser -v' shows which)" if family == "SQLITE_BUSY" else ""
        return StoreBusy(f"{path}: {error}{holder or _cause(path)}")
    return StoreError(f"{path}: {error}")


def open_for_daemon(path: str, durability: str = "full") -> sqlite3.Connection:
    """The one writing connection, made and upgraded where needed.

    :raises StoreError: it cannot be opened; :class:`StoreDamaged` and :class:`StoreRefused` say why.
    """
    if os.path.islink(path):
        raise StoreRefused(_A_LINK.format(path))
    try:
        # An empty file is what a start leaves that was cut short here.
        fresh = not os.path.exists(path) or os.stat(path).st_size == 0
        made = not os.path.exists(path)
        if fresh:
            # Owner and group only, whatever the umask: it holds who writes to whom.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640))
    except OSError as error:
        raise StoreRefused(
            f"{path}: {error.strerror}; check [store] url and the rights of its directory"
        ) from None
    if not writable(path):
        # SQLite would open it; and what it opens for reading alone stays so for every later connection of this process.
        raise StoreBusy(f"{path} cannot be written{_cause(path) or ': check its rights'}")
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=512
        )
    except sqlite3.Error as error:
        raise StoreRefused(f"{path}: {error}; check [store] url and the rights of its directory") from None
    try:
        connection.execute(f"PRAGMA busy_timeout = {DAEMON_BUSY}")
        if fresh:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreRefused(
                f"{path}: this file system cannot hold a database in WAL mode; use a local disk"
            )
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
        connection.execute("PRAGMA cache_size = -24000")
        connection.execute("PRAGMA temp_store = MEMORY")
        migrate.migrate(connection, path)
        for table in ("ledger_state", "change", "decision_partition"):
            connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()  # noqa: S608, names from the code
    except sqlite3.Error as error:
        connection.close()
        if made and not _size(path):
            # Nothing of it: the next attempt finds what this one found.
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + suffix)
        raise translate(error, path) from error
    except BaseException:
        connection.close()
        raise
    return connection


def open_as_it_is(path: str) -> sqlite3.Connection:
    """A connection for a daemon that cannot write at the moment; it reads what is there.

    :raises StoreError: it cannot be read, or is of another schema.
    """
    try:
        if writable(path):
            # On a full disk this fails where the file beside the WAL would have to be made first.
            with contextlib.suppress(sqlite3.Error):
                return _checked(_connection(path, "mode=ro"), path)
        with contextlib.ExitStack() as guard:
            # Where no lock can be made, policyctl cannot make one either.
            with contextlib.suppress(StoreRefused):
                guard.enter_context(locks.write_lock(path, 1.0))
            connection = _untouched(path)
            connection.guard = guard.pop_all()
            return connection
    except sqlite3.Error as error:
        raise translate(error, path) from error


def writable(path: str) -> bool:
    """Whether the file may be written, by its rights and its file system's."""
    return os.access(path, os.W_OK, effective_ids=True)


class _Untouched(sqlite3.Connection):
    """Reads a database and changes nothing beside it, not even a lock of SQLite's: so nobody may write to it meanwhile."""

    guard = contextlib.ExitStack()
    #: See :meth:`close`.
    _kept: ClassVar[list[sqlite3.Connection]] = []
    _locks_at_stake = False

    def close(self) -> None:
        """Let those in who want to write."""
        if self._locks_at_stake:
            # When a process closes a file it loses all its locks on it, those of its other connections too (fcntl(2)).
            self._kept.append(self)
        else:
            super().close()
        self.guard.close()


def _untouched(path: str) -> _Untouched:
    """
    :raises sqlite3.Error: it cannot be read.
    """
    if _size(path + "-wal"):
        # The index of the WAL, for which there is no room on disk, is kept in memory by who has the file for himself.
        connection = _connection(path, "mode=ro&vfs=unix-none", _Untouched)
        connection._locks_at_stake = True
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
    else:
        connection = _connection(path, "mode=ro&immutable=1", _Untouched)
    return _checked(connection, path)


_C = TypeVar("_C", bound=sqlite3.Connection)


def _connection(path: str, how: str, factory: type[_C] = sqlite3.Connection) -> _C:  # type: ignore[assignment]
    uri = f"file:{quoted(os.path.abspath(path))}?{how}"
    return sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=DAEMON_BUSY / 1000,
        factory=factory,
    )


def _checked(connection: _C, path: str) -> _C:
    try:
        migrate.check_version(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def open_whatever_it_is(path: str) -> sqlite3.Connection:
    """A connection to a file that may be damaged, or of another schema; it stays as it is.

    :raises sqlite3.Error: nothing can be read of it.
    """
    connection: sqlite3.Connection = _connection(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        connection.close()
        if not _nothing_can_be_made(error) or _size(path + "-wal"):
            raise
        connection = _connection(path, "mode=ro&immutable=1")
    return connection


def open_nowhere() -> sqlite3.Connection:
    """An empty database in memory, for a daemon that cannot even read at the moment."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate.migrate(connection, ":memory:")
    return connection


@contextlib.contextmanager
def as_owner(path: str) -> Iterator[None]:
    """As root, act as the owner of the database, without root's groups; otherwise as who we are.

    Whoever may write in its directory must not get root to make or change files elsewhere: nothing there is followed, and
    a file of root's in somebody else's directory is that one's concern.
    :raises StoreRefused: there is no database, or a symbolic link in its place.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise StoreRefused(
            f"there is no database at {path}; start policyd once to make it, or name its configuration with --config"
        ) from None
    except OSError as error:
        raise StoreRefused(
            f"{path}: {error.strerror}; run policyctl as root or as the owner of the file"
        ) from None
    if stat.S_ISLNK(status.st_mode):
        raise StoreRefused(_A_LINK.format(path))
    if os.geteuid() == 0 and status.st_uid == 0:
        status = os.stat(os.path.dirname(os.path.abspath(path)))
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        try:
            os.setgroups([])
            os.setegid(status.st_gid)
            os.seteuid(status.st_uid)
        except OSError as error:
            raise StoreRefused(
                f"{path}: cannot act as its owner, uid {status.st_uid}: {error.strerror}; run policyctl as that user"
            ) from None
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        # Without the right to change them they are what they were.
        if os.getgroups() != groups:
            os.setgroups(groups)


@contextlib.contextmanager
def open_for_admin(path: str) -> Iterator[sqlite3.Connection]:
    """A connection for one short change, under the write lock from open to close.

    :raises StoreError: there is no database, it is locked, of another schema, or not ours to change.
    """
    with as_owner(path), _write_lock(path), _opened(path) as connection:
        connection.execute(f"PRAGMA busy_timeout = {ADMIN_BUSY}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA synchronous = FULL")
        yield connection


@contextlib.contextmanager
def _write_lock(path: str) -> Iterator[None]:
    if _read_only(path):
        raise StoreBusy(f"{path}{_cause(path)}; nothing can be changed until it is mounted writable")
    until = time.monotonic() + REPLACED_WAIT
    while True:
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(locks.write_lock(path))
            except StoreBusy:
                # A daemon that was started on a full disk holds it until there is room.
                if cause := _cause(path):
                    raise StoreBusy(f"{path}{cause}; make room there, then try again") from None
                raise
            if not locks.is_open_elsewhere(path):
                yield
                return
        # The daemon moves the write-ahead log of the former file aside, and what we wrote now would go with it.
        if time.monotonic() >= until:
            raise StoreBusy(
                f"{path} was replaced while policyd runs, which has not opened it yet; try again in a moment"
            )
        time.sleep(0.05)


@contextlib.contextmanager
def open_for_reading(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that only reads; also where nothing can be written at the moment.

    :raises StoreError: there is no database, or it is of another schema.
    """
    with as_owner(path), _opened(path, to_write=False) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        yield connection


@contextlib.contextmanager
def _opened(path: str, to_write: bool = True) -> Iterator[sqlite3.Connection]:
    read_only = _read_only(path)
    if not os.access(path, os.R_OK if read_only else os.R_OK | os.W_OK, effective_ids=True):
        what = (
            "it belongs to another user than its directory; give it to that user with chown"
            if os.getuid() == 0
            else "run policyctl as root or as the owner of the file"
        )
        raise StoreRefused(f"{path}: permission denied; {what}")
    try:
        connection = _untouched(path) if read_only else _for_policyctl(path, to_write)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translate(error, path) from error


def _for_policyctl(path: str, to_write: bool) -> sqlite3.Connection:
    uri = f"file:{quoted(os.path.abspath(path))}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=ADMIN_BUSY / 1000)
    try:
        return _checked(connection, path)
    except sqlite3.Error as error:
        if to_write or not _nothing_can_be_made(error):
            raise
    return _untouched(path)


def _nothing_can_be_made(error: sqlite3.Error) -> bool:
    """Whether the files beside the database are missing and cannot be made: the disk is full, the directory closed."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR_SHM", "SQLITE_READONLY"))


def _read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _cause(path: str) -> str:
    """What the file system says about an error of SQLite's, which itself speaks of input and output."""
    try:
        status = os.statvfs(os.path.dirname(os.path.abspath(path)))
    except OSError:
        return ""
    if status.f_flag & os.ST_RDONLY:
        return ": its file system is mounted read-only"
    if status.f_bavail * status.f_frsize < NO_ROOM:
        return ": its file system is full"
    return ""


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def quoted(path: str) -> str:
    """``path`` as it stands in a file: URI."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")

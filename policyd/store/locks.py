"""The two advisory locks beside the database: one daemon, and one change from outside or checkpoint at a time.

``<db>.daemon-lock`` is held by the daemon for its life. ``<db>.write-lock`` is held by ``policyctl`` around each change
and by the daemon around each checkpoint: SQLite before 3.51.3 can corrupt a WAL when a commit of one connection meets
a checkpoint of another. The kernel drops a lock with the process that holds it, so there is nothing to clean up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from policyd.errors import StoreBusy, StoreRefused


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreRefused(
                f"{path} is a symbolic link, which policyd never makes; look who did, and remove it"
            ) from None
        if error.errno in (errno.EROFS, errno.ENOSPC):
            # A lock that is there can be held without writing; without one there is nobody to keep out.
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            raise StoreRefused(
                f"{path}: {error.strerror}; make room on that file system, or mount it writable"
            ) from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            directory = os.path.dirname(os.path.abspath(path))
            raise StoreRefused(
                f"there is no directory {directory} for the database; make it, owned by policyd's user, or correct [store] url"
            ) from None
        raise StoreRefused(
            f"{path}: {error.strerror}; run it as the user that owns the database, or as root"
        ) from None


class DaemonLock:
    """Held for as long as the daemon lives."""

    def __init__(self, database: str) -> None:
        """
        :raises StoreRefused: another daemon holds it, or it cannot be had.
        """
        if os.path.isdir(database):
            raise StoreRefused(f"{database} is a directory; name a file in it in [store] url")
        self._fd = _open(f"{database}.daemon-lock")
        # Who only asks whether a daemon runs (daemon_running) holds the lock too, for a moment.
        for tries_left in range(4, -1, -1):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if tries_left:
                    time.sleep(0.02)
        os.close(self._fd)
        raise StoreRefused(
            f"{database} is in use by another policyd; stop it first, or give this one a [store] url of its own"
        )

    def release(self) -> None:
        """Let the next daemon in."""
        os.close(self._fd)


def daemon_running(database: str) -> bool | None:
    """Whether a daemon has the database open; ``None`` when we may not look."""
    try:
        # A pipe in its place must not make us wait.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(f"{database}.daemon-lock", flags)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def tell_open(database: str, file: tuple[int, int] | None) -> None:
    """Write into the daemon's lock file which file (device, inode) it has open under the database's name.

    Where that cannot be written, or is ``None``, nothing is said, and nobody is kept waiting by it.
    """
    with contextlib.suppress(OSError):
        fd = os.open(f"{database}.daemon-lock", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d:%d\n" % file if file is not None else b"", 0)
        finally:
            os.close(fd)


def is_open_elsewhere(database: str) -> bool:
    """Whether a daemon runs that has another file open than the one at the database's name: it was replaced just now."""
    if not daemon_running(database):
        return False
    try:
        fd = os.open(f"{database}.daemon-lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            said = os.read(fd, 100)
        finally:
            os.close(fd)
        status = os.stat(database)
    except OSError:
        return False
    return bool(said.endswith(b"\n")) and said != b"%d:%d\n" % (status.st_dev, status.st_ino)


@contextlib.contextmanager
def write_lock(database: str, timeout: float = 5.0) -> Iterator[None]:
    """Hold the lock for a change or a checkpoint; with ``timeout`` 0 only if it is free at once.

    :raises StoreBusy: somebody else held it for the whole ``timeout`` (s).
    """
    fd = _open(f"{database}.write-lock")
    try:
        until = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise StoreBusy(
                        f"{database} is being changed by another policyctl; try again in a moment"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)

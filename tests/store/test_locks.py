"""The two locks beside the database: a second daemon is refused, a change from outside and a checkpoint never meet."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from policyd.errors import StoreBusy, StoreRefused
from policyd.store import locks
from policyd.store.locks import DaemonLock, daemon_running, write_lock


def holder(call: str) -> subprocess.Popen[bytes]:
    """Another process that holds a lock until it is killed."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys\nfrom policyd.store.locks import *\n{call}\nprint('held', flush=True)\nsys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_second_daemon_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    """One line; and the first goes on."""
    database = str(tmp_path / "policyd.db")
    first = DaemonLock(database)
    with pytest.raises(StoreRefused, match="in use by another policyd; stop it first"):
        DaemonLock(database)
    assert daemon_running(database)
    first.release()
    assert not daemon_running(database)
    DaemonLock(database).release()


def test_a_place_where_no_database_can_be_is_named(tmp_path: Path) -> None:
    """A missing directory, and a directory in the place of the file: what is wrong is said, and nothing is made."""
    with pytest.raises(
        StoreRefused, match=rf"there is no directory {tmp_path}/none for the database; make it"
    ):
        DaemonLock(f"{tmp_path}/none/policyd.db")
    with (
        pytest.raises(StoreRefused, match="there is no directory"),
        write_lock(f"{tmp_path}/none/policyd.db"),
    ):
        pass
    (tmp_path / "data").mkdir()
    with pytest.raises(StoreRefused, match="data is a directory; name a file in it"):
        DaemonLock(f"{tmp_path}/data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_killed_daemon_leaves_no_lock(tmp_path: Path) -> None:
    """The kernel drops it."""
    database = str(tmp_path / "policyd.db")
    process = holder(f"lock = DaemonLock({database!r})")
    assert daemon_running(database)
    end(process)
    assert not daemon_running(database)
    DaemonLock(database).release()


def test_asking_whether_a_daemon_runs_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``policyctl status`` holds the lock for a moment; the daemon that starts just then tries once more."""
    database = str(tmp_path / "policyd.db")
    asking = os.open(f"{database}.daemon-lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: fcntl.flock(asking, fcntl.LOCK_UN))
    DaemonLock(database).release()
    os.close(asking)


def test_without_a_database_no_daemon_runs(tmp_path: Path) -> None:
    """And asking makes no file."""
    assert not daemon_running(str(tmp_path / "policyd.db"))
    assert list(tmp_path.iterdir()) == []


def test_where_we_may_not_look_it_is_unknown_whether_a_daemon_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is better than a wrong one. Root may look everywhere, so the system's refusal is put in its place."""

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    DaemonLock(str(tmp_path / "policyd.db")).release()
    monkeypatch.setattr(locks.os, "open", refused)
    assert daemon_running(str(tmp_path / "policyd.db")) is None


def test_a_pipe_in_the_place_of_the_lock_makes_nobody_wait(tmp_path: Path) -> None:
    """Who owns the directory could put one there, and root asks."""
    os.mkfifo(tmp_path / "policyd.db.daemon-lock")
    assert daemon_running(str(tmp_path / "policyd.db")) is False


def test_no_lock_follows_a_symbolic_link(tmp_path: Path) -> None:
    """Whoever owns the directory would have root make a file anywhere."""
    database, elsewhere = str(tmp_path / "policyd.db"), tmp_path / "elsewhere"
    for name in ("daemon-lock", "write-lock"):
        os.symlink(elsewhere, f"{database}.{name}")
    with pytest.raises(StoreRefused, match=r"daemon-lock is a symbolic link.*remove it"):
        DaemonLock(database)
    with pytest.raises(StoreRefused, match="write-lock is a symbolic link"), write_lock(database):
        pass
    assert daemon_running(database) is None
    assert not elsewhere.exists()


def test_one_change_at_a_time(tmp_path: Path) -> None:
    """A second one is told to try again; a checkpoint does not wait at all."""
    database = str(tmp_path / "policyd.db")
    process = holder(f"lock = write_lock({database!r}); lock.__enter__()")
    for timeout in (0.0, 0.05):
        with (
            pytest.raises(StoreBusy, match="being changed by another policyctl"),
            write_lock(database, timeout),
        ):
            raise AssertionError("held twice")
    end(process)
    with write_lock(database, 0.0):
        pass
    with write_lock(database, 0.0):
        pass


def test_a_change_that_fails_lets_go(tmp_path: Path) -> None:
    """Whatever leaves the block."""
    database = str(tmp_path / "policyd.db")
    with pytest.raises(KeyError), write_lock(database):
        raise KeyError
    with write_lock(database, 0.0):
        pass

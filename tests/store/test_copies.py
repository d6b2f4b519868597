"""Copies of the database: what the commands rely on, where a crash or a full disk comes in between."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from policyd.errors import StoreDamaged, UserError
from policyd.store import contents, copies, read
from policyd.store.connect import open_for_reading
from tests.sample_database import Sample


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    sample = Sample(tmp_path / "policyd.db")
    sample.ask()
    return sample


def test_a_copy_is_of_one_moment_while_rows_come_in(sample: Sample, tmp_path: Path) -> None:
    """Whatever is committed meanwhile, a copy holds whole commits: the row, its counts and the newest id agree."""
    for turn in range(5):
        sample.ask()
        target = tmp_path / f"copy-{turn}.db"
        copies.backup(sample.path, str(target))
        sample.ask()
        connection = sqlite3.connect(f"file:{target}?immutable=1", uri=True)
        newest = connection.execute("SELECT decision_id FROM ledger_state").fetchone()[0]
        assert read.newest_id(connection) == newest
        connection.close()
    sample.close()


def test_without_room_nothing_is_left_behind(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told before anything is copied."""
    monkeypatch.setattr(copies, "_free", lambda path: 1000)
    with pytest.raises(UserError, match=r"\dKB are needed there and 1KB free"):
        copies.backup(sample.path, str(tmp_path / "copy.db"))
    sample.close()
    assert not list(tmp_path.glob("copy*"))


def test_a_restore_that_is_cut_short_leaves_the_database(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the very last step the old database is in its place, whole; what was left is no obstacle for the next try."""
    copy = tmp_path / "copy.db"
    copies.backup(sample.path, str(copy))
    sample.ask()
    sample.close()

    def cut(source: str, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            copies.restore(str(copy), sample.path)
    with open_for_reading(sample.path) as connection:
        assert read.newest_id(connection) == 2
    Path(f"{sample.path}.restoring").write_text("left by a crash")
    for old in tmp_path.glob("*.before-restore-*"):
        old.unlink()
    copies.restore(str(copy), sample.path)
    with open_for_reading(sample.path) as connection:
        assert read.newest_id(connection) == 1


def test_a_damaged_database_can_be_replaced(sample: Sample, tmp_path: Path) -> None:
    """That is what a backup is for; the damaged file is kept as it was."""
    copy = tmp_path / "copy.db"
    copies.backup(sample.path, str(copy))
    sample.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    sample.close()
    rubbish = b"rubbish " * 5000
    Path(sample.path).write_bytes(rubbish)
    with pytest.raises(StoreDamaged), open_for_reading(sample.path):
        pass
    aside = copies.restore(str(copy), sample.path)
    assert Path(aside).read_bytes() == rubbish
    with open_for_reading(sample.path) as connection:
        assert contents.problems(connection) == []

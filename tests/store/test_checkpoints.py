"""The write-ahead log is copied before it grows long, and no more often than it fills; never while policyctl writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from policyd.store import checkpoints as checkpoints_module
from policyd.store import locks
from policyd.store.checkpoints import Checkpoints
from tests.sample_database import Sample


class Time:
    """Goes by when it is told to."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(checkpoints_module, "time", SimpleNamespace(monotonic=time.monotonic))
    return time


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sample]:
    sample = Sample(tmp_path / "policyd.db")
    yield sample
    sample.close()


@pytest.fixture
def checkpoints(sample: Sample, time: Time, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    """A million octets are enough, and the log is empty."""
    monkeypatch.setattr(checkpoints_module, "ENOUGH", 1_000_000)
    checkpoints = Checkpoints(sample.path)
    checkpoints.copy(sample.connection, wait=True)
    return checkpoints


def write(sample: Sample, octets: int) -> None:
    """So much comes, at least."""
    with sample.connection:
        sample.connection.execute("BEGIN")
        sample.connection.execute("CREATE TABLE IF NOT EXISTS filler (what BLOB)")
        sample.connection.execute("DELETE FROM filler")
        sample.connection.execute("INSERT INTO filler VALUES (randomblob(?))", (octets,))
        sample.connection.execute("COMMIT")


def copied(sample: Sample, checkpoints: Checkpoints) -> bool:
    """Whether a step copies."""
    statements: list[str] = []
    sample.connection.set_trace_callback(statements.append)
    checkpoints.step(sample.connection)
    sample.connection.set_trace_callback(None)
    return any("wal_checkpoint" in statement for statement in statements)


def in_file(sample: Sample) -> int:
    """Rows that the database alone, without its log, tells of."""
    connection = sqlite3.connect(f"file:{sample.path}?immutable=1", uri=True)
    try:
        return int(connection.execute("SELECT count(*) FROM decision").fetchone()[0])
    finally:
        connection.close()


def test_it_is_copied_when_it_has_grown(sample: Sample, time: Time, checkpoints: Checkpoints) -> None:
    """Not before; and looked at five times a second at the most."""
    sample.ask()
    assert not copied(sample, checkpoints)
    write(sample, 1_400_000)
    assert not copied(sample, checkpoints), "looked at just now"
    time.now += 0.2
    assert copied(sample, checkpoints)
    assert in_file(sample) == 1


def test_a_long_file_is_not_copied_at_every_look(
    sample: Sample, time: Time, checkpoints: Checkpoints
) -> None:
    """Once it had been long it was copied, and waited for the disk, five times a second however little came."""
    write(sample, 4_000_000)
    time.now += 1
    assert copied(sample, checkpoints)
    number = 0
    for _ in range(100):
        sample.ask()
        time.now += 0.2
        number += copied(sample, checkpoints)
    # A mail takes some 50,000 octets of it, so in these 20 s enough came five times; and it waits for 5 s at the most.
    assert 4 <= number <= 12, number
    assert not checkpoints.behind()


def test_what_comes_as_fast_as_before_is_urgent_when_it_waits(
    sample: Sample, time: Time, checkpoints: Checkpoints
) -> None:
    """Under load upkeep rests long after each step; the file grew to twice its bound meanwhile."""
    time.now += 1
    write(sample, 2_000_000)
    assert copied(sample, checkpoints)
    time.now += 1
    assert not checkpoints.behind()
    time.now += 1
    assert checkpoints.behind()


def test_more_than_expected_is_copied_at_once(sample: Sample, time: Time, checkpoints: Checkpoints) -> None:
    """After a quiet time much comes of a sudden: the file may not grow on."""
    time.now += 1_000
    write(sample, 1_500_000)
    assert copied(sample, checkpoints)
    time.now += 0.2
    assert not checkpoints.behind()
    write(sample, 6_000_000)
    assert checkpoints.behind()
    assert copied(sample, checkpoints)
    assert not checkpoints.behind()


def test_a_change_by_policyctl_keeps_the_checkpoint_away(sample: Sample) -> None:
    """SQLite before 3.51.3 can corrupt a WAL when the two meet."""
    wal = Path(f"{sample.path}-wal")
    sample.ask()
    checkpoints = Checkpoints(sample.path)
    main = Path(sample.path).read_bytes()
    with locks.write_lock(sample.path):
        checkpoints.copy(sample.connection)
        assert Path(sample.path).read_bytes() == main
    checkpoints.copy(sample.connection)
    assert Path(sample.path).read_bytes() != main
    checkpoints.copy(sample.connection, wait=True)
    assert wal.stat().st_size == 0


def test_a_reader_that_holds_the_wal_is_told_of(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and again after it was well."""
    monkeypatch.setattr(checkpoints_module, "ALARM", 1)
    sample.ask()
    checkpoints = Checkpoints(sample.path)
    checkpoints.copy(sample.connection)
    checkpoints.copy(sample.connection)
    assert [record.message[:10] for record in caplog.records] == ["wal-growth"]
    checkpoints.copy(sample.connection, wait=True)
    sample.ask()
    checkpoints.copy(sample.connection)
    assert len(caplog.records) == 2

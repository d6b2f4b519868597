"""Between batches: checkpoints, indexes, retention. Counts and bans are never dropped to make room."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policyd.steering import Entry
from policyd.store import admin, partitions
from policyd.store import checkpoints as checkpoints_module
from policyd.store import upkeep as upkeep_module
from policyd.store.connect import open_for_admin
from policyd.store.upkeep import Keep, Upkeep
from policyd.units import DAY, HOUR
from tests.fakes import Disk
from tests.sample_database import Sample

ROOMY = Keep(90 * DAY, 10**12, 0)
ALICE = "alice@example.org"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step looks; no test waits for the time between two."""
    monkeypatch.setattr(upkeep_module, "LOOK", 0.0)
    monkeypatch.setattr(upkeep_module, "SIZE_LOOK", 0.0)


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sample]:
    sample = Sample(tmp_path / "policyd.db", limits=("3 messages per 1d",))
    yield sample
    sample.close()


def upkeep_of(sample: Sample, keep: Keep = ROOMY) -> Upkeep:
    sample.clock.ago = 0
    return Upkeep(sample.ledger, sample.path, keep)


def run(upkeep: Upkeep, keep: Keep, most: int = 500) -> None:
    """All there is to do."""
    for _ in range(most):
        if not upkeep.step(idle=True, keep=keep):
            return
    raise AssertionError("upkeep finds no end")


def filled(sample: Sample, days: int = 4, each: int = 6) -> None:
    """A partition a day, as the ledger makes them; of each user's six mails three pass. The newest one is open."""
    for day in range(days, 0, -1):
        for _ in range(each):
            sample.ask(ago=day * DAY, sasl_username=f"user{day}")
    for _ in range(each):
        sample.ask()


def verdicts(sample: Sample) -> dict[int, list[str]]:
    """Of each partition, the verdicts it holds."""
    return {
        partition.number: [
            row[0] for row in sample.connection.execute(f"SELECT verdict FROM {partition.table} ORDER BY id")
        ]
        for partition in reversed(partitions.catalogue(sample.connection))
    }


def counters(sample: Sample) -> list[Any]:
    return sample.connection.execute(
        "SELECT scope, value, unit, cells FROM counter ORDER BY value"
    ).fetchall()


def test_closed_partitions_get_their_indexes_one_at_a_time(sample: Sample) -> None:
    """The open one does not, and nothing is done while mail waits."""
    filled(sample)
    upkeep = upkeep_of(sample)
    assert not upkeep.step(idle=False, keep=ROOMY)
    assert not any(partition.indexed for partition in partitions.catalogue(sample.connection))
    run(upkeep, ROOMY)
    assert [partition.indexed for partition in partitions.catalogue(sample.connection)] == [0, 1, 1, 1, 1]
    for partition in partitions.catalogue(sample.connection):
        names = {row[1] for row in sample.connection.execute(f"PRAGMA index_list({partition.table})")}
        assert (f"{partition.table}_user" in names) == bool(partition.indexed)
    assert sum(map(len, verdicts(sample).values())) == 30


def test_decisions_go_with_their_age(sample: Sample) -> None:
    """Whole partitions; younger ones stay whole, and so do counts and bans."""
    sample.connection.execute("INSERT INTO ban VALUES ('user', 'x@example.org', '', 'root', 0, 0)")
    filled(sample)
    before = {row[1]: row for row in counters(sample)}
    keep = Keep(2 * DAY, 10**12, 0)
    run(upkeep_of(sample, keep), keep)
    assert {number: len(rows) for number, rows in verdicts(sample).items()} == {3: 6, 4: 6, 5: 6}
    assert sample.connection.execute("SELECT count(*) FROM decision").fetchone() == (18,)
    # Those whose window is long over are swept; nobody else's.
    assert [row for row in counters(sample) if before[row[1]] != row] == []
    assert (ALICE in {row[1] for row in counters(sample)}) is True
    assert sample.connection.execute("SELECT count(*) FROM ban").fetchone() == (1,)


@pytest.mark.parametrize(
    "keep", [Keep(90 * DAY, 1, 0), Keep(90 * DAY, 10**12, 2**62)], ids=["size", "free space"]
)
def test_with_little_room_passed_mail_goes_first(
    sample: Sample, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oldest first; then whole partitions; never the open one, never counts, never bans."""
    monkeypatch.setattr(upkeep_module, "STEP_ROWS", 2)
    sample.connection.execute("INSERT INTO ban VALUES ('user', 'x@example.org', '', 'root', 0, 0)")
    filled(sample)
    kept = [row for row in counters(sample) if row[1] == ALICE]
    assert kept
    upkeep = upkeep_of(sample, keep)
    gone_before: set[int] = set()
    for _ in range(500):
        more = upkeep.step(idle=True, keep=keep)
        shown = verdicts(sample)
        closed = {number: rows for number, rows in shown.items() if number != 5}
        assert shown[5] == ["pass"] * 3 + ["refuse"] * 3
        refused = sum(rows.count("refuse") for rows in closed.values())
        if refused < 12:
            assert not any("pass" in rows for rows in closed.values())
        gone = {1, 2, 3, 4} - set(closed)
        assert gone >= gone_before
        assert gone == set(range(1, len(gone) + 1))
        gone_before = gone
        if not more:
            break
    assert list(verdicts(sample)) == [5]
    assert [row for row in counters(sample) if row[1] == ALICE] == kept
    assert sample.connection.execute("SELECT count(*) FROM ban").fetchone() == (1,)


def test_a_request_is_looked_up_by_its_index_while_partitions_go(sample: Sample) -> None:
    """With a full database each look for a request read a whole partition that was being dropped: 0.25 s for each batch."""
    filled(sample)
    keep = Keep(90 * DAY, 1, 0)
    upkeep = upkeep_of(sample, keep)
    run(upkeep, ROOMY)
    more = True
    while more:
        more = upkeep.step(idle=True, keep=keep)
        for partition in sample.ledger.partitions:
            names = {row[1] for row in sample.connection.execute(f"PRAGMA index_list({partition.table})")}
            assert partition.identity in names
    assert list(verdicts(sample)) == [5]


def test_one_step_looks_through_one_partition(sample: Sample) -> None:
    """A full database of refused mail was looked through as a whole in one step, which held up answers for half a second."""
    for day in range(4, 0, -1):
        for _ in range(6):
            sample.ask(ago=day * DAY, sasl_username="alice", helo_name=f"h{day}")
    sample.connection.execute("UPDATE decision_1 SET verdict = 'refuse'")
    sample.ask()
    keep = Keep(90 * DAY, 1, 0)
    upkeep = upkeep_of(sample, keep)
    looked: list[str] = []
    sample.connection.set_trace_callback(
        lambda sql: looked.append(sql) if "verdict = 'pass'" in sql else None
    )
    more = True
    while more:
        looked.clear()
        more = upkeep.step(idle=True, keep=keep)
        assert len({sql.split("DELETE FROM ")[1].split()[0] for sql in looked}) <= 1, looked
    sample.connection.set_trace_callback(None)
    assert list(verdicts(sample)) == [5]


@pytest.mark.parametrize("refused", [False, True])
def test_the_size_is_a_cap_while_mail_never_rests(
    sample: Sample, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is made before it is needed, whatever comes, of decisions that are small; the newest stay."""
    monkeypatch.setattr(upkeep_module, "FEWEST_ROWS", 50)
    monkeypatch.setattr(upkeep_module, "STEP_ROWS", 40)
    keep = Keep(90 * DAY, 700_000, 0)
    upkeep = upkeep_of(sample, keep)
    most = 0
    for number in range(1_200):
        sample.ask(sasl_username="alice" if refused else f"user{number}", helo_name="h" * 200)
        upkeep.step(idle=False, keep=keep)
        most = max(most, in_use(sample))
    assert 600_000 < most <= keep.max_size
    assert sum(map(len, verdicts(sample).values())) > 100
    assert sample.connection.execute("SELECT max(id) FROM decision").fetchone() == (1_200,)


def in_use(sample: Sample) -> int:
    pages, free, octets = (
        sample.connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * octets)


def test_a_size_that_cannot_be_kept_is_said(sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with what to do; nothing that counts is dropped."""
    filled(sample)
    keep = Keep(90 * DAY, 20_000, 0)
    before = counters(sample)
    upkeep = upkeep_of(sample, keep)
    for _ in range(100):
        upkeep.step(idle=True, keep=keep)
    said = [record.getMessage() for record in caplog.records if "by themselves" in record.getMessage()]
    assert len(said) == 1
    assert "raise max_size" in said[0]
    assert [row for row in before if row[1] == ALICE] == [row for row in counters(sample) if row[1] == ALICE]


def test_a_file_that_is_larger_than_it_may_be_shrinks(sample: Sample) -> None:
    """After max_size was lowered, too, with space enough on the disk."""
    filled(sample, days=3, each=100)
    keep = Keep(90 * DAY, 200_000, 0)
    upkeep = upkeep_of(sample, keep)
    run(upkeep, keep)
    pages, octets = (
        sample.connection.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "page_size")
    )
    assert pages * octets < 300_000


def test_making_room_is_told_once_an_hour(sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
    """A flood makes the database full and roomy again every few seconds, and must not fill the log as well."""
    filled(sample)
    upkeep = upkeep_of(sample, ROOMY)
    for _ in range(3):
        for keep in (Keep(90 * DAY, 10**12, 2**62), ROOMY):
            upkeep._next_size_look = 0.0
            upkeep.step(idle=True, keep=keep)
    told = [record for record in caplog.records if record.getMessage().startswith("keep: ")]
    assert len(told) == 1


def test_room_enough_drops_nothing(sample: Sample) -> None:
    """Within age, size and floor."""
    filled(sample)
    run(upkeep_of(sample), ROOMY)
    assert sum(map(len, verdicts(sample).values())) == 30


def test_with_no_room_for_an_index_old_decisions_go_all_the_same(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a full disk would keep itself full."""
    filled(sample)
    keep = Keep(90 * DAY, 10**12, 2**62)
    upkeep = upkeep_of(sample, keep)
    monkeypatch.setattr(
        partitions, "index_statements", lambda partition: ["SELECT EXISTS x no_such_function()"]
    )
    for _ in range(100):
        try:
            if not upkeep.step(idle=True, keep=keep):
                break
        except sqlite3.Error:
            continue
    assert list(verdicts(sample)) == [5]


def test_counters_that_count_nothing_any_more_are_swept(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stretch at a time; what may still be asked for stays, and the copy in memory goes with the row."""
    monkeypatch.setattr(upkeep_module, "STEP_ROWS", 3)
    for number in range(10):
        sample.ask(ago=90 * DAY, sasl_username=f"old{number}")
    for number in range(10):
        sample.ask(ago=HOUR, sasl_username=f"new{number}")
    run(upkeep_of(sample), ROOMY)
    assert {row[1] for row in counters(sample)} == {f"new{number}@example.org" for number in range(10)}
    assert sample.ask(sasl_username="old3").settled.verdict == "pass"
    assert Disk(sample.path).used("messages/external", "old3@example.org") == 1


def test_expired_steering_rows_stay_a_week_and_changes_are_pruned(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ``policyctl`` to show; rows without an end stay for ever."""
    monkeypatch.setattr(upkeep_module, "CHANGES", 5)
    sample.clock.ago = 0
    now = sample.clock.now()
    for name, end in (
        ("ever", 0),
        ("ahead", now + DAY),
        ("yesterday", now - DAY),
        ("long ago", now - 8 * DAY),
    ):
        sample.connection.execute("INSERT INTO ban VALUES ('user', ?, '', 'root', 0, ?)", (name, end))
    for number in range(20):
        sample.connection.execute("INSERT INTO allow VALUES ('sender', ?, '', 'root', 0, 0)", (f"s{number}",))
    upkeep = upkeep_of(sample)
    run(upkeep, ROOMY)
    sample.ask()
    run(upkeep, ROOMY)
    bans = {row[0] for row in sample.connection.execute("SELECT value FROM ban")}
    assert bans == {"ever", "ahead", "yesterday"}
    assert sample.connection.execute("SELECT count(*) FROM change").fetchone()[0] <= 7
    assert sample.connection.execute("SELECT count(*) FROM allow").fetchone() == (20,)


def test_pruning_changes_loses_no_reset(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset, then more changes than are kept, and no mail in between: the writer's copy of the counter must go."""
    monkeypatch.setattr(upkeep_module, "CHANGES", 5)
    for _ in range(3):
        sample.ask()
    with open_for_admin(sample.path) as connection:
        with admin.change(connection, "root") as change:
            change.reset_usage(ALICE)
        for number in range(20):
            with admin.change(connection, "root") as change:
                change.put("ban", Entry("user", f"u{number}@example.org", "", "root", 0, 0))
    run(upkeep_of(sample), ROOMY)
    assert sample.ask().settled.verdict == "pass"
    assert Disk(sample.path).used("messages/external") == 1


def test_a_wal_that_has_grown_is_copied_even_while_mail_waits(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would grow without end under load."""
    monkeypatch.setattr(checkpoints_module, "ENOUGH", 1)
    sample.ask()
    main = Path(sample.path).read_bytes()
    upkeep_of(sample).step(idle=False, keep=ROOMY)
    assert Path(sample.path).read_bytes() != main


def test_freed_pages_go_back_to_the_file_system(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """With little space free the file shrinks; in the end nothing of what was dropped takes room."""
    filled(sample, days=3, each=60)
    keep = Keep(90 * DAY, 10**12, 2**62)
    before = sample.connection.execute("PRAGMA page_count").fetchone()[0]
    upkeep = upkeep_of(sample, keep)
    run(upkeep, keep)
    for _ in range(3):
        upkeep.step(idle=True, keep=keep)
    assert sample.connection.execute("PRAGMA page_count").fetchone()[0] < before
    assert sample.connection.execute("PRAGMA freelist_count").fetchone()[0] == 0
    assert sample.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)

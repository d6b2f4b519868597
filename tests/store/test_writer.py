"""The writer on SQLite: the contract of a backend, and what it does when disk or file are in trouble."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.decision import Decision
from policyd.errors import StoreError, StoreRefused
from policyd.request import Request
from policyd.steering import Entry
from policyd.store import admin, connect
from policyd.store import counters as counters_module
from policyd.store import instances as instances_module
from policyd.store import sturdy as sturdy_module
from policyd.store import writer as writer_module
from policyd.store.batch import Staged, reference
from policyd.store.connect import open_for_admin
from tests.fakes import (
    PATIENCE,
    Disk,
    Store,
    ask,
    ban_rule,
    charged,
    end_of,
    engine,
    from_outside,
    locked,
    quota_rule,
    rcpt,
    says,
)
from tests.store.contract import ALICE, BackendContract, every_third
from tests.store.faulty import Faulty


class TestSQLite(BackendContract):
    """The contract, on a file in WAL mode."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the time between two attempts."""
    monkeypatch.setattr(sturdy_module, "RETRY", 0.002)
    monkeypatch.setattr(connect, "DAEMON_BUSY", 1)


RULES = (ban_rule(), quota_rule("1000 messages per 1d", "5000 recipients per 1d"), says(every_third()))
MX_RULES = (ban_rule(), quota_rule("1000 messages per 1d", direction="submission"))


def ban_alice(path: Path) -> None:
    with open_for_admin(str(path)) as connection, admin.change(connection, "root", "spam") as change:
        change.put("ban", Entry("user", ALICE, "spam", "root", 0, 0))


def healed(store: Store) -> list[Decision]:
    """Ask until the store is well; the decisions that took."""
    decisions = []
    for turn in range(400):
        (decision,) = store.decide(ask(queue_id=f"{turn * 3 + 1:X}"))
        assert decision is not None
        decisions.append(decision)
        if not store.writer.sick:
            return decisions
    raise AssertionError(f"still sick: {store.writer.sick}")


def accepted(decisions: list[Decision | None]) -> list[tuple[Request, Any]]:
    assert None not in decisions
    return [(d.request, d.settled) for d in decisions if d is not None]


# --- locked -----------------------------------------------------------------------------------------------------------


def test_locked_decisions_go_on_in_memory_and_are_written_once(tmp_path: Path) -> None:
    """Limits hold meanwhile, repeats are known, and nothing is counted twice when the lock is gone."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(ban_rule(), quota_rule("6 messages per 1d"))) as store:
        store.decide(ask(), ask())
        requests = [ask() for _ in range(6)]
        with locked(path):
            decisions = store.decide(*requests)
            again = store.decide(*requests)
            assert Disk(path).used("messages/external") == 2
        rows = accepted(decisions)
        assert [settled.verdict for _, settled in rows] == ["pass"] * 4 + ["refuse"] * 2
        assert all("memory" in settled.mark.split() for _, settled in rows)
        assert [s.verdict for _, s in accepted(again)] == ["pass"] * 4 + ["refuse"] * 2
        more = healed(store)
        assert {d.settled.verdict for d in more} == {"refuse"}
        assert Disk(path).used("messages/external") == 6
        ids = [row[0] for row in Disk(path).query("SELECT id FROM decision")]
        assert sorted(ids) == list(range(1, 2 + 12 + len(more) + 1))
        # And the repeat is known from the disk.
        assert store.settled(requests[0]).mark == "repeat"
        assert Disk(path).used("messages/external") == 6


def test_locked_a_known_ban_holds(tmp_path: Path) -> None:
    """Bans are in memory."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*RULES)) as store:
        ban_alice(path)
        with locked(path):
            assert store.settled(ask()).by == "bans"


def test_locked_beyond_the_bound_only_what_must_count_gets_no_decision(tmp_path: Path) -> None:
    """Inbound mail goes on; submission beyond the bound is for the server to answer; what was kept is written."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*MX_RULES), backlog=5) as store:
        store.settled(ask())
        with locked(path):
            kept = [store.decide(ask())[0] for _ in range(5)]
            beyond = [store.decide(ask())[0] for _ in range(3)]
            inbound = [store.decide(from_outside())[0] for _ in range(3)]
            at_rcpt = store.decide(rcpt("i", "bob@example.net"))[0]
            before = Disk(path).used("messages/external")
        assert None not in kept
        assert beyond == [None] * 3
        assert None not in inbound
        assert at_rcpt is not None
        assert before == 1
        many = len(_until_well(store))
        assert Disk(path).used("messages/external") == 6 + many


def _until_well(store: Store) -> list[Decision]:
    decided = []
    for _ in range(400):
        (decision,) = store.decide(ask())
        if decision is not None:
            decided.append(decision)
        if not store.writer.sick:
            return decided
    raise AssertionError(store.writer.sick)


def test_locked_to_the_end_the_backlog_is_written_at_the_next_chance(tmp_path: Path) -> None:
    """A stop while the database is sick loses nothing if it is well by then."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*MX_RULES)) as store:
        store.settled(ask())
        with locked(path):
            store.decide(ask(), ask())
    assert Disk(path).used("messages/external") == 3


# --- full -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full(path: Path, room: int = 0) -> Iterator[None]:
    """No file of this process can grow by more than ``room`` beyond the database's present size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = room + max(os.stat(f"{path}{suffix}").st_size for suffix in ("", "-wal"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every request is decided, counted in memory, written once when there is room again; the file stays sound."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*RULES)) as store:
        rows = accepted(store.decide(*[ask(queue_id=f"{n:X}") for n in range(1, 20)]))
        with full(path):
            for start in range(100, 400, 30):
                rows += accepted(store.decide(*[ask(queue_id=f"{n:X}") for n in range(start, start + 30)]))
        # What a checkpoint makes room for is written even so.
        assert "store-sick" in caplog.text
        rows += [(d.request, d.settled) for d in healed(store)]
        assert Disk(path).all_used() == charged(rows)
    assert Disk(path).all_used() == charged(rows)
    assert Disk(path).verdicts() == [settled.verdict for _, settled in rows]
    assert Disk(path).sound()


def test_more_than_there_is_room_for_is_written_as_far_as_it_fits(tmp_path: Path) -> None:
    """The rest stays counted in memory, a ban holds and a repeat is known; with room for all each is there once."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*RULES)) as store:
        ban_alice(path)
        decisions = store.decide(*[of_bert(n) for n in range(1, 20)])
        with full(path):
            for start in range(1_000, 3_400, 240):
                decisions += store.decide(*[of_bert(n) for n in range(start, start + 240)])
            assert store.writer.sick
        with full(path, 500_000):
            before = len(Disk(path).verdicts())
            for _ in range(100):
                decisions += store.decide(of_bert(1))
            # They are written in the order of their numbers.
            rows = accepted(sorted(decisions, key=lambda decision: decision.id if decision else 0))
            on_disk = Disk(path).verdicts()
            assert store.writer.sick
            assert before + 240 <= len(on_disk) < len(rows) - 240
            assert on_disk == [settled.verdict for _, settled in rows[: len(on_disk)]]
            assert Disk(path).all_used() == charged(rows[: len(on_disk)])
            assert store.settled(ask()).by == "bans"
            assert store.settled(rows[-100][0]).mark == "repeat memory"
        until_well(store)
    disk = Disk(path)
    assert disk.all_used() == charged(rows)
    assert disk.query(
        "SELECT count(*), count(DISTINCT id) FROM decision WHERE verdict = 'pass' AND mark NOT LIKE '%repeat%'"
    ) == [(sum(settled.verdict == "pass" for _, settled in rows),) * 2]
    assert disk.sound()


def of_bert(number: int) -> Request:
    """A message of bert's."""
    return ask(sasl_username="bert", sender="bert@example.org", queue_id=f"{number:X}")


def until_well(store: Store) -> None:
    """Ask what is refused, and counts nothing, until the store is well."""
    for _ in range(2_000):
        store.decide(ask())
        if not store.writer.sick:
            return
    raise AssertionError(store.writer.sick)


# --- each statement fails ---------------------------------------------------------------------------------------------


def scenario(store: Store) -> list[tuple[Request, Any]]:
    """A little of everything, in three batches."""
    rows = []
    first = [ask(queue_id=f"{n:X}") for n in range(1, 7)]
    rows += accepted(store.decide(*first))
    rows += accepted(
        store.decide(rcpt("i", "a@example.org", queue_id="1"), rcpt("i", "b@example.net", queue_id="1"))
    )
    rows += accepted(store.decide(end_of("i", 2, queue_id="1"), *first[:3], ask(instance="", queue_id="1")))
    return rows


@pytest.mark.parametrize("error", ["SQLITE_IOERR_WRITE", "SQLITE_FULL", "SQLITE_BUSY"])
@pytest.mark.parametrize("lasting", [False, True])
def test_whichever_statement_fails_nothing_is_lost_and_nothing_counted_twice(
    tmp_path: Path, faulty: type[Faulty], lasting: bool, error: str
) -> None:
    """Once, or from then on until the cause is gone; SQLite's own way of testing."""
    at = 0
    while True:
        at += 1
        path = tmp_path / f"policyd{at}.db"
        with Store(path, engine(*RULES)) as store:
            rows = accepted(store.decide(ask(queue_id="1")))
            faulty.arm(at, lasting, error)
            rows += scenario(store)
            reached = faulty.count >= at
            faulty.arm(0)
            rows += [(d.request, d.settled) for d in healed(store)]
            assert Disk(path).all_used() == charged(rows), f"statement {at}"
        disk = Disk(path)
        assert disk.all_used() == charged(rows), f"statement {at}"
        assert disk.verdicts() == [settled.verdict for _, settled in rows], f"statement {at}"
        refs = disk.query("SELECT ref FROM decision WHERE ref IS NOT NULL")
        assert len(refs) == len(set(refs))
        assert disk.sound()
        if not reached:
            break
    assert at > 10


@pytest.mark.parametrize("part", [1_000, 2])
def test_whichever_statement_fails_while_it_heals(
    tmp_path: Path, faulty: type[Faulty], monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """The way back from a sickness may be interrupted anywhere, in one part or in many, and no id and no reference is given
    out twice."""
    monkeypatch.setattr(sturdy_module, "PART", part)
    at = 0
    while True:
        at += 1
        path = tmp_path / f"policyd{at}.db"
        with Store(path, engine(*RULES)) as store:
            rows = accepted(store.decide(ask(queue_id="1")))
            with locked(path):
                rows += scenario(store)
            faulty.arm(at)
            rows += [(d.request, d.settled) for d in healed(store)]
            rows += scenario(store)
            reached = faulty.count >= at
            faulty.arm(0)
            rows += [(d.request, d.settled) for d in healed(store)]
        disk = Disk(path)
        assert disk.all_used() == charged(rows), f"statement {at}"
        assert disk.verdicts() == [settled.verdict for _, settled in rows], f"statement {at}"
        refs = disk.query("SELECT ref FROM decision WHERE ref IS NOT NULL")
        assert len(refs) == len(set(refs)), f"statement {at}"
        ids = [row[0] for row in disk.query("SELECT id FROM decision ORDER BY rowid")]
        assert ids == list(range(1, len(ids) + 1)), f"statement {at}"
        if not reached:
            break


def test_a_limit_holds_exactly_although_the_way_back_is_interrupted(
    tmp_path: Path, faulty: type[Faulty]
) -> None:
    """What was counted in memory goes on counting after an attempt to write it that failed."""
    for at in range(1, 40):
        path = tmp_path / f"policyd{at}.db"
        verdicts = []
        with Store(path, engine(quota_rule("8 messages per 1d"))) as store:
            with locked(path):
                verdicts += [store.settled(ask()).verdict for _ in range(6)]
            faulty.arm(at, lasting=True)
            verdicts += [store.settled(ask()).verdict for _ in range(6)]
            faulty.arm(0)
            verdicts += [d.settled.verdict for d in healed(store)]
            verdicts += [store.settled(ask()).verdict for _ in range(6)]
        assert verdicts.count("pass") == 8, f"statement {at}"
        assert Disk(path).used("messages/external") == 8


def test_a_limit_holds_when_the_disk_fails_again_right_after_it_was_well(
    tmp_path: Path, faulty: type[Faulty]
) -> None:
    """What was written a moment ago is known, though nothing can be read any more."""
    with Store(tmp_path / "policyd.db", engine(quota_rule("8 messages per 1d"))) as store:
        with locked(tmp_path / "policyd.db"):
            assert [store.settled(ask()).verdict for _ in range(9)] == ["pass"] * 8 + ["refuse"]
        sturdy = store.writer.ledger
        with store.writer._memory:
            # The thread may have been first.
            if sturdy.sick:
                sturdy._next_retry = 0.0
                sturdy.try_to_heal()
            assert not sturdy.sick
            faulty.arm(1, lasting=True)
        assert store.settled(ask()).verdict == "refuse"
        faulty.arm(0)


def test_a_value_that_cannot_be_written_does_not_keep_the_backlog_from_the_disk(tmp_path: Path) -> None:
    """A bad value decided in memory is dropped and told of; what came with it is written."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*MX_RULES)) as store:
        store.settled(ask())
        with locked(path):
            store.decide(ask(), ask()._replace(helo_name="\ud800"), ask())
        many = len(_until_well(store))
        assert Disk(path).used("messages/external") >= 3 + many
        assert store.settled(ask()).verdict == "pass"
        assert not store.writer.sick


# --- damaged ----------------------------------------------------------------------------------------------------------


def overwritten(path: Path) -> None:
    """Every page but the first is noise."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096 + 100)


def text(path: Path) -> None:
    path.write_text("this is no database\n" * 1000)


def header(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"\0" * 100)


DAMAGE = [overwritten, truncated, text, header]


def kept_aside(path: Path) -> list[Path]:
    return [
        found
        for found in path.parent.glob(f"{path.name}.damaged-*")
        if not found.name.endswith(("-wal", "-shm"))
    ]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_at_the_start(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Kept aside byte for byte, a new one begun, and it works."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*RULES)) as store:
        ban_alice(path)
        store.decide(*[ask() for _ in range(200)])
    damage(path)
    before = path.read_bytes()
    with Store(path, engine(*RULES)) as store:
        for _ in range(20):
            assert store.settled(ask(sasl_username="bert", queue_id="1")).verdict == "pass"
        assert not store.writer.sick
    (aside,) = kept_aside(path)
    assert aside.read_bytes() == before
    assert Disk(path).used("messages/external", "bert@example.org") == 20
    assert Disk(path).sound()


def test_damaged_at_the_start_what_can_be_read_of_the_bans_is_taken_over(tmp_path: Path) -> None:
    """The counters' page is noise, the bans' is not."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*RULES)) as store:
        ban_alice(path)
        store.decide(*[ask() for _ in range(20)])
    page = Disk(path).query("SELECT rootpage FROM sqlite_master WHERE name = 'decision_partition'")[0][0]
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    with Store(path, engine(*RULES)) as store:
        assert store.settled(ask()).by == "bans"
    assert len(kept_aside(path)) == 1


def test_whichever_page_is_damaged_the_daemon_starts_and_decides(tmp_path: Path) -> None:
    """At the start or when it is met, and no error but the store's own comes out."""
    path = tmp_path / "whole.db"
    with Store(path, engine(*RULES)) as store:
        ban_alice(path)
        store.decide(*[ask() for _ in range(100)])
    pages = path.stat().st_size // 4096
    whole = path.read_bytes()
    for page in range(pages):
        victim = tmp_path / f"page{page}" / "policyd.db"
        victim.parent.mkdir()
        victim.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        with Store(victim, engine(*RULES)) as store:
            for n in range(3):
                (decision,) = store.decide(ask(sasl_username="bert", queue_id=f"{3 * n + 1:X}"))
                assert decision is not None, f"page {page}"
                assert decision.settled.verdict == "pass"
        assert Disk(victim).used("messages/external", "bert@example.org") == 3, f"page {page}"


@pytest.mark.parametrize("size", [0, 99, 4095])
def test_a_stump_of_a_file(tmp_path: Path, size: int) -> None:
    """Zero bytes are an empty database; anything else is no database and kept aside."""
    path = tmp_path / "policyd.db"
    path.write_bytes(b"S" * size)
    with Store(path, engine(*RULES)) as store:
        assert store.settled(ask(queue_id="1")).verdict == "pass"
    assert len(kept_aside(path)) == (1 if size else 0)
    assert Disk(path).query("PRAGMA auto_vacuum") == [(2,)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """Met at the next opening: kept aside as it was found, bans and unwritten counts are taken over, readers told."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*MX_RULES)) as store:
        store.decide(*[ask() for _ in range(50)])
        ban_alice(path)
        assert store.settled(ask()).by == "bans"
        # An attempt to heal that has opened the file before the damage, and writes after it, has no need to read the file.
        monkeypatch.setattr(sturdy_module, "RETRY", PATIENCE)
        with contextlib.ExitStack() as held:
            for _ in range(100):
                # Nothing of it stands in the WAL, which would make up for the damage; upkeep may write in between.
                Disk(path).query("PRAGMA wal_checkpoint(TRUNCATE)")
                held.enter_context(locked(path))
                if not os.path.getsize(f"{path}-wal"):
                    break
                held.close()
            assert not os.path.getsize(f"{path}-wal")
            store.decide(ask(sasl_username="bert"), ask(sasl_username="bert"))
            damage(path)
            before = path.read_bytes()
        monkeypatch.setattr(sturdy_module, "RETRY", 0.002)
        store.writer.ledger._next_retry = 0.0
        count = 0
        for _ in range(400):
            (decision,) = store.decide(ask(sasl_username="carl"))
            assert decision is not None
            count += 1
            if not store.writer.sick:
                break
        assert not store.writer.sick
        assert store.settled(ask()).by == "bans"
        (aside,) = kept_aside(path)
        assert aside.read_bytes() == before
        assert store.replaced >= 1
    disk = Disk(path)
    assert disk.used("messages/external", "bert@example.org") == 2
    assert disk.used("messages/external", "carl@example.org") == count
    assert disk.query("SELECT value FROM ban") == [(ALICE,)]
    assert disk.sound()


def test_whichever_statement_meets_the_damage(tmp_path: Path, faulty: type[Faulty]) -> None:
    """A new file is begun, each operation is decided once, bans stay, and no row is written twice."""
    at = 0
    while True:
        at += 1
        path = tmp_path / f"policyd{at}.db"
        with Store(path, engine(*RULES)) as store:
            ban_alice(path)
            assert store.settled(ask()).by == "bans"
            faulty.arm(at, error="SQLITE_CORRUPT")
            rows = accepted(
                store.decide(*[ask(sasl_username="bert", queue_id=f"{n:X}") for n in range(1, 7)])
            )
            reached = faulty.count >= at
            faulty.arm(0)
            rows += [(d.request, d.settled) for d in _bert_until_well(store)]
            assert store.settled(ask()).by == "bans"
        if not reached:
            break
        assert len(kept_aside(path)) == 1, f"statement {at}"
        assert Disk(path).all_used() == charged(rows), f"statement {at}"
        assert Disk(path).sound()
    assert at > 5


def _bert_until_well(store: Store) -> list[Decision]:
    decisions = []
    for n in range(400):
        (decision,) = store.decide(ask(sasl_username="bert", queue_id=f"{3 * n + 1:X}"))
        assert decision is not None
        decisions.append(decision)
        if not store.writer.sick:
            return decisions
    raise AssertionError(store.writer.sick)


def test_a_damaged_counter_does_not_stop_its_neighbours(tmp_path: Path) -> None:
    """Its cells cannot be read: whatever becomes of its owner, others are decided and counted."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*MX_RULES)) as store:
        store.decide(ask(), ask(sasl_username="bert"))
    with open_for_admin(str(path)) as connection:
        connection.execute("UPDATE counter SET cells = x'0105' WHERE value = ?", (ALICE,))
    with Store(path, engine(*MX_RULES)) as store:
        store.decide(ask(), ask(sasl_username="bert"), ask())
        assert store.settled(ask(sasl_username="bert")).verdict == "pass"
        assert not store.writer.sick
    assert Disk(path).used("messages/external", "bert@example.org") == 3


# --- where it cannot be opened ----------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    """No traceback: what, where, what to do."""
    store = Store(tmp_path / "missing" / "policyd.db", engine(*RULES))
    with pytest.raises(StoreRefused, match=r"No such file or directory; check \[store\] url"):
        store.writer.open()
    directory = Store(tmp_path, engine(*RULES))
    with pytest.raises(StoreError):
        directory.writer.open()


def test_a_writer_that_was_never_started_can_be_stopped(tmp_path: Path) -> None:
    """A start that failed half way must still let go of the database."""
    store = Store(tmp_path / "policyd.db", engine(*RULES))
    store.writer.open()
    store.writer.stop()
    with Store(tmp_path / "policyd.db", engine(*RULES)) as again:
        assert again.settled(ask(queue_id="1")).verdict == "pass"
    assert PATIENCE


def test_a_start_while_somebody_writes(tmp_path: Path) -> None:
    """A long transaction of another process keeps no daemon from starting; mail is decided in memory meanwhile."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*MX_RULES)) as store:
        store.settled(ask())
    with locked(path), Store(path, engine(*MX_RULES)) as store:
        assert store.settled(ask()).verdict == "pass"


def test_beyond_the_bound_a_known_ban_holds_wherever_it_stands_in_the_chain(tmp_path: Path) -> None:
    """A refusal needs no room in memory, although a quota before it would have counted."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(quota_rule("99 messages per 1d"), ban_rule()), backlog=1) as store:
        store.settled(ask())
        ban_alice(path)
        with locked(path):
            store.decide(ask(sasl_username="bert"))
            assert store.decide(ask(sasl_username="bert")) == [None]
            assert store.settled(ask()).by == "bans"


# --- caches are only caches -------------------------------------------------------------------------------------------


def test_small_caches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many accounts and transactions, few of them in memory: counts, limits and repeats come from the disk."""
    monkeypatch.setattr(counters_module, "CACHED", 4)
    monkeypatch.setattr(instances_module, "TRANSACTIONS", 3)
    monkeypatch.setattr(instances_module, "DECISIONS", 5)
    path = tmp_path / "policyd.db"
    requests = [ask(sasl_username=f"user{number % 40}") for number in range(120)]
    with Store(path, engine(quota_rule("2 messages per 1d"))) as store:
        rows = []
        for at in range(0, 120, 10):
            rows += accepted(store.decide(*requests[at : at + 10]))
        assert [settled.verdict for _, settled in rows] == ["pass"] * 80 + ["refuse"] * 40
        with locked(path):
            for request in requests[:80:7]:
                assert store.settled(request).mark.split()[0] == "repeat"
        healed(store)
        for request in requests[:80]:
            assert store.settled(request).mark == "repeat"
    used = Disk(path).all_used()
    assert {used[key] for key in used if key.value != ALICE} == {2}


def test_a_small_cache_in_memory_loses_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More accounts than are remembered, decided while nothing can be written: each limit holds, each count gets to disk."""
    monkeypatch.setattr(counters_module, "CACHED", 4)
    path = tmp_path / "policyd.db"
    with Store(path, engine(quota_rule("3 messages per 1d"))) as store:
        for number in range(30):
            assert store.settled(ask(sasl_username=f"user{number}")).verdict == "pass"
        with locked(path):
            for verdict in ("pass", "pass", "refuse"):
                for number in range(30):
                    assert store.settled(ask(sasl_username=f"user{number}")).verdict == verdict
        healed(store)
    used = Disk(path).all_used()
    assert {used[key] for key in used if key.value.startswith("user")} == {3}


def test_what_a_policy_of_yesterday_counted_is_returned(tmp_path: Path) -> None:
    """A message passed and counted; then a limit is gone and its sender banned. Asked again, both counts go back."""
    path = tmp_path / "policyd.db"
    request = ask(instance="again")
    with Store(path, engine(ban_rule(), quota_rule("9 messages per 1d", "9 recipients per 1d"))) as store:
        assert store.settled(request).verdict == "pass"
    ban_alice(path)
    with Store(path, engine(ban_rule(), quota_rule("9 messages per 1d"))) as store:
        assert store.settled(request).by == "bans"
    assert Disk(path).used("messages/external") == 0
    assert Disk(path).used("recipients/external") == 0


def test_a_repetition_is_known_before_and_after_everything_was_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after a start, and when upkeep has taken in what was decided before it."""
    monkeypatch.setattr(instances_module, "STEP_ROWS", 4)
    path = tmp_path / "policyd.db"
    requests = [ask() for _ in range(30)]
    with Store(path, engine(quota_rule("99 messages per 1d"))) as store:
        store.decide(*requests)
    with Store(path, engine(quota_rule("99 messages per 1d"))) as store:
        for request in requests:
            assert store.settled(request).mark == "repeat"
            assert store.settled(ask(sasl_username="bert")).mark == ""
    assert Disk(path).used("messages/external") == 30


@given(st.sets(st.integers(0, 2**36), min_size=2, max_size=50))
def test_references_never_come_twice(sequences: set[int]) -> None:
    """Five characters for the first 33 million, one more then; never a letter that is taken for another."""
    references = {reference(sequence) for sequence in sequences}
    assert len(references) == len(sequences)
    for sequence in sequences:
        text = reference(sequence)
        assert not set(text) - set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
        assert (len(text) == 5) == (sequence < 32**5)


def test_references_do_not_count_up() -> None:
    """One says nothing about how much mail there is."""
    found = [reference(sequence) for sequence in range(1, 2_000)]
    assert len(set(found)) == len(found)
    assert sum(first[:3] == second[:3] for first, second in itertools.pairwise(found)) < 20


def test_a_disk_that_hangs_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided and not written is bounded, what waits is bounded; all of it comes back, counted as answered."""
    monkeypatch.setattr(writer_module, "MOST_STAGED", 8)
    monkeypatch.setattr(writer_module, "MOST_WAITING", 20)
    path = tmp_path / "policyd.db"
    with Store(path, engine(quota_rule("1000 messages per 1h"))) as store:
        store.decide(ask())
        store.writer.ledger._ledger.instances.complete = True
        hangs, goes_on, write = threading.Event(), threading.Event(), store.writer.ledger.write

        def slow(staged: Staged) -> Exception | None:
            hangs.set()
            assert goes_on.wait(PATIENCE)
            return write(staged)

        monkeypatch.setattr(store.writer.ledger, "write", slow)
        store.writer.submit(store.operation(ask()))
        assert hangs.wait(PATIENCE)
        for _ in range(50):
            store.writer.submit(store.operation(ask()))
        assert len(store.writer._staged.operations) == 8
        assert store.writer.waiting() == 20
        goes_on.set()
        handed = [store.handed.get(timeout=PATIENCE)[1] for _ in range(51)]
    decided = [decision for decision in handed if decision is not None]
    assert len(decided) == 1 + 8 + 20
    assert Disk(path).used("messages/external") == 1 + len(decided)


def test_what_was_staged_on_top_of_a_change_is_decided_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ban that comes while one batch is written and the next is staged: it holds for both, and nothing is counted."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(ban_rule(), quota_rule("1000 messages per 1h"))) as store:
        store.decide(ask())
        store.writer.ledger._ledger.instances.complete = True
        hangs, goes_on, write = threading.Event(), threading.Event(), store.writer.ledger.write

        def slow(staged: Staged) -> Exception | None:
            hangs.set()
            assert goes_on.wait(PATIENCE)
            return write(staged)

        monkeypatch.setattr(store.writer.ledger, "write", slow)
        before = [store.operation(ask()) for _ in range(3)]
        store.writer.submit(before[0])
        assert hangs.wait(PATIENCE)
        for operation in before[1:]:
            store.writer.submit(operation)
        assert len(store.writer._staged.operations) == 2
        ban_alice(path)
        goes_on.set()
        handed = [store.handed.get(timeout=PATIENCE)[1] for _ in before]
        assert [decision.settled.by for decision in handed if decision is not None] == ["bans"] * 3
        assert store.settled(ask()).by == "bans"
    assert Disk(path).used("messages/external") == 1
    ids = [row[0] for row in Disk(path).query("SELECT id FROM decision ORDER BY id")]
    assert ids == [1, 2, 3, 4, 5]


# --- jobs of others ---------------------------------------------------------------------------------------------------


def done_by(store: Store, job: Callable[[sqlite3.Connection], Any]) -> Any:
    """What a job comes to."""
    results: queue.Queue[Any] = queue.Queue()
    store.writer.do(job, results.put)
    return results.get(timeout=PATIENCE)


def test_a_job_runs_between_two_batches(tmp_path: Path) -> None:
    """On the writer's connection, with no transaction open; a defect in it, or what it leaves open, harms no decision."""
    with Store(tmp_path / "policyd.db", engine(*RULES)) as store:
        assert done_by(store, lambda connection: connection.in_transaction) is False
        assert done_by(store, lambda connection: connection.execute("BEGIN IMMEDIATE").fetchall()) == []
        assert done_by(store, lambda connection: 1 // 0) is None
        assert done_by(store, lambda connection: connection.execute("INSERT INTO event VALUES (1)")) is None
        insert = "INSERT INTO alert_cursor VALUES (2, 0)"
        assert done_by(store, lambda connection: connection.execute(insert)) is None
        assert not store.writer.sick
        assert accepted(store.decide(ask()))
    assert done_by(store, lambda connection: 1) is None, "after the end nobody does it, and that is said"


def test_a_job_meets_trouble(tmp_path: Path) -> None:
    """The database falls sick of it as of a batch; while it is sick nothing is done; it heals by itself."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(*RULES)) as store:
        with locked(path):
            assert done_by(store, lambda connection: connection.execute("BEGIN IMMEDIATE").fetchall()) is None
            assert store.writer.sick
            assert done_by(store, lambda connection: 1) is None
            assert accepted(store.decide(ask()))
        healed(store)
        assert done_by(store, lambda connection: 1) == 1

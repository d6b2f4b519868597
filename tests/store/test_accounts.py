"""Accounts through the real ledger: what a batch changed is on disk with it, seen by the next one, and gone when taken back."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from policyd.accounts import BY_HAND, LOGS_LEARNED, digest
from policyd.checks import Context
from policyd.checks.quota import Check, Options
from policyd.decision import Settled
from policyd.engine import Engine
from policyd.request import Request
from policyd.steering import Milestone
from policyd.store import account_rows, admin
from policyd.store import accounts as accounts_module
from policyd.store import counters as counters_module
from policyd.store import decider as decider_module
from policyd.store import ledger as ledger_module
from policyd.store import sturdy as sturdy_module
from policyd.store.connect import open_for_admin
from policyd.suspending import Suspending
from policyd.tiers import Tier, Tiers
from policyd.units import DAY, HOUR, parse_limit
from policyd.watch import DELIVERIES, FAILURES, Watch
from policyd.window import Counter, slot_width
from tests.fakes import SITE, Disk, Store, ask, ban_rule, end_of, locked, quota_rule, rcpt, rule
from tests.store.faulty import Faulty
from tests.test_watch import TIERS, detect, networks

ALICE = "alice@example.org"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "policyd.db"


def chain(*whens: str, tiers: Tiers = TIERS, **ladder: Any) -> Engine:
    detects = [detect(when, name=f"d{number}") for number, when in enumerate(whens)]
    return Engine([ban_rule()], watch=Watch(detects, Suspending(**ladder), tiers))


def decided(store: Store, *requests: Request) -> list[Settled]:
    found = [decision.settled for decision in store.decide(*requests) if decision is not None]
    assert len(found) == len(requests)
    return found


def learned(place: Path) -> None:
    with open_for_admin(str(place)) as connection, admin.change(connection, "root") as change:
        change.put("milestone", Milestone(LOGS_LEARNED, "", "root", change.now, 0))


def row(place: Path, user: str = ALICE) -> dict[str, Any]:
    columns = ("messages", "marks", "tier", "strikes")
    found = Disk(place).query(f"SELECT {', '.join(columns)} FROM account WHERE user = ?", user)
    return dict(zip(columns, found[0], strict=True)) if found else {}


def test_what_passed_is_on_disk_and_known_after_a_restart(place: Path) -> None:
    """Messages, marks and recipients; a stranger met before the restart is none after it."""
    engine = chain("more than 3 new recipients per user in 1d")
    with Store(place, engine) as store:
        learned(place)
        store.decide(*[end_of(f"m{n}", 1, f"r{n}@example.net") for n in range(3)])
    assert row(place)["messages"] == 3
    assert len(json.loads(row(place)["marks"])["d0/new recipients"]) == 3
    assert len(Disk(place).query("SELECT * FROM correspondent")) == 3
    with Store(place, engine) as store:
        assert store.settled(end_of("again", 1, "R1@example.net")).verdict == "pass"
        assert store.settled(end_of("new", 1, "r9@example.net")).verdict == "refuse"
        assert store.settled(end_of("later", 1, "r1@example.net")).by == "bans"
    ((user, step, until),) = Disk(place).query("SELECT user, step, expires_at FROM suspension")
    assert (user, step) == (ALICE, 1)
    assert until
    assert Disk(place).query("SELECT kind, subject, resolved FROM event") == [("suspend", ALICE, 0)]
    assert Disk(place).query("SELECT author, action, subject FROM history")[-1] == (
        "policyd",
        "suspend",
        ALICE,
    )


def test_not_one_message_of_a_batch_passes_beyond_the_line(place: Path) -> None:
    """200 sessions at once: what is decided together is decided one after the other."""
    with Store(place, chain("more than 8 client networks per user in 10m")) as store:
        requests = [ask(client_address=client, instance=client) for client in networks(200)]
        found = decided(store, *requests)
        assert [settled.verdict for settled in found].count("pass") == 8
        assert {settled.by for settled in found[9:]} == {"bans"}
        assert store.settled(ask(sasl_username="bert")).verdict == "pass"
    assert len(Disk(place).query("SELECT * FROM suspension")) == 1
    assert len(json.loads(row(place)["strikes"])) == 1


def test_the_recipients_of_one_mail_are_joined_from_rcpt(place: Path) -> None:
    """At END-OF-MESSAGE Postfix names none of several."""
    with Store(place, chain("more than 4 new recipients per user in 1h")) as store:
        learned(place)
        recipients = [f"r{number}@example.net" for number in range(5)]
        store.decide(*[rcpt("one", recipient) for recipient in recipients])
        assert store.settled(end_of("one", 5)).by == "d0"
        store.decide(*[rcpt("two", recipient, sasl_username="bert") for recipient in recipients[:4]])
        assert store.settled(end_of("two", 4, sasl_username="bert")).verdict == "pass"


def test_the_tier_that_is_stored_holds_at_once_and_what_policyctl_says_is_heard(place: Path) -> None:
    """A cached account is dropped when the change table names it, and read anew."""
    tiers = Tiers(
        "new",
        {
            "new": Tier("new", (parse_limit("2 messages per 1h"),)),
            "verified": Tier("verified", (parse_limit("5 messages per 1h"),)),
        },
    )
    quota = rule("quota", Check(Options(), Context("quota", "any", SITE, tiers)))
    engine = Engine([ban_rule(), quota])
    with Store(place, engine) as store:
        assert [store.settled(ask()).verdict for _ in range(3)] == ["pass", "pass", "refuse"]
        with open_for_admin(str(place)) as connection, admin.change(connection, "root") as change:
            change.connection.execute(
                "INSERT INTO account VALUES (?, 'verified', 'hand', 1, 0, 0, 0, 0, 0, '[]', '', '{}', '{}')",
                (ALICE,),
            )
            change.connection.execute(
                "INSERT INTO change (tbl, key) VALUES ('account', json_array(?))", (ALICE,)
            )
        assert [store.settled(ask()).verdict for _ in range(4)] == ["pass", "pass", "pass", "refuse"]


def test_a_row_that_is_written_late_takes_back_nothing_that_policyctl_has_changed(place: Path) -> None:
    """What only adds to a count is written some time later, and at the end: by then the admin may have put it into a tier."""
    with Store(place, chain("more than 8 client networks per user in 10m")) as store:
        for number in range(4):
            store.settled(end_of(f"m{number}", 1, "bob@example.net"))
        with open_for_admin(str(place)) as connection, admin.change(connection, "root") as change:
            account_rows.put_into_tier(change, ALICE, "regular", BY_HAND)
    assert row(place)["tier"] == "regular"


def test_while_the_database_is_locked_marks_go_on_in_memory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspension holds at once, and all of it is on disk when it is well again, once."""
    monkeypatch.setattr(sturdy_module, "RETRY", 0.002)
    with Store(place, chain("more than 8 client networks per user in 10m")) as store:
        clients = networks(20)
        store.decide(*[ask(client_address=client) for client in clients[:4]])
        with locked(place):
            found = decided(store, *[ask(client_address=client) for client in clients[4:]])
            assert [settled.verdict for settled in found].count("pass") == 4
            assert store.writer.sick
        while store.writer.sick:
            store.settled(ask(sasl_username="bert"))
        assert store.settled(ask()).by == "bans"
    assert row(place)["messages"] == 0  # its suspension began the count anew
    assert len(Disk(place).query("SELECT * FROM suspension")) == 1
    assert len(Disk(place).query("SELECT * FROM event WHERE kind = 'suspend'")) == 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_the_account_is_what_passed(
    place: Path, faulty: type[Faulty], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Against a simple model: commits that fail, changes by hand in between, batches of any size, small caches."""
    monkeypatch.setattr(sturdy_module, "RETRY", 0.0)
    monkeypatch.setattr(accounts_module, "CACHED", 2)
    monkeypatch.setattr(accounts_module, "CACHED_RECIPIENTS", 4)
    monkeypatch.setattr(counters_module, "CACHED", 4)
    chance = random.Random(seed)
    passed: dict[str, int] = {}
    met: set[tuple[str, str]] = set()
    with Store(place, chain("more than 1000 new recipients per user in 1d")) as store:
        for turn in range(60):
            requests = [
                end_of(
                    f"{turn}-{number}",
                    1,
                    f"r{chance.randrange(6)}@example.net",
                    sasl_username=f"u{chance.randrange(5)}",
                )
                for number in range(chance.randrange(1, 6))
            ]
            if chance.random() < 0.3:
                faulty.arm(chance.randrange(1, 6))
            if chance.random() < 0.2:
                with open_for_admin(str(place)) as connection, admin.change(connection, "root") as change:
                    change.put("milestone", Milestone(LOGS_LEARNED, str(turn), "root", change.now, 0))
            for request, settled in zip(requests, decided(store, *requests), strict=True):
                assert settled.verdict == "pass"
                passed[request.account] = passed.get(request.account, 0) + 1
                met.add((request.account, request.recipient))
            faulty.arm(0)
        while store.writer.sick:
            store.settled(ask(sasl_username="other"))
    for user, messages in passed.items():
        assert row(place, user)["messages"] == messages
        marks = json.loads(row(place, user)["marks"])["d0/new recipients"]
        assert len(marks) == len({recipient for owner, recipient in met if owner == user})
    pairs = Disk(place).query("SELECT count(*) FROM correspondent WHERE user LIKE 'u%'")
    assert pairs == [(len(met),)]


def test_recipients_are_forgotten_after_400_days(place: Path) -> None:
    """And not before."""
    with Store(place, chain("more than 1000 new recipients per user in 1d")) as store:
        store.settled(end_of("m", 1, "r@example.net"))
    with open_for_admin(str(place)) as connection:
        (today,) = connection.execute("SELECT max(last_day) FROM correspondent").fetchone()
        connection.execute(
            "INSERT INTO correspondent VALUES ('x', 1, ?), ('x', 2, ?)", (today - 401, today - 399)
        )
        accounts = accounts_module.Accounts()
        assert not accounts.sweep(connection, today * DAY + HOUR)
        assert connection.execute("SELECT recipient FROM correspondent WHERE user = 'x'").fetchall() == [(2,)]


def test_upkeep_leaves_a_row_alone_until_it_is_due_and_the_end_does_not(place: Path) -> None:
    """An idle moment under load must not cost a row for each mail; a crash loses no more than ten seconds all the same."""
    with Store(place, chain("more than 9 recipients per user in 1d")) as store:
        store.settled(ask())
    with open_for_admin(str(place)) as connection:
        accounts = accounts_module.Accounts()
        accounts.read(connection, [ALICE], [])

        def mail(messages: int, now: int) -> None:
            accounts.change(ALICE, accounts.held(ALICE)).messages = messages
            layer = accounts.decided()
            accounts.write(connection, layer, now)
            accounts.written(layer)

        def begin() -> None:
            connection.execute("BEGIN IMMEDIATE")

        mail(1, 100_000)
        mail(2, 100_001)
        assert not accounts.save(begin, connection, 107_000)
        assert row(place)["messages"] == 1
        assert accounts.save(begin, connection, 109_000)
        assert row(place)["messages"] == 2
        assert not accounts.save(begin, connection, 110_000)
        mail(3, 110_001)
        assert accounts.save(begin, connection, 110_002, 0)
        assert not accounts.save(begin, connection, 110_003, 0)
        assert row(place)["messages"] == 3


def test_a_tier_that_was_never_read_is_read_before_it_is_decided_by(place: Path) -> None:
    """A mail without an instance of an account that is not in memory waits for the table, whatever else is known."""
    tiers = Tiers("new", {"new": Tier("new", (parse_limit("1 messages per 1h"),)), "big": Tier("big", ())})
    quota = rule("quota", Check(Options(), Context("quota", "any", SITE, tiers)))
    engine = Engine([ban_rule(), quota])
    with Store(place, engine) as store:
        store.settled(ask(sasl_username="bert", instance=""))
        with open_for_admin(str(place)) as connection, admin.change(connection, "root") as change:
            change.connection.execute(
                "INSERT INTO account VALUES (?, 'big', 'hand', 1, 0, 0, 0, 0, 0, '[]', '', '{}', '{}')",
                (ALICE,),
            )
        assert [store.settled(ask(instance="")).verdict for _ in range(3)] == ["pass"] * 3
        assert store.settled(ask(sasl_username="bert", instance="")).verdict == "refuse"


def test_a_stranger_that_was_never_read_is_read_before_it_counts(place: Path) -> None:
    """The account is in memory, the recipient is not: it is looked up, not taken for new."""
    with Store(place, chain("more than 1 new recipients per user in 1d")) as store:
        learned(place)
        store.settled(end_of("", 1, "a@example.net"))
        with open_for_admin(str(place)) as connection:
            connection.execute(
                "INSERT INTO correspondent VALUES (?, ?, 20000)", (ALICE, digest("b@example.net"))
            )
        assert store.settled(end_of("", 1, "b@example.net")).verdict == "pass"
        assert store.settled(end_of("", 1, "c@example.net")).verdict == "refuse"


def test_a_suspension_that_cannot_be_written_with_its_batch_is_decided_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in writing takes it back in memory; each operation is then run alone, and it holds once."""
    once = iter([True])
    write = ledger_module.Ledger._write_notes

    def broken(self: ledger_module.Ledger, notes: Any) -> None:
        if notes.suspensions and next(once, False):
            raise sqlite3.ProgrammingError("a defect")
        write(self, notes)

    monkeypatch.setattr(ledger_module.Ledger, "_write_notes", broken)
    with Store(place, chain("more than 1 client networks per user in 10m")) as store:
        found = decided(store, *[ask(client_address=client) for client in networks(4)])
        assert [settled.verdict for settled in found].count("pass") == 1
        assert store.settled(ask()).by == "bans"
    assert len(Disk(place).query("SELECT * FROM suspension")) == 1
    assert len(Disk(place).query("SELECT * FROM event WHERE kind = 'suspend'")) == 1


def test_what_is_told_once_is_told_again_only_after_its_time(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that stays used up makes one event, however many accounts do so."""
    monkeypatch.setattr(decider_module, "TOLD", 2)
    with Store(place, Engine([ban_rule(), quota_rule("1 messages per 1h")])) as store:
        for user in ("a", "b", "c"):
            decided(store, *[ask(sasl_username=user) for _ in range(4)])
    rows = Disk(place).query("SELECT subject, count(*) FROM event WHERE kind = 'quota-100%' GROUP BY subject")
    assert sorted(rows) == [(f"{user}@example.org", 1) for user in ("a", "b", "c")]


def test_delivery_results_that_were_fed_are_read_with_the_account(place: Path) -> None:
    """What another program has counted in the table is seen by the first mail."""
    with Store(place, chain("more than 30% failed of at least 20 deliveries per user in 1h")) as store:
        with open_for_admin(str(place)) as connection:
            now = store.writer.clock.now()
            for unit, amount in ((DELIVERIES, 20), (FAILURES, 7)):
                counter = Counter()
                counter.charge((slot_width(HOUR),), amount, now)
                row = ("user", ALICE, unit, counter.pack(), counter.expires(now))
                connection.execute("INSERT INTO counter VALUES (?, ?, ?, ?, ?)", row)
        assert store.settled(ask(sasl_username="bert")).verdict == "pass"
        settled = store.settled(ask())
        assert settled.reason == "suspended: 7 of 20 deliveries failed in 1h"

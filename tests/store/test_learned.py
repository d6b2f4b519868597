"""What is learned does no harm in the database: never over a hand, never back, and the same again is nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.accounts import LOGS_LEARNED
from policyd.steering import Suspension
from policyd.store import admin, learned
from policyd.store.connect import open_for_admin, open_for_daemon
from policyd.store.gathered import Summary
from policyd.store.learned import Written
from policyd.units import DAY, HOUR


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = str(tmp_path / "policyd.db")
    open_for_daemon(path).close()
    return path


@contextlib.contextmanager
def change(path: str) -> Iterator[admin.Change]:
    with open_for_admin(path) as connection, admin.change(connection, "root") as change:
        yield change


def ask(path: str, sql: str, *values: object) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql, values).fetchall()


def put(path: str, user: str, **columns: object) -> None:
    """A row as the daemon or policyctl user left it."""
    row: dict[str, object] = {
        "user": user, "tier": "", "tier_by": "", "tier_since": 5, "probation_until": 0, "first_at": 0, "last_at": 0,
        "messages": 3, "incident_at": 0, "strikes": "[]", "note": "ours", "marks": '{"x":{"a":[1,2]}}', "past": "{}",
    }  # fmt: skip
    row |= columns
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO account ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


def summary(
    user: str, past: dict[str, list[list[int]]] | None = None, first: int = 100, last: int = 200
) -> Summary:
    return Summary(user, first, last, 7, json.dumps(past or {}), "regular", "learned")


def write(path: str, *summaries: Summary) -> Written:
    written = Written()
    with change(path) as under_way:
        learned.write_accounts(under_way, summaries, "regular", written)
    return written


def test_an_account_that_was_never_seen_is_put_into_the_tier(database: str) -> None:
    """With its first and last mail; the daemon is told to read it anew."""
    assert vars(write(database, summary("alice")))["tiers"] == 1
    assert ask(database, "SELECT tier, tier_by, first_at, last_at, messages FROM account") == [
        ("regular", "learned", 100, 200, 0)
    ]
    assert ask(database, "SELECT tbl, key FROM change") == [("account", '["alice"]')]


@pytest.mark.parametrize(
    ("columns", "counted"),
    [
        ({"tier": "verified", "tier_by": "hand"}, "kept"),
        ({"tier": "regular", "tier_by": "promoted"}, "kept"),
        ({"strikes": "[17]"}, "suspended"),
        ({"probation_until": 99}, "suspended"),
        ({"tier": "old", "tier_by": "learned", "strikes": "[17]"}, "suspended"),
    ],
)
def test_a_hand_a_promotion_and_a_suspension_stand(
    database: str, columns: dict[str, object], counted: str
) -> None:
    """Learning gives no tier over one that was given, and none back that a suspension took; what else is known stays."""
    put(database, "alice", **columns)
    before = ask(database, "SELECT tier, tier_by, tier_since, messages, strikes, marks, note FROM account")
    assert vars(write(database, summary("alice")))[counted] == 1
    assert (
        ask(database, "SELECT tier, tier_by, tier_since, messages, strikes, marks, note FROM account")
        == before
    )
    assert ask(database, "SELECT first_at, last_at FROM account") == [(100, 200)]


def test_who_is_suspended_now_learns_into_no_tier(database: str) -> None:
    """Whoever suspended it, a hand too."""
    with change(database) as under_way:
        under_way.put("suspension", Suspension("alice", "", "by hand", "{}", 1, "", "root", under_way.now, 0))
    assert write(database, summary("alice")).suspended == 1
    assert ask(database, "SELECT tier FROM account") == [("",)]


def test_a_learned_tier_follows_the_configuration(database: str) -> None:
    """Another [tiers] learned, and learn again: who was learned goes there."""
    put(database, "alice", tier="old", tier_by="learned")
    assert write(database, summary("alice")).tiers == 1
    assert ask(database, "SELECT tier, tier_by, messages FROM account") == [("regular", "learned", 0)]


def test_the_busiest_window_of_each_day_is_the_larger_one(database: str) -> None:
    """What the daemon saw of a day, and what the log tells of it."""
    put(
        database,
        "alice",
        past='{"recipients/3600000":[[3,10],[4,1]],"messages/60000":[[1,1]]}',
        first_at=150,
        last_at=500,
    )
    write(database, summary("alice", {f"recipients/{HOUR}": [[2, 5], [3, 7], [4, 8]]}))
    ((past, first, last),) = ask(database, "SELECT past, first_at, last_at FROM account")
    assert json.loads(str(past)) == {
        f"recipients/{HOUR}": [[2, 5], [3, 10], [4, 8]],
        "messages/60000": [[1, 1]],
    }
    assert (first, last) == (100, 500)


@settings(max_examples=25)
@given(pairs=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 9)), max_size=12))
def test_recipients_are_known_by_their_newest_day_and_learned_once(
    pairs: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In whatever order days come; the same again changes nothing and tells the daemon nothing."""
    path = str(tmp_path_factory.mktemp("learned") / "policyd.db")
    open_for_daemon(path).close()
    for _ in range(2):
        written = Written()
        with change(path) as under_way:
            learned.write_recipients(under_way, pairs, written)
    newest = {
        (user, recipient): max(d for u, r, d in pairs if (u, r) == (user, recipient))
        for user, recipient, _ in pairs
    }
    assert ask(path, "SELECT * FROM correspondent") == [(*pair, newest[pair]) for pair in sorted(newest)]
    assert not written.anything
    assert len(ask(path, "SELECT * FROM change")) == len({user for user, _, _ in pairs})


def test_nothing_lies_in_the_future(database: str) -> None:
    """A log with a wrong clock must not keep a recipient known for ever, nor make an account's last mail one to come."""
    written = Written()
    with change(database) as under_way:
        now = under_way.now
        learned.write_recipients(under_way, [("alice", 1, now // DAY + 1000)], written)
        learned.write_accounts(
            under_way, [summary("alice", first=now + DAY, last=now + 2 * DAY)], "", written
        )
    assert ask(database, "SELECT last_day FROM correspondent") == [(now // DAY,)]
    assert ask(database, "SELECT first_at, last_at FROM account") == [(now, now)]


def test_the_milestone_is_set_once_and_history_tells_of_each_change(database: str) -> None:
    """Detectors rely on it from then on; learning nothing new leaves no row of history."""
    for times in (1, 1):
        written = Written()
        with change(database) as under_way:
            learned.conclude(under_way, "mail.log", "7 messages", written)
        assert len(ask(database, "SELECT * FROM milestone WHERE name = ?", LOGS_LEARNED)) == times
        assert ask(database, "SELECT action, subject, detail FROM history") == [
            ("learn", "mail.log", "7 messages")
        ]

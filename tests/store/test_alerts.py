"""Alerts on disk: one exchange is one transaction, and a restart finds what was handed over."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policyd.alert import GIVEN_UP, RETRY, SENT, Alert, Event, Told
from policyd.alertbook import Changes
from policyd.store import alerts
from policyd.store.alerts import Exchange, event_row, rows_of
from policyd.store.connect import open_for_daemon
from policyd.units import DAY, HOUR
from policyd.window import Counter, slot_width
from tests.fakes import Disk, Store, end_of, engine, quota_rule

NOTHING = Changes({}, {}, {})


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_for_daemon(str(tmp_path / "policyd.db"))
    yield connection
    connection.close()


def exchange(
    events: tuple[Event, ...] = (),
    changes: Changes = NOTHING,
    cursor: int = 0,
    taken: int = 0,
    load: bool = False,
    prune: int = 0,
) -> Exchange:
    return Exchange([event_row(event) for event in events], rows_of(changes), cursor, taken, load, prune)


def event(kind: str = "suspend", at: int = 1, **facts: Any) -> Event:
    return Event(0, at, at + 1000, kind, "alice@example.org", False, facts)


def alert(uid: str = "a1", at: int = 5, **given: Any) -> Alert:
    return Alert(uid, "mail", "suspend", "alice@example.org", False, {"x": ["ü\n"]}, 1, at, 6, **given)


def test_an_exchange_writes_and_reads(connection: sqlite3.Connection) -> None:
    """What is handed over is found by the next daemon: what waits, what was told, what was stopped, how far it was."""
    found = exchange((event(ref="7F3K2"),)).run(connection)
    (read,) = found.events
    assert (read.id, read.kind, dict(read.facts)) == (1, "suspend", {"ref": "7F3K2"})
    assert found.stored is None
    changes = Changes(
        {"a1": alert(tries=2, error="no"), "a2": alert("a2", state=SENT)},
        {("mail", "suspend", "alice@example.org"): Told(5, True, 2, 3)},
        {"web": (7, "answered 410 Gone")},
    )
    found = exchange(changes=changes, taken=1, load=True).run(connection)
    assert (found.cursor, found.events) == (1, [])
    assert found.stored is not None
    assert [(each.uid, each.facts, each.tries, each.stored) for each in found.stored.alerts] == [
        ("a1", {"x": ["ü\n"]}, 2, True)
    ]
    assert found.stored.told == changes.told
    assert found.stored.stopped == changes.stopped
    gone = Changes({}, dict.fromkeys(changes.told), {"web": None})
    found = exchange(changes=gone, cursor=1, taken=1, load=True).run(connection)
    assert found.stored is not None
    assert (found.stored.told, found.stored.stopped) == ({}, {})


def test_nothing_to_write_writes_nothing(connection: sqlite3.Connection) -> None:
    """A look each second must not cost a commit each second."""
    exchange((event(),)).run(connection)
    before = connection.total_changes
    connection.execute("PRAGMA query_only = ON")
    assert len(exchange().run(connection).events) == 1
    assert connection.total_changes == before


def test_a_failed_exchange_leaves_nothing(connection: sqlite3.Connection) -> None:
    """All or nothing: an event that is in hand again must not be on disk too."""
    bad = exchange((event(),))._replace(events=[event_row(event()), (None,) * 6])
    with pytest.raises(sqlite3.IntegrityError):
        bad.run(connection)
    assert not connection.in_transaction
    assert exchange().run(connection).events == []


def test_the_cursor_of_another_database_says_nothing(connection: sqlite3.Connection) -> None:
    """A new database whose events are counted from 1 again: none of them is taken for one that was told."""
    exchange((event(), event(at=2))).run(connection)
    found = exchange(cursor=500, taken=600).run(connection)
    assert found.cursor == 0
    assert len(found.events) == 2


def test_facts_that_are_none(connection: sqlite3.Connection) -> None:
    """Whatever another program wrote there: it is told of, in bounds, and stops nothing."""
    for facts in ("no json", "[1]", '{"x": "' + "y" * alerts.MOST_FACTS + '"}'):
        connection.execute(
            "INSERT INTO event (at, wall_at, kind, subject, resolved, facts) VALUES (1, 1, 'detect', 'a', 0, ?)",
            (facts,),
        )
    events = exchange().run(connection).events
    assert [list(each.facts) for each in events] == [["unreadable"]] * 3
    assert all(len(each.facts["unreadable"]) <= 1000 for each in events)


def test_many_events_are_taken_in_turns(connection: sqlite3.Connection) -> None:
    """A flood does not become one long transaction or one long turn of the loop."""
    exchange(tuple(event(at=n) for n in range(alerts.MOST_EVENTS + 1))).run(connection)
    first = exchange().run(connection)
    assert len(first.events) == alerts.MOST_EVENTS
    (last,) = exchange(taken=first.events[-1].id).run(connection).events
    assert last.at == alerts.MOST_EVENTS


def test_old_rows_go_and_what_waits_stays(connection: sqlite3.Connection) -> None:
    """The tables are bounded; an alert that waits, or an event that nobody has taken, is not deleted."""
    changes = Changes({"old": alert("old", state=SENT), "waits": alert("waits")}, {}, {})
    exchange((event(), event()), changes).run(connection)
    exchange(taken=1, prune=100 * DAY).run(connection)
    assert [row[0] for row in connection.execute("SELECT id FROM event")] == [2]
    assert [row[0] for row in connection.execute("SELECT uid FROM alert")] == ["waits"]


def test_one_that_was_given_up_can_wait_again(connection: sqlite3.Connection) -> None:
    """policyctl alert retry ID: the daemon finds it among what waits when it takes the event."""
    given_up = alert(state=GIVEN_UP, done_at=9)
    exchange(changes=Changes({"a1": given_up}, {}, {})).run(connection)
    connection.execute("BEGIN")
    alerts.wait_again(connection, given_up, 77)
    alerts.put_event(connection, event(RETRY))
    connection.execute("COMMIT")
    found = exchange().run(connection)
    assert found.stored is not None
    assert [(each.uid, each.at) for each in found.stored.alerts] == [("a1", 77)]


def test_a_suspension_is_told_with_how_much_got_out(connection: sqlite3.Connection) -> None:
    """From the counters, as far as the account's mail is counted; a damaged one stops nothing."""
    counter = Counter()
    counter.charge([slot_width(DAY)], 12, 1_000)
    put = "INSERT INTO counter (scope, value, unit, cells, expires_at) VALUES ('user', ?, ?, ?, 0)"
    connection.execute(put, ("alice@example.org", "recipients/external", counter.pack()))
    connection.execute(put, ("alice@example.org", "messages", b"damaged"))
    connection.execute(put, ("alice@example.org", "bytes", counter.pack()))
    events = (
        exchange((event(at=2_000), event("detect", at=DAY * 3), event("quota-80%", at=2_000)))
        .run(connection)
        .events
    )
    assert [each.facts.get("passed") for each in events] == [{"recipients": 12}, {"recipients": 0}, None]


def test_each_limit_of_an_account_is_told_for_itself(tmp_path: Path) -> None:
    """That the hour is nearly used up does not keep it from being told that the day is."""
    place = tmp_path / "policyd.db"
    with Store(place, engine(quota_rule("10 messages per 1h", "11 messages per 1d"))) as store:
        for number in range(12):
            store.settled(end_of(f"m{number}", 1))
    rows = Disk(place).query("SELECT kind, facts FROM event ORDER BY id")
    assert [(kind, json.loads(facts)["window"]) for kind, facts in rows] == [
        ("quota-80%", HOUR),
        ("quota-80%", DAY),
        ("quota-100%", HOUR),
    ]

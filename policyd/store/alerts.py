"""Alerts on disk: written and read by the writer's thread in one short transaction, read by policyctl."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from policyd.alert import GIVEN_UP, RETRY, WAITS, Alert, Event, Told
from policyd.alertbook import Changes
from policyd.units import DAY
from policyd.window import Counter

Row = tuple[Any, ...]

#: Events that are taken at once.
MOST_EVENTS = 200
#: How long events, and alerts that are done, are kept at the most, ms, and how many rows of each.
KEEP, KEEP_ROWS = 90 * DAY, 20_000
#: Rows deleted at once.
STEP_ROWS = 500
#: Events that are told with how much got out before.
_ABOUT_ACCOUNTS = frozenset({"suspend", "detect"})
#: The longest facts that are taken, octets of JSON.
MOST_FACTS = 32_768

_COLUMNS = (
    "uid, channel, kind, subject, resolved, facts, count, at, wall_at, tries, next_try, error, state, done_at"
)
_PUT = f"INSERT OR REPLACE INTO alert ({_COLUMNS}) VALUES ({', '.join('?' * 14)})"
_EVENT = "INSERT INTO event (at, wall_at, kind, subject, resolved, facts) VALUES (?, ?, ?, ?, ?, ?)"


class Stored(NamedTuple):
    """What is on disk of alerts that wait, and of what was told."""

    alerts: list[Alert]
    told: dict[tuple[str, str, str], Told]
    stopped: dict[str, tuple[int, str]]


class Found(NamedTuple):
    """What an exchange found."""

    #: Only if it was asked for.
    stored: Stored | None
    #: The cursor before these events, and the events after it.
    cursor: int
    events: list[Event]


class Rows(NamedTuple):
    """Changes as they are written."""

    alerts: list[Row]
    told: list[Row]
    not_told: list[Row]
    stopped: list[Row]
    not_stopped: list[Row]


class Exchange(NamedTuple):
    """What the daemon hands over at one occasion, and what it wants to know."""

    #: What came from the daemon itself, to be put among the events.
    events: list[Row]
    changes: Rows
    #: The cursor that is known, and to where events were taken since.
    cursor: int
    taken: int
    #: Whether what is on disk is wanted too.
    load: bool
    #: Ledger time, if old rows are to be deleted; 0: not now.
    prune: int

    def run(self, connection: sqlite3.Connection) -> Found:
        """Do it, in one transaction where there is something to write.

        :raises sqlite3.Error: nothing was written.
        """
        if self.events or any(self.changes) or self.taken > self.cursor or self.prune:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._write(connection)
                found = self._read(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return found
        return self._read(connection)

    def _write(self, connection: sqlite3.Connection) -> None:
        connection.executemany(_EVENT, self.events)
        write_changes(connection, self.changes)
        if self.taken > self.cursor:
            # Of another database, put in the place of the one that was read, it says nothing.
            connection.execute("UPDATE alert_cursor SET event = ? WHERE event = ?", (self.taken, self.cursor))
        if self.prune:
            _prune(connection, self.prune)

    def _read(self, connection: sqlite3.Connection) -> Found:
        (cursor,) = connection.execute("SELECT event FROM alert_cursor").fetchone()
        rows = connection.execute(
            "SELECT id, at, wall_at, kind, subject, resolved, facts FROM event WHERE id > ? ORDER BY id LIMIT ?",
            (cursor, MOST_EVENTS),
        )
        events = []
        for number, at, wall_at, kind, subject, resolved, text in rows.fetchall():
            facts = _facts(text)
            if kind in _ABOUT_ACCOUNTS and not resolved and "passed" not in facts:
                facts |= _passed(connection, subject, at)
            events.append(Event(number, at, wall_at, kind, subject, bool(resolved), facts))
        again = any(event.kind == RETRY for event in events)
        return Found(read_stored(connection) if self.load or again else None, cursor, events)


def rows_of(changes: Changes) -> Rows:
    """The rows of what changed, as it is at this moment."""
    return Rows(
        [_alert_row(alert) for alert in changes.alerts.values()],
        [
            (*key, told.at, told.open, told.times, told.held)
            for key, told in changes.told.items()
            if told is not None
        ],
        [key for key, told in changes.told.items() if told is None],
        [(channel, *stopped) for channel, stopped in changes.stopped.items() if stopped is not None],
        [(channel,) for channel, stopped in changes.stopped.items() if stopped is None],
    )


def write_changes(connection: sqlite3.Connection, rows: Rows) -> None:
    """Write what changed, within a transaction."""
    connection.executemany(_PUT, rows.alerts)
    connection.executemany(
        "INSERT OR REPLACE INTO alert_told (channel, kind, thing, at, open, times, held) VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows.told,
    )
    connection.executemany(
        "DELETE FROM alert_told WHERE channel = ? AND kind = ? AND thing = ?", rows.not_told
    )
    connection.executemany(
        "INSERT OR REPLACE INTO alert_stopped (channel, at, error) VALUES (?, ?, ?)", rows.stopped
    )
    connection.executemany("DELETE FROM alert_stopped WHERE channel = ?", rows.not_stopped)


def read_stored(connection: sqlite3.Connection) -> Stored:
    """All that a daemon has to know when it starts."""
    told = {
        (channel, kind, thing): Told(at, bool(open_), times, held)
        for channel, kind, thing, at, open_, times, held in connection.execute(
            "SELECT channel, kind, thing, at, open, times, held FROM alert_told"
        )
    }
    stopped = {
        channel: (at, error)
        for channel, at, error in connection.execute("SELECT channel, at, error FROM alert_stopped")
    }
    waiting = connection.execute(
        f"SELECT {_COLUMNS} FROM alert WHERE state = ? ORDER BY at, uid",
        (WAITS,),
    )
    return Stored([_alert(row) for row in waiting], told, stopped)


def alerts(connection: sqlite3.Connection, everything: bool, limit: int) -> list[Alert]:
    """Alerts, newest first; without ``everything`` those that wait or were given up."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM alert WHERE ?1 OR state <> 'sent' ORDER BY at DESC, uid LIMIT ?2",
        (everything, limit),
    )
    return [_alert(row) for row in rows]


def matching(connection: sqlite3.Connection, uid: str) -> list[Alert]:
    """The alerts whose uid begins so, two at the most."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM alert WHERE substr(uid, 1, length(?1)) = ?1 LIMIT 2",
        (uid,),
    )
    return [_alert(row) for row in rows]


def put_event(connection: sqlite3.Connection, event: Event) -> int:
    """Write an event within the caller's transaction; its id."""
    return int(connection.execute(_EVENT, event_row(event)).lastrowid or 0)


def wait_again(connection: sqlite3.Connection, alert: Alert, now: int) -> None:
    """Have one that was given up sent after all; it is ``now`` as if it were new."""
    connection.execute(
        "UPDATE alert SET state = ?, done_at = 0, at = ?, next_try = 0 WHERE uid = ? AND state = ?",
        (WAITS, now, alert.uid, GIVEN_UP),
    )


def _alert_row(alert: Alert) -> Row:
    return (
        *(alert.uid, alert.channel, alert.kind, alert.subject, alert.resolved, _json(alert.facts)),
        *(alert.count, alert.at, alert.wall_at, alert.tries, alert.next_try, alert.error),
        *(alert.state, alert.done_at),
    )


def _alert(row: Row) -> Alert:
    uid, channel, kind, subject, resolved, facts, *others = row
    alert = Alert(uid, channel, kind, subject, bool(resolved), json.loads(facts), *others)
    alert.stored = True
    return alert


def event_row(event: Event) -> Row:
    """The event as it is written."""
    return event.at, event.wall_at, event.kind, event.subject, event.resolved, _json(event.facts)


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=True)


def _facts(text: str) -> dict[str, Any]:
    """The facts of an event as they were written; what is no object, or too long, is said to be so."""
    try:
        facts = json.loads(text) if len(text) <= MOST_FACTS else None
    except ValueError:
        facts = None
    return facts if isinstance(facts, dict) else {"unreadable": text[:1000]}


def _passed(connection: sqlite3.Connection, user: str, now: int) -> dict[str, Any]:
    """How much of the account's mail passed in the day before ``now``, as far as it is counted."""
    most: dict[str, int] = {}
    rows = connection.execute("SELECT unit, cells FROM counter WHERE scope = 'user' AND value = ?", (user,))
    for unit, cells in rows:
        # Without internal mail a unit counts less; what is asked here is all of it.
        name = unit.partition("/")[0]
        if name in ("messages", "recipients"):
            try:
                used = Counter.unpack(cells).used(DAY, now)
            except ValueError:
                # A damaged counter is the ledger's matter.
                continue
            most[name] = max(used, most.get(name, 0))
    return {"passed": dict(sorted(most.items()))} if most else {}


def _prune(connection: sqlite3.Connection, now: int) -> None:
    """Delete some of what is old, or too much; never what waits or was not looked at."""
    connection.execute(
        "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE id <= (SELECT event FROM alert_cursor) "
        "AND (at < ?1 OR id <= (SELECT max(id) FROM event) - ?2) ORDER BY id LIMIT ?3)",
        (now - KEEP, KEEP_ROWS, STEP_ROWS),
    )
    connection.execute(
        "DELETE FROM alert WHERE uid IN (SELECT uid FROM alert WHERE state <> 'waits' AND (at < ?1 OR at < "
        "(SELECT at FROM alert WHERE state <> 'waits' ORDER BY at DESC LIMIT 1 OFFSET ?2)) LIMIT ?3)",
        (now - KEEP, KEEP_ROWS, STEP_ROWS),
    )


def record(alert: Alert, ahead: int) -> dict[str, Any]:
    """An alert for programs; times are wall clock, ms since 1970."""
    found = asdict(alert)
    del found["stored"]
    for name in ("at", "next_try", "done_at"):
        found[name] = found[name] + ahead if found[name] else 0
    return found


def waiting_by_channel(connection: sqlite3.Connection) -> list[tuple[str, int, int, int, str]]:
    """Channel, how many alerts wait, since when (ledger time), the most attempts of one, and its error."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alert'").fetchone() is None:
        return []
    return connection.execute(
        "SELECT channel, count(*), min(at), max(tries), coalesce(max(error), '') FROM alert WHERE state = ? "
        "GROUP BY channel ORDER BY channel",
        (WAITS,),
    ).fetchall()


def stopped(connection: sqlite3.Connection) -> Iterable[tuple[str, int, str]]:
    """Channels that want nothing any more: name, when (ledger time), what they said."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alert_stopped'").fetchone() is None:
        return []
    return connection.execute("SELECT channel, at, error FROM alert_stopped ORDER BY channel").fetchall()

"""policyctl alert: what waits, what was sent, and what an admin is told to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policyd.alert import GIVEN_UP, SENT, Alert
from policyd.alertbook import Changes
from policyd.store.alerts import Exchange, rows_of
from policyd.store.connect import open_for_daemon
from policyd.store.locks import DaemonLock
from tests.cli.place import CONFIG, Place

CHANNELS = '\n[[alert]]\nto = "mailto:root"\nname = "mail"\n'


def alert(uid: str, **given: object) -> Alert:
    base = {
        "channel": "mail",
        "kind": "suspend",
        "subject": "alice@example.org",
        "resolved": False,
        "facts": {"ref": "7F3K2"},
    }
    return Alert(uid, count=1, at=1, wall_at=1, **{**base, **given})  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, CONFIG + CHANNELS)
    found = [
        alert("aaaa1111", tries=3, error="answered 500", next_try=2**42),
        alert("aaaa2222", state=SENT, done_at=9, channel="pager"),
        alert("bbbb3333", state=GIVEN_UP, done_at=9, subject="x\n\x1b[2J"),
        alert("cccc4444", channel="renamed"),
    ]
    changes = Changes({each.uid: each for each in found}, {}, {"mail": (5, "answered 410 Gone")})
    connection = open_for_daemon(str(place.database))
    Exchange([], rows_of(changes), 0, 0, False, 0).run(connection)
    connection.close()
    return place


def test_list(place: Place) -> None:
    """A bare alert lists what waits or was given up, with why; --all has the rest; hostile text is escaped."""
    listed = place.run("alert")
    assert listed.exit_code == 0
    assert "answered 500" in listed.output
    assert "no such channel" in listed.output
    assert "410 Gone" in listed.output
    assert "\x1b" not in listed.output
    assert "aaaa2222" not in listed.output
    assert "aaaa2222" in place.run("alert", "list", "--all").output
    ran = place.ran("--json", "alert", "list", "--all", "--limit", "2")
    assert ran.stdout.count('"uid"') == 2


def test_show(place: Place) -> None:
    """As the channel gets it; the beginning of the id is enough if it is one's alone."""
    shown = place.run("alert", "show", "aaaa1").output
    assert "policyctl release alice@example.org" in shown
    assert "answered 500" in shown
    assert place.run("alert", "show", "aaaa").exit_code == 1
    assert place.run("alert", "show", "zzzz").exit_code == 3
    assert place.json("alert", "show", "bbbb")["state"] == GIVEN_UP


def test_retry(place: Place) -> None:
    """It needs a daemon; names an alert or a channel; one that was sent is not sent again."""
    assert place.run("alert", "retry").exit_code == 4
    lock = DaemonLock(str(place.database))
    try:
        assert place.run("alert", "retry", "aaaa2").exit_code == 1
        assert place.run("alert", "retry", "nothing").exit_code == 3
        assert "did you mean mail" in place.run("alert", "retry", "mial").output
        assert place.run("alert", "retry", "bbbb").exit_code == 0
        assert place.run("alert", "retry", "mail").exit_code == 0
        assert place.run("alert", "retry").exit_code == 0
    finally:
        lock.release()
    assert place.ask("SELECT kind, subject FROM event") == [
        ("retry", "bbbb3333"),
        ("retry", "mail"),
        ("retry", ""),
    ]
    assert place.ask("SELECT state FROM alert WHERE uid = 'bbbb3333'") == [("waits",)]


def test_test_without_channels_or_daemon(tmp_path: Path, place: Place) -> None:
    """Each reason why nobody would be told is said."""
    assert place.run("alert", "test").exit_code == 4
    assert place.run("alert", "test", "none").exit_code == 3
    bare = Place(tmp_path)
    assert bare.run("alert", "test").exit_code == 1
    assert "has no [[alert]]" in bare.run("alert").output


def test_status(place: Place) -> None:
    """What is stuck stands in the status."""
    status = place.run("status").output
    assert "channel mail wants nothing any more" in status
    assert "1 wait for channel renamed, which is not configured any more" in status
    found = {each["channel"]: each for each in json.loads(place.ran("--json", "status").stdout)["alerts"]}
    assert found["mail"]["waiting"] == 1
    assert found["mail"]["stopped"]

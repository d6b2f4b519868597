"""The mirror of the steering tables: equal to a full load after any changes, and resets of usage are noticed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.opinion import CounterKey
from policyd.steering import ROWS, CheckMode, Entry, Grant, SenderRight, Steering, UserLimit
from policyd.store import admin, steering_sync
from policyd.store.connect import open_for_admin, open_for_daemon
from policyd.store.steering_sync import SteeringMirror
from policyd.units import DAY, HOUR
from tests.fakes import Disk, Store, ask, engine, quota_rule

ALICE = "alice@example.org"
UNITS = {unit + suffix for unit in ("messages", "recipients", "bytes") for suffix in ("", "/external")}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_for_daemon(str(tmp_path / "policyd.db"))
    yield connection
    connection.close()


def contents(steering: Steering) -> dict[str, Any]:
    """All that a Steering holds, its indexes too."""
    return {
        **{table: sorted(map(tuple, steering.rows(table))) for table in ROWS},
        "networks": {
            address: [listing.client(address, 1) for listing in (steering.bans, steering.allows)]
            for address in ("192.0.2.7", "192.0.2.200", "2001:db8::1")
        },
        "granted": {user: steering.granted(user, 1) for user in ("a@example.org", "b@example.org")},
        "limits": {
            user: sorted(steering.limits_of(user, (), 1)) for user in ("a@example.org", "b@example.org")
        },
        "modes": {name: steering.mode_of(name, 1) for name in ("*", "quota")},
    }


def loaded(connection: sqlite3.Connection) -> SteeringMirror:
    mirror = SteeringMirror(connection)
    mirror.load()
    return mirror


users = st.sampled_from(("a@example.org", "b@example.org"))
expiries = st.sampled_from((0, 2, DAY))
clients = st.tuples(
    st.just("client"), st.sampled_from(("192.0.2.7", "192.0.2.0/24", "2001:db8::/32", "h.example"))
)
listed = st.one_of(
    clients,
    st.tuples(st.just("sender"), users),
    st.tuples(st.just("domain"), st.sampled_from(("example.org", ".example.org"))),
)
rows: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.builds(
        lambda table, key, end: (table, Entry(*key, "r", "root", 0, end)),
        st.sampled_from(("ban", "allow", "greylist_allow")),
        listed,
        expiries,
    ),
    st.builds(
        lambda user, unit, window, amount, end: (
            "user_limit",
            UserLimit(user, unit, window, amount, "", "root", 0, end),
        ),
        users,
        st.sampled_from(("messages", "bytes")),
        st.sampled_from((HOUR, DAY)),
        st.integers(-1, 3),
        expiries,
    ),
    st.builds(
        lambda number, user, amount, end: (
            "user_grant",
            Grant(number, user, "messages", amount, "", "root", 0, end),
        ),
        st.integers(1, 4),
        users,
        st.integers(1, 9),
        expiries,
    ),
    st.builds(
        lambda name, mode, end: ("check_mode", CheckMode(name, mode, "", "root", 0, end)),
        st.sampled_from(("*", "quota")),
        st.sampled_from(("shadow", "off")),
        expiries,
    ),
    st.builds(
        lambda user, sender, end: ("sender_right", SenderRight(user, sender, "", "root", 0, end)),
        users,
        st.sampled_from(("", "@example.net", "c@example.net")),
        expiries,
    ),
)
changes = st.lists(
    st.tuples(st.sampled_from(("put", "drop", "raw", "look", "prune", "rollback")), rows), max_size=25
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(changes)
def test_after_any_changes_the_mirror_equals_a_full_load(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, tuple[str, Any]]]
) -> None:
    """Put, replaced, dropped, rolled back, with the change table pruned at any moment."""
    connection = open_for_daemon(str(tmp_path_factory.mktemp("mirror") / "policyd.db"))
    try:
        mirror = loaded(connection)
        for kind, (table, row) in changes:
            key = admin.key_of(table, row)
            if kind in ("put", "rollback"):
                with admin.change(connection, "root", dry_run=kind == "rollback") as change:
                    change.put(table, row)
            elif kind == "drop":
                with admin.change(connection, "root") as change:
                    change.drop(table, *key)
            elif kind == "raw":
                columns, marks = ", ".join(row._fields), ", ".join("?" * len(row))
                connection.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", row)
            elif kind == "prune":
                connection.execute("DELETE FROM change")
            else:
                mirror.refresh()
                assert contents(mirror.steering) == contents(loaded(connection).steering)
        mirror.refresh()
        assert contents(mirror.steering) == contents(loaded(connection).steering)
        assert mirror.steering.generation == loaded(connection).steering.generation
    finally:
        connection.close()


def test_changed_keys_move_with_their_row(connection: sqlite3.Connection) -> None:
    """An update of the key columns tells of both."""
    mirror = loaded(connection)
    connection.execute("INSERT INTO ban VALUES ('user', 'a@example.org', '', 'root', 0, 0)")
    connection.execute("INSERT INTO user_grant VALUES (7, 'a@example.org', 'messages', 5, '', 'root', 0, 0)")
    mirror.refresh()
    connection.execute("UPDATE ban SET value = 'b@example.org'")
    connection.execute("UPDATE user_grant SET user = 'b@example.org', id = 8")
    mirror.refresh()
    assert contents(mirror.steering) == contents(loaded(connection).steering)
    assert mirror.steering.granted("a@example.org", 1) == {}


def test_many_changes_are_loaded_anew(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each reset among them is told all the same."""
    monkeypatch.setattr(steering_sync, "MOST", 10)
    mirror = loaded(connection)
    for number in range(25):
        connection.execute(
            "INSERT INTO ban VALUES ('user', ?, '', 'root', 0, 0)", (f"u{number}@example.org",)
        )
    with admin.change(connection, "root") as change:
        change.reset_usage(ALICE)
    reset = mirror.refresh()
    assert contents(mirror.steering) == contents(loaded(connection).steering)
    assert {key.unit for key in reset} == UNITS
    assert {key[:2] for key in reset} == {("user", ALICE)}
    assert mirror.refresh() == []


def test_a_reset_that_was_read_is_not_lost_when_the_rest_cannot_be(connection: sqlite3.Connection) -> None:
    """The next attempt tells of it again."""
    mirror = loaded(connection)
    with admin.change(connection, "root") as change:
        change.reset_usage(ALICE)
    connection.execute("INSERT INTO ban VALUES ('user', ?, '', 'root', 0, 0)", (ALICE,))
    connection.execute("ALTER TABLE ban RENAME TO away")
    with pytest.raises(sqlite3.OperationalError):
        mirror.refresh()
    connection.execute("ALTER TABLE away RENAME TO ban")
    assert CounterKey("user", ALICE, "messages/external") in mirror.refresh()
    assert mirror.steering.bans.exact("user", ALICE, 1) is not None


def test_what_cannot_be_read_leaves_what_is_known(connection: sqlite3.Connection) -> None:
    """Known bans hold."""
    connection.execute("INSERT INTO ban VALUES ('user', ?, '', 'root', 0, 0)", (ALICE,))
    mirror = loaded(connection)
    connection.execute("DROP TABLE allow")
    with pytest.raises(sqlite3.OperationalError):
        mirror.load()
    assert mirror.steering.bans.exact("user", ALICE, 1) is not None


def test_an_older_file_in_its_place_is_loaded(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """A restored backup has a smaller generation."""
    connection.execute("INSERT INTO ban VALUES ('user', ?, '', 'root', 0, 0)", (ALICE,))
    connection.execute("INSERT INTO ban VALUES ('user', 'b@example.org', '', 'root', 0, 0)")
    mirror = loaded(connection)
    other = open_for_daemon(str(tmp_path / "other.db"))
    try:
        other.execute("INSERT INTO ban VALUES ('user', 'c@example.org', '', 'root', 0, 0)")
        mirror.connection = other
        mirror.refresh()
        assert contents(mirror.steering) == contents(loaded(other).steering)
    finally:
        other.close()


def test_a_reset_of_usage_is_noticed_by_a_running_writer(tmp_path: Path) -> None:
    """Its copy of the counter goes; otherwise the next count would write the old one back."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(quota_rule("3 messages per 1h"))) as store:
        for _ in range(3):
            assert [store.settled(ask()).verdict for _ in range(4)] == ["pass"] * 3 + ["refuse"]
            with open_for_admin(str(path)) as connection, admin.change(connection, "root") as change:
                change.reset_usage(ALICE)
        store.settled(ask())
    assert Disk(path).used("messages/external") == 1

"""Steering data changed by hand: whole transactions, told to the daemon by the change table alone."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.errors import StoreBusy
from policyd.opinion import CounterKey
from policyd.steering import TABLES, CheckMode, Entry, Grant, Row, SenderRight, UserLimit
from policyd.store import admin, dump
from policyd.store.clock import ledger_now
from policyd.store.connect import open_for_admin, open_for_daemon
from policyd.store.steering_sync import SteeringMirror

BAN = Entry("user", "alice@example.org", "", "root", 1, 0)


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = str(tmp_path / "policyd.db")
    open_for_daemon(path).close()
    return path


@pytest.fixture
def connection(database: str) -> Iterator[sqlite3.Connection]:
    with open_for_admin(database) as connection:
        yield connection


def count(connection: sqlite3.Connection) -> tuple[int, ...]:
    row: tuple[int, ...] = connection.execute(
        "SELECT (SELECT count(*) FROM ban), (SELECT count(*) FROM history), (SELECT count(*) FROM change)"
    ).fetchone()
    return row


def test_a_change_is_whole(connection: sqlite3.Connection) -> None:
    """Row, history and the note to the daemon are committed together."""
    with admin.change(connection, "ruth", "phished") as change:
        assert change.put("ban", BAN) is None
        change.record("ban user", BAN.value, "")
    assert count(connection) == (1, 1, 1)
    assert not connection.in_transaction


def test_an_exception_rolls_back(connection: sqlite3.Connection) -> None:
    """Nothing of a change that fails half-way is left, and the connection is usable."""

    def half() -> None:
        with admin.change(connection, "ruth") as change:
            change.put("ban", BAN)
            change.record("ban user", BAN.value, "")
            raise LookupError

    with pytest.raises(LookupError):
        half()
    assert count(connection) == (0, 0, 0)
    with admin.change(connection, "ruth") as change:
        change.put("ban", BAN)
    assert count(connection) == (1, 0, 1)


def test_a_dry_run_rolls_back(connection: sqlite3.Connection) -> None:
    """It does everything, sees its own effect, and leaves nothing."""
    with admin.change(connection, "ruth", dry_run=True) as change:
        change.put("ban", BAN)
        assert change.drop("ban", *BAN[:2]) == BAN
    assert count(connection) == (0, 0, 0)


def test_a_value_that_sqlite_refuses(connection: sqlite3.Connection) -> None:
    """A kind that the schema does not know changes nothing."""

    def wrong() -> None:
        with admin.change(connection, "ruth") as change:
            change.put("ban", BAN)
            change.put("ban", BAN._replace(kind="recipient"))

    with pytest.raises(sqlite3.IntegrityError):
        wrong()
    assert count(connection) == (0, 0, 0)


def test_a_locked_database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody else's transaction does not end, a change fails with a clear error."""
    monkeypatch.setattr("policyd.store.connect.ADMIN_BUSY", 20)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with (
        pytest.raises(StoreBusy, match="locked"),
        open_for_admin(database) as connection,
        admin.change(connection, "ruth"),
    ):
        raise AssertionError("it must not begin")
    other.execute("ROLLBACK")
    other.close()


def test_a_reset_names_the_counters(database: str, connection: sqlite3.Connection) -> None:
    """The counters of one account go, and whoever mirrors the tables is told which."""
    for scope, value in (
        ("user", "alice@example.org"),
        ("user", "bob@example.org"),
        ("sender", "alice@example.org"),
    ):
        connection.execute("INSERT INTO counter VALUES (?, ?, 'messages', x'', 1)", (scope, value))
    mirror = SteeringMirror(connection)
    mirror.load()
    with admin.change(connection, "ruth") as change:
        assert change.reset_usage("alice@example.org") == 1
    assert CounterKey("user", "alice@example.org", "messages") in mirror.refresh()
    left = connection.execute("SELECT scope, value FROM counter ORDER BY scope, value").fetchall()
    assert left == [("sender", "alice@example.org"), ("user", "bob@example.org")]


def test_numbers_of_grants(connection: sqlite3.Connection) -> None:
    """Each new grant has a number that no other one in force has."""
    with admin.change(connection, "ruth") as change:
        for _ in range(3):
            change.put("user_grant", Grant(change.next_grant(), "a@b", "bytes", 1, "", "ruth", 1, 0))
        change.drop("user_grant", 2)
        assert change.next_grant() == 4
        assert [grant.id for grant in admin.rows(connection, "user_grant", change.now)] == [1, 3]


def test_ends(connection: sqlite3.Connection) -> None:
    """What lasts ends in ledger time; what has ended is not found, and is deleted with the next change."""
    with admin.change(connection, "ruth") as change:
        assert change.expires(0) == 0
        assert change.expires(1000) == change.now + 1000
        change.put("ban", BAN._replace(expires_at=change.now))
        assert change.find("ban", *BAN[:2]) is None
        assert change.put("ban", BAN._replace(value="bob@example.org")) is None
        assert connection.execute("SELECT count(*) FROM ban").fetchone() == (1,)


TEXT = st.sampled_from(["", "a@b", "c@d", "192.0.2.0/24", "\u00fc", "'; DROP TABLE ban; --", "%s", "\x00"])
END = st.sampled_from([0, 2**52])
COMMON = (TEXT, TEXT, st.just(1), END)
ROW: st.SearchStrategy[tuple[str, Row]] = st.one_of(
    st.tuples(st.just("ban"), st.builds(Entry, st.sampled_from(["user", "client"]), TEXT, *COMMON)),
    st.tuples(st.just("allow"), st.builds(Entry, st.sampled_from(["sender", "client"]), TEXT, *COMMON)),
    st.tuples(
        st.just("user_limit"),
        st.builds(
            UserLimit,
            TEXT,
            st.sampled_from(["messages", "bytes"]),
            st.sampled_from([1000, 2000]),
            st.just(-1),
            *COMMON,
        ),
    ),
    st.tuples(
        st.just("user_grant"),
        st.builds(Grant, st.integers(1, 4), TEXT, st.just("bytes"), st.just(5), *COMMON),
    ),
    st.tuples(st.just("sender_right"), st.builds(SenderRight, TEXT, TEXT, *COMMON)),
    st.tuples(
        st.just("greylist_allow"), st.builds(Entry, st.sampled_from(["sender", "client"]), TEXT, *COMMON)
    ),
    st.tuples(st.just("check_mode"), st.builds(CheckMode, TEXT, st.sampled_from(["off", "shadow"]), *COMMON)),
)


@given(st.lists(st.tuples(st.booleans(), ROW, st.booleans()), max_size=12))
def test_the_daemon_learns_of_every_change(steps: list[tuple[bool, tuple[str, Row], bool]]) -> None:
    """After any changes, dry runs among them, a mirror that applied them equals one loaded anew; so do the tables."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/policyd.db"
        open_for_daemon(path).close()
        expected: dict[tuple[str, tuple[str | int, ...]], Row] = {}
        with open_for_admin(path) as connection:
            mirror = SteeringMirror(connection)
            mirror.load()
            for put, (table, row), dry_run in steps:
                key = admin.key_of(table, row)
                with admin.change(connection, "ruth", dry_run=dry_run) as change:
                    if put:
                        assert change.put(table, row) == expected.get((table, key))
                    else:
                        assert change.drop(table, *key) == expected.get((table, key))
                if not dry_run:
                    expected.pop((table, key), None)
                    if put:
                        expected[table, key] = row
                mirror.refresh()
            fresh = SteeringMirror(connection)
            fresh.load()
            now = ledger_now(connection)
            for table in TABLES:
                want = {key: row for (of, key), row in expected.items() if of == table}
                for rows in (
                    mirror.steering.rows(table),
                    fresh.steering.rows(table),
                    admin.rows(connection, table, now),
                ):
                    assert {admin.key_of(table, row): row for row in rows} == want


def test_a_dump_is_of_one_moment(database: str, connection: sqlite3.Connection) -> None:
    """What another policyctl changes while it is written is not in it; the next one has it."""
    with admin.change(connection, "ruth") as change:
        change.put("ban", BAN)
    lines = dump.dump(connection)
    first = next(lines)
    other = sqlite3.connect(database, isolation_level=None)
    with admin.change(other, "bob") as change:
        change.put("allow", Entry("sender", "a@b", "", "bob", 1, 0))
    other.close()
    assert [first, *lines] == [first]
    assert not connection.in_transaction
    assert len(list(dump.dump(connection))) == 2


@pytest.mark.parametrize(
    "text",
    ["20 recipients per 1h", "0 messages per 1d", "20MB per 1d", "1500B per 1d", "unlimited bytes per 7d"],
)
def test_a_limit_reads_back(text: str) -> None:
    """What is listed can be set again."""
    limit = dump.parse_own_limit(text)
    assert dump.limit_text(limit.unit, limit.window, limit.amount) == text


@given(st.text(max_size=40))
def test_any_text_as_a_limit(text: str) -> None:
    """A wrong limit is a ValueError with a text, never anything else."""
    try:
        limit = dump.parse_own_limit(text)
    except ValueError as error:
        limit = None
        text = str(error)
    assert text
    assert limit is None or limit.window >= 1000

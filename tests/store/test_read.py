"""Reading the database for policyctl."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.opinion import CounterKey
from policyd.store import clock, contents, known, read
from policyd.store.connect import open_for_admin, open_for_reading
from policyd.store.read import Wanted
from policyd.units import DAY, HOUR, MINUTE
from tests.sample_database import Sample


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sample]:
    sample = Sample(tmp_path / "policyd.db")
    yield sample
    sample.close()


@pytest.fixture
def reading(sample: Sample) -> Iterator[sqlite3.Connection]:
    with open_for_reading(sample.path) as connection:
        yield connection


def test_decisions_come_newest_first_over_all_partitions(sample: Sample, reading: sqlite3.Connection) -> None:
    """A limit gives the newest rows, wherever they are."""
    for _ in range(3):
        sample.ask()
        sample.ask(sasl_username="bob")
        sample.next_partition()
    sample.ask(protocol_state="CONNECT", instance="", queue_id="", sasl_username="", sasl_method="")
    found = read.decisions(reading, Wanted(), 5)
    assert [row.id for row in found] == [7, 6, 5, 4, 3]
    assert [row.user for row in read.decisions(reading, Wanted(user="alice@example.org"), 10)] == [
        "alice@example.org"
    ] * 3


def test_each_filter_finds_its_row_and_no_other(sample: Sample, reading: sqlite3.Connection) -> None:
    """Filters mean what they say, whatever the case of an address and the spelling of a network."""
    mine = sample.ask(
        sender="Alice.B@Example.ORG", client_address="2001:db8:1:2::9", recipient="Carol@Example.com"
    )
    other = sample.ask(
        sasl_username="bob", sender="bob@example.org", client_address="198.51.100.1", client_name="unknown"
    )
    for wanted in (
        Wanted(sender="alice.b@example.org"),
        Wanted(user="alice@example.org", sender="@example.org"),
        Wanted(recipient="carol@example.com"),
        Wanted(recipient="@EXAMPLE.com"),
        Wanted(client="2001:db8:1:2::/64"),
        Wanted(client="2001:0db8:1:2:0::9"),
        Wanted(client="laptop.example.net", user="alice@example.org"),
        Wanted(queue_id=mine.request.queue_id),
        Wanted(instance=mine.request.instance),
    ):
        assert [row.id for row in read.decisions(reading, wanted, 10)] == [mine.id], wanted
    assert [row.id for row in read.decisions(reading, Wanted(client="198.51.100.0/24"), 10)] == [other.id]
    assert [row.id for row in read.decisions(reading, Wanted(client="198.51.100.1"), 10)] == [other.id]


def test_a_value_is_never_a_piece_of_sql(sample: Sample, reading: sqlite3.Connection) -> None:
    """Quotes and wildcards in a filter are text."""
    sample.ask()
    for text in ("' OR 1=1 --", "%", "_", "*", '"', "{table}", ":user"):
        for field in (
            "user",
            "sender",
            "recipient",
            "client",
            "action",
            "check",
            "ref",
            "queue_id",
            "instance",
        ):
            assert read.decisions(reading, Wanted(**{field: text}), 10) == []


def test_a_refusal_is_found_by_its_reference_action_and_check(
    sample: Sample, reading: sqlite3.Connection
) -> None:
    """What the sender quotes leads to the row."""
    refused = sample.ask(recipient="", recipient_count="6")
    assert refused.settled.ref is not None
    for wanted in (
        Wanted(ref=refused.settled.ref),
        Wanted(action="refuse"),
        Wanted(action="550"),
        Wanted(check="quota"),
    ):
        found = read.decisions(reading, wanted, 10)
        assert [row.id for row in found] == [refused.id], wanted
        assert found[0].action == str(refused.settled.answer)
    assert read.decisions(reading, Wanted(action="5"), 10) == []


def test_shadow_verdicts_are_found_by_their_check(tmp_path: Path) -> None:
    """What a check in shadow would have answered is found under its name."""
    sample = Sample(tmp_path / "shadow.db", mode="shadow")
    sample.ask(recipient="", recipient_count="6")
    with open_for_reading(sample.path) as connection:
        assert [row.would[:10] for row in read.decisions(connection, Wanted(check="quota"), 9)] == [
            "quota: 550"
        ]
        assert read.decisions(connection, Wanted(check="uota"), 9) == []
    sample.close()


def test_since_and_until_cut_exactly(sample: Sample, reading: sqlite3.Connection) -> None:
    """``since`` is in, ``until`` is out, across partitions and for rows of the same millisecond."""
    connection = sample.connection
    for turn in range(8):
        if turn in (3, 6):
            sample.next_partition(10 * DAY)
        sample.ask(10 * DAY)
    identifiers = [row.id for row in reversed(read.decisions(reading, Wanted(), 99))]
    for turn, identifier in enumerate(identifiers):
        for table in ("decision_1", "decision_2", "decision_3"):
            connection.execute(f"UPDATE {table} SET at = ? WHERE id = ?", (1000 + turn // 2 * 10, identifier))
    connection.execute("UPDATE decision_partition SET opened_at = 1000, closed_at = 1010 WHERE number = 1")
    connection.execute("UPDATE decision_partition SET opened_at = 1010, closed_at = 1020 WHERE number = 2")
    connection.execute("UPDATE decision_partition SET opened_at = 1030 WHERE number = 3")
    times = [1000 + turn // 2 * 10 for turn in range(8)]
    for since in (0, 999, 1000, 1001, 1010, 1020, 1025, 1030, 1031):
        for until in (0, 1000, 1005, 1010, 1011, 1030, 1031, 2000):
            expected = [at for at in times if at >= since and (not until or at < until)]
            found = read.decisions(reading, Wanted(since=since, until=until), 99)
            assert [row.at for row in reversed(found)] == expected, (since, until)


def test_groups_add_up_over_partitions(sample: Sample, reading: sqlite3.Connection) -> None:
    """A group is counted whole, and recipients count once for a message that passed."""
    first = sample.ask(recipient="", recipient_count="3")
    sample.next_partition()
    sample.ask(instance=first.request.instance, recipient="", recipient_count="3")
    sample.ask(recipient="", recipient_count="6")
    groups = read.grouped(reading, Wanted(direction="submission"), "user")
    assert [(g.value, g.decisions, g.passed, g.refused, g.recipients) for g in groups] == [
        ("alice@example.org", 3, 2, 1, 3)
    ]
    assert {g.value: g.decisions for g in read.grouped(reading, Wanted(), "action")} == {"DUNNO": 2, "550": 1}
    for by in read.GROUPS:
        assert sum(group.decisions for group in read.grouped(reading, Wanted(), by)) == 3


def test_rows_after_an_id_are_what_follow_prints(sample: Sample, reading: sqlite3.Connection) -> None:
    """Asking for what came after the newest gives only that."""
    sample.ask()
    newest = read.newest_id(reading)
    assert read.decisions(reading, Wanted(after=newest), 9) == []
    sample.next_partition()
    assert read.newest_id(reading) == newest
    later = sample.ask()
    assert [row.id for row in read.decisions(reading, Wanted(after=newest), 9)] == [later.id]


def test_stages_that_arrived_are_counted_and_a_cut_is_told(
    sample: Sample, reading: sqlite3.Connection
) -> None:
    """The summary says whether it saw the whole span."""
    sample.ask(3 * HOUR)
    for _ in range(3):
        sample.ask(5 * MINUTE, protocol_state="RCPT")
    since = clock.ledger_now(reading) - HOUR
    seen, complete = read.arrived(reading, since, 1000)
    assert [(a.direction, a.stage, a.verdict, a.times) for a in seen] == [("submission", "RCPT", "pass", 3)]
    assert complete
    assert read.arrived(reading, since, 3)[1]
    seen, complete = read.arrived(reading, since, 2)
    assert [a.times for a in seen] == [2]
    assert not complete


def test_accounts_are_known_by_counts_steering_or_decisions(
    sample: Sample, reading: sqlite3.Connection
) -> None:
    """Whoever was counted, steered or seen is known; whoever was not gets names that resemble."""
    sample.ask()
    sample.ask(sasl_username="carol", protocol_state="RCPT")
    with open_for_admin(sample.path) as connection:
        connection.execute(
            "INSERT INTO user_limit VALUES ('dave@example.org', 'messages', 1000, 1, '', '', 0, 0)"
        )
    for user in ("alice@example.org", "carol@example.org", "dave@example.org"):
        assert known.is_known(reading, user), user
    assert not known.is_known(reading, "alcie@example.org")
    assert known.similar(reading, "alcie@example.org")[0] == "alice@example.org"
    assert known.similar(reading, "dave") == ["dave@example.org"]
    assert known.similar(reading, "zzz@nowhere.test") == []


def test_a_counter_is_what_the_ledger_counted(sample: Sample, reading: sqlite3.Connection) -> None:
    """The reader sees the counts of mail that passed, and an empty counter for nobody."""
    sample.ask(recipient="", recipient_count="3")
    key = CounterKey("user", "alice@example.org", "recipients/external")
    now = clock.ledger_now(reading)
    assert known.counter(reading, key).used(HOUR, now) == 3
    assert known.counter(reading, key._replace(value="nobody")).used(HOUR, now) == 0
    assert [value for value, _ in known.counters(reading, "user", "recipients/external")] == [
        "alice@example.org"
    ]


def test_sizes_count_rows_and_tables(sample: Sample, reading: sqlite3.Connection) -> None:
    """Sizes add up over the partitions, open and closed."""
    sample.ask()
    sample.next_partition()
    sample.ask()
    sizes = contents.sizes(reading)
    assert (sizes.decisions, sizes.partitions, sizes.counters) == (2, 2, 1)
    assert sizes.oldest_wall > 0
    assert sum(octets for _, octets in contents.table_sizes(reading)) <= sizes.page_size * sizes.pages


def test_problems_of_the_file_are_named(sample: Sample, reading: sqlite3.Connection) -> None:
    """A sound database has none; a damaged counter and a missing partition are named."""
    sample.ask()
    assert contents.problems(reading) == []
    sample.connection.execute("UPDATE counter SET cells = x'0901'")
    sample.connection.execute("DROP VIEW decision")
    sample.connection.execute("ALTER TABLE decision_1 RENAME TO decision_7")
    found = contents.problems(reading, quick=True)
    assert "alice@example.org" in found[0]
    assert found[1:] == ["table decision_1 is missing", "table decision_7 is not in decision_partition"]


def test_the_indexes_of_a_closed_partition_are_used(sample: Sample, reading: sqlite3.Connection) -> None:
    """A look at one account, queue id, instance or reference reads no whole closed partition."""
    sample.ask()
    sample.next_partition()
    for statement in partitions_statements(sample):
        sample.connection.execute(statement)
    plans = []
    reading.set_trace_callback(plans.append)
    for wanted in (Wanted(user="a@b"), Wanted(queue_id="4F"), Wanted(instance="1.2.3"), Wanted(ref="7F3K2")):
        plans.clear()
        read.decisions(reading, wanted, 9)
        (query,) = [plan for plan in plans if "FROM decision_1 WHERE" in plan and "ORDER BY id DESC" in plan]
        plan = " ".join(str(row[3]) for row in sample.connection.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "USING INDEX decision_1_" in plan, (wanted, plan)


def partitions_statements(sample: Sample) -> list[str]:
    from policyd.store import partitions

    return partitions.index_statements(partitions.catalogue(sample.connection)[-1])

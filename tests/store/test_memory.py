"""Remembered facts: what was put is read back, a flood stays within its bound, and what proved itself survives it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.opinion import Memory, MemoryKey
from policyd.store import hand, memory
from policyd.store.connect import open_for_admin, open_for_daemon
from policyd.store.memory import Facts, Memories
from policyd.units import DAY, HOUR, MINUTE

NOW = 1_000 * DAY


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_for_daemon(str(tmp_path / "policyd.db"))
    yield connection
    connection.close()


def key(name: object, kind: str = "greylist") -> MemoryKey:
    return MemoryKey(kind, str(name))


def fact(hits: int = 0, expires_at: int = NOW + DAY) -> Memory:
    return Memory(NOW, NOW, hits, expires_at)


def rows(connection: sqlite3.Connection, kind: str = "greylist") -> dict[str, Memory]:
    return {
        each: Memory(*rest)
        for each, *rest in connection.execute(
            "SELECT key, first_at, last_at, hits, expires_at FROM memory WHERE kind = ?", (kind,)
        )
    }


def commit(connection: sqlite3.Connection, memories: Memories, facts: Facts) -> None:
    """One batch, as the ledger runs it."""
    connection.execute("BEGIN IMMEDIATE")
    memories.read(connection, facts)
    decided = decide(memories, facts)
    memories.write(connection, decided)
    connection.execute("COMMIT")
    memories.written(decided)


def decide(memories: Memories, facts: Facts) -> Facts:
    """What the batch that decides on ``facts`` remembers."""
    for each, new in facts.items():
        memories.put(each, new)
    return memories.decided()


def write_unwritten(connection: sqlite3.Connection, memories: Memories) -> None:
    """The trouble is over."""
    connection.execute("BEGIN IMMEDIATE")
    memories.write(connection, memories.unwritten)
    connection.execute("COMMIT")
    memories.written(memories.unwritten)


def counted(connection: sqlite3.Connection, memories: Memories, now: int = NOW) -> Memories:
    """With all rows counted."""
    for _ in range(1_000):
        if not memories.tend(connection, now):
            return memories
    raise AssertionError("upkeep does not end")


# --- batches -------------------------------------------------------------------------------------------------------------


def test_what_is_put_is_read_back(connection: sqlite3.Connection) -> None:
    """By this batch at once, by the next, and by another daemon after a start."""
    memories = Memories()
    commit(connection, memories, {key(number): fact(number) for number in range(200)})
    assert len(rows(connection)) == 200
    for reader in (memories, Memories()):
        reader.read(connection, [key(5), key(500)])
        assert reader.known([key(5), key(500)], NOW) == {key(5): fact(5)}
    commit(connection, memories, {key(5): fact(6)})
    assert rows(connection)["5"] == fact(6)


def test_what_has_expired_is_not_known(connection: sqlite3.Connection) -> None:
    """To the millisecond, whether or not the row is still there."""
    memories = Memories()
    commit(connection, memories, {key("a"): fact(expires_at=NOW + 1)})
    assert memories.known([key("a")], NOW) == {key("a"): fact(expires_at=NOW + 1)}
    assert memories.known([key("a")], NOW + 1) == {}


def test_nothing_is_read_twice(connection: sqlite3.Connection) -> None:
    """Neither what is there nor what is not; a known request touches no database."""
    memories = Memories()
    memories.read(connection, [key("a"), key("b")])
    assert memories.unread([key("a"), key("b"), key("c")]) == {key("c")}
    memories.put(key("c"), fact())
    assert memories.unread([key("c")]) == set()


def test_what_is_decided_is_seen_by_what_is_decided_after_it(connection: sqlite3.Connection) -> None:
    """Within a batch, by the next batch of the pile, and by the next pile; before anything of it is written."""
    memories = Memories()
    memories.read(connection, [key("a")])
    memories.put(key("a"), fact(1))
    assert memories.of(key("a")) == fact(1)
    writing: Facts = {}
    memories.pile(memories.decided(), writing)
    memories.pile(decide(memories, {key("a"): fact(2)}), writing)
    assert memories.of(key("a")) == fact(2)
    waiting: Facts = {}
    memories.pile(decide(memories, {key("a"): fact(3)}), waiting)
    assert memories.of(key("a")) == fact(3)
    memories.write(connection, writing)
    memories.written(writing)
    assert memories.of(key("a")) == fact(3)
    assert rows(connection) == {"a": fact(2)}
    waiting.clear()
    assert memories.of(key("a")) == fact(2)


def test_what_is_taken_back_was_never_remembered(connection: sqlite3.Connection) -> None:
    """A batch that was decided and not piled, a pile, and one that lies on another: decided again with what the table says."""
    memories = Memories()
    commit(connection, memories, {key("a"): fact(1)})
    decide(memories, {key("a"): fact(2), key("b"): fact(2)})
    lower: Facts = {}
    upper: Facts = {}
    memories.pile(decide(memories, {key("a"): fact(3)}), lower)
    memories.pile(decide(memories, {key("a"): fact(4), key("b"): fact(4)}), upper)
    upper.clear()
    assert memories.of(key("a")) == fact(3)
    lower.clear()
    assert memories.of(key("a")) == fact(1)
    memories.read(connection, [key("b")])
    assert memories.of(key("b")) is None


def test_what_could_not_be_written_is_written_later(connection: sqlite3.Connection) -> None:
    """A decision that stands is remembered through the trouble, and a later one goes over it."""
    memories = Memories()
    for hits in (1, 2):
        pile: Facts = {}
        memories.pile(decide(memories, {key("a"): fact(hits), key(hits): fact(hits)}), pile)
        memories.keep(pile)
        assert memories.of(key("a")) == fact(hits)
    commit(connection, memories, {key("b"): fact(3)})
    write_unwritten(connection, memories)
    assert rows(connection) == {"a": fact(2), "1": fact(1), "2": fact(2), "b": fact(3)}
    assert memories.unwritten == {}


def test_what_waits_for_the_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What expires first is dropped: it costs one mail a delay."""
    monkeypatch.setattr(memory, "UNWRITTEN", 80)
    memories = Memories()
    for number in range(500):
        memories.keep({key(number): fact(expires_at=NOW + number)})
        assert len(memories.unwritten) <= 80
    assert max(memories.unwritten.values()) == memories.of(key(499)) == fact(expires_at=NOW + 499)


def test_memory_is_bounded(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys are asked about; with a sick database, too."""
    monkeypatch.setattr(memory, "CACHED", 100)
    memories = Memories()
    for number in range(40):
        commit(connection, memories, {key(f"{number} {n}"): fact() for n in range(50)})
        memories.trim()
        assert len(memories._cache) <= 150
    for number in range(40):
        memories.read(connection, [key(f"{number} other {n}") for n in range(50)])
        memories.trim()
        assert len(memories._cache) <= 150


def test_what_policyctl_deletes_is_gone(tmp_path: Path, connection: sqlite3.Connection) -> None:
    """The change table tells of it, and then nothing that was read holds any more."""
    memories = Memories()
    commit(connection, memories, {key("a"): fact(), key("b"): fact()})
    before = connection.execute("SELECT count(*) FROM change WHERE tbl = 'memory'").fetchone()[0]
    with open_for_admin(str(tmp_path / "policyd.db")) as admin:
        admin.execute("BEGIN IMMEDIATE")
        assert memory.delete(admin, "greylist", ["a", "nothing"]) == 1
        admin.execute("COMMIT")
    assert connection.execute("SELECT count(*) FROM change WHERE tbl = 'memory'").fetchone()[0] > before
    memories.changed()
    memories.read(connection, [key("a"), key("b")])
    assert memories.known([key("a"), key("b")], NOW) == {key("b"): fact()}


def test_a_failed_transaction_changes_no_count(connection: sqlite3.Connection) -> None:
    """Counts are of what is committed."""
    memories = counted(connection, Memories())
    connection.execute("BEGIN IMMEDIATE")
    decided = {key("a"): fact()}
    memories.write(connection, decided)
    connection.execute("ROLLBACK")
    memories.keep(decided)
    assert memories.count("greylist") == 0
    write_unwritten(connection, memories)
    assert memories.count("greylist") == 1


# --- bounds --------------------------------------------------------------------------------------------------------------


def test_a_flood_stays_within_its_bound(connection: sqlite3.Connection) -> None:
    """At every moment; those that expire last stay, and what passed is another kind and stays whole."""
    memories = counted(connection, Memories(cap=1_000))
    passed = {key(f"known {n}", "greylist-passed"): fact(1, NOW + 35 * DAY) for n in range(500)}
    commit(connection, memories, passed)
    for batch in range(200):
        flood = {
            key(f"{(batch * 31 + n * 7919) % 9973:04} {batch}"): fact(expires_at=NOW + DAY + batch * MINUTE)
            for n in range(50)
        }
        commit(connection, memories, flood)
        there = rows(connection)
        assert len(there) <= 1_000
        if batch >= 20:
            assert len(there) >= 500, "no more is thrown away than has to be"
        assert len(there) == memories.count("greylist")
        newest = {
            f"{(b * 31 + n * 7919) % 9973:04} {b}"
            for b in range(max(0, batch - 8), batch + 1)
            for n in range(50)
        }
        assert set(there) >= newest, "the newest are the last to go"
    assert len(rows(connection, "greylist-passed")) == 500
    assert memories.count("greylist-passed") == 500


def test_a_flood_all_of_one_moment_is_bounded_too(connection: sqlite3.Connection) -> None:
    """Where none expires before the others any may go, but the bound holds."""
    memories = counted(connection, Memories(cap=1_000))
    for batch in range(100):
        commit(connection, memories, {key(f"{n} {batch}"): fact() for n in range(50)})
        assert len(rows(connection)) == memories.count("greylist") <= 1_000


def test_a_start_with_a_full_table_is_counted_by_the_flood_itself(connection: sqlite3.Connection) -> None:
    """No step of upkeep is needed: a writer that never rests keeps the bound, too."""
    for batch in range(10):
        full = {key(f"{n} {batch}"): fact(expires_at=NOW + DAY + batch * HOUR) for n in range(200)}
        commit(connection, Memories(), full)
    memories = Memories(cap=2_000)
    for batch in range(100):
        new = {key(f"{n} new {batch}"): fact(expires_at=NOW + 2 * DAY) for n in range(20)}
        commit(connection, memories, new)
        assert len(rows(connection)) <= 2_000 + 2_000 // memory.ROWS_EACH + 40
    assert len(rows(connection)) == memories.count("greylist") <= 2_000


def test_a_bound_that_was_lowered_is_reached(connection: sqlite3.Connection) -> None:
    """By upkeep alone, in small steps; what expires last stays."""
    memories = Memories()
    commit(
        connection, memories, {key(f"{n:04}"): fact(expires_at=NOW + DAY + n * MINUTE) for n in range(3_000)}
    )
    counted(connection, memories)
    memories.cap = 1_000
    left = 3_000
    while memories.tend(connection, NOW):
        before, left = left, len(rows(connection))
        assert before - left <= memory.STEP_ROWS
    assert 500 <= left <= 1_000
    assert "2999" in rows(connection)
    assert memories.count("greylist") == left


def test_counts_are_exact_while_they_are_taken(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that come and go on either side of the hand are counted once, and where they move."""
    monkeypatch.setattr(memory, "STEP_ROWS", 7)
    commit(connection, Memories(), {key(f"{n:03}"): fact() for n in range(100)})
    memories = Memories(cap=10_000)
    hand = memories._hand("greylist")
    hand.total = 0  # otherwise what is written counts, too
    number = 0
    while memories.tend(connection, NOW):
        number += 1
        commit(
            connection,
            memories,
            {
                key(f"000 {number}"): fact(),
                key(f"099 {number}"): fact(),
                key("050"): fact(expires_at=NOW + DAY + number * HOUR),
            },
        )
    assert number > 10
    there = rows(connection)
    assert memories.count("greylist") == len(there) == 100 + 2 * number
    minutes = [each.expires_at // MINUTE for each in there.values()]
    assert hand.by_minute == {minute: minutes.count(minute) for minute in minutes}


def test_what_has_expired_is_swept_in_small_steps(connection: sqlite3.Connection) -> None:
    """Every kind; no step takes many rows, and none is taken that still holds."""
    for kind in ("a", "b", "c"):
        commit(connection, Memories(), {key(n, kind): fact(expires_at=NOW + n) for n in range(1_000)})
    memories = counted(connection, Memories())
    left = sum(len(rows(connection, kind)) for kind in ("a", "b", "c"))
    assert left == 3 * 999
    while memories.tend(connection, NOW + DAY):
        before, left = left, sum(len(rows(connection, kind)) for kind in ("a", "b", "c"))
        assert 0 <= before - left <= memory.STEP_ROWS
        assert not connection.in_transaction
    assert left == 0
    assert memories.count("a") == 0
    commit(connection, memories, {key("x", "a"): fact(expires_at=NOW + 3 * DAY)})
    assert not memories.tend(connection, NOW + DAY), "not looked at again at once"
    assert len(rows(connection, "a")) == 1


def test_what_others_deleted_is_noticed_within_the_hour(connection: sqlite3.Connection) -> None:
    """The rows are counted anew; until then the bound holds a little earlier."""
    memories = Memories()
    commit(connection, memories, {key(n): fact(expires_at=NOW + 9 * DAY) for n in range(100)})
    counted(connection, memories)
    connection.execute("DELETE FROM memory WHERE key < '5'")
    assert memories.count("greylist") == 100
    counted(connection, memories, NOW + HOUR)
    assert memories.count("greylist") == len(rows(connection)) < 100


def test_a_new_database_is_counted_anew(tmp_path: Path, connection: sqlite3.Connection) -> None:
    """After a damaged one was moved aside nothing of the old counts or facts is left."""
    memories = counted(connection, Memories())
    commit(connection, memories, {key("a"): fact()})
    fresh = open_for_daemon(str(tmp_path / "fresh.db"))
    try:
        memories.reopened()
        memories.read(fresh, [key("a")])
        assert memories.of(key("a")) is None
        assert counted(fresh, memories).count("greylist") == 0
    finally:
        fresh.close()


def test_a_hand_reads_no_more_than_it_looks_at(connection: sqlite3.Connection) -> None:
    """In a table of a million rows, too: the key finds where it goes on."""
    for statement, arguments in ((hand._LOOK, ("a", "b", 5)), (hand._DELETE, ("a", "b", "c", 5))):
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", arguments))
        assert "USING PRIMARY KEY" in plan, plan
        assert "SCAN" not in plan, plan
        assert "B-TREE" not in plan, plan


steps = st.lists(
    st.tuples(
        st.sampled_from(("pile", "commit", "keep", "undo", "take", "delete", "tend", "restart")),
        st.lists(st.tuples(st.integers(0, 12), st.integers(-2, 6)), max_size=5),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(steps)
def test_whatever_happens_it_tells_what_was_decided(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[tuple[int, int]]]]
) -> None:
    """Against a dictionary: piles on piles, commits, trouble, what is taken back, deletions by hand, sweeps and restarts."""
    connection = open_for_daemon(str(tmp_path_factory.mktemp("memory") / "policyd.db"))
    model: Facts = {}
    memories = Memories()
    #: What is written just now, and what is decided on top of it; each with the model as it was before.
    piles: list[tuple[Facts, Facts]] = []

    def end(how: str) -> None:
        """What is written just now is on disk; or it is not, and neither stands what lies on it."""
        nonlocal model
        if not piles:
            return
        first, before = piles[0]
        if how == "commit":
            # It is well again, so that comes first.
            write_unwritten(connection, memories)
            connection.execute("BEGIN IMMEDIATE")
            memories.write(connection, first)
            connection.execute("COMMIT")
            memories.written(first)
            del piles[0]
            return
        if len(piles) > 1:
            piles[1][0].clear()
            model = piles[1][1]
        if how == "keep":
            memories.keep(first)
        else:
            first.clear()
            model = before
        piles.clear()

    def settle() -> None:
        while piles:
            end("commit")
        write_unwritten(connection, memories)

    try:
        for number, (step, given) in enumerate(steps):
            facts = {key(name): Memory(NOW, NOW, number, NOW + days * DAY) for name, days in given}
            if step == "pile":
                if not piles:
                    piles.append(({}, dict(model)))
                memories.read(connection, facts)
                memories.pile(decide(memories, facts), piles[-1][0])
                model |= facts
            elif step == "take":
                if len(piles) < 2:
                    piles.append(({}, dict(model)))
            elif step in ("commit", "keep", "undo"):
                end(step)
            else:
                settle()
                if step == "delete":
                    memory.delete(connection, "greylist", [each.key for each in facts])
                    memories.changed()
                    model = {each: old for each, old in model.items() if each not in facts}
                elif step == "tend":
                    counted(connection, memories)
                else:
                    memories = Memories()
            everything = [key(name) for name in range(13)]
            memories.read(connection, everything)
            assert memories.known(everything, NOW) == {
                each: old for each, old in model.items() if old.expires_at > NOW
            }
        settle()
        memories.reopened()
        counted(connection, memories)
        assert memories.count("greylist") == len(rows(connection))
    finally:
        connection.close()


# --- for policyctl -------------------------------------------------------------------------------------------------------


def test_facts_are_found_by_how_they_begin(connection: sqlite3.Connection) -> None:
    """Those of one client, without reading the others; the newest of them."""
    commit(
        connection,
        Memories(),
        {
            key(f"192.0.{net}.0/24 {name}"): Memory(NOW, NOW + net * 10 + at, 0, NOW + DAY)
            for net in range(3)
            for at, name in enumerate("abc")
        },
    )
    found = [each.key for each in memory.facts(connection, "greylist", "192.0.1.0/24 ")]
    assert found == [f"192.0.1.0/24 {name}" for name in "abc"]
    newest = memory.newest(connection, "greylist", "", lambda each: not each.key.endswith("c"), 2)
    assert [each.key for each in newest] == ["192.0.2.0/24 b", "192.0.2.0/24 a"]
    assert len(memory.newest(connection, "greylist", "", lambda each: True, 0)) == 9

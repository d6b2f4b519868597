"""What every backend of the store promises, as tests that each inherits: exact counts, once per request, all explained.

A backend's test module subclasses :class:`BackendContract` and says how a store is opened and what is in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.answer import DUNNO, Answer, make_answer
from policyd.decision import Decision
from policyd.opinion import CounterKey, Opinion
from policyd.request import Request
from policyd.steering import Entry, Row
from policyd.store import admin, partitions
from policyd.store.connect import open_for_admin
from policyd.units import HOUR
from tests.fakes import (
    Disk,
    Store,
    ask,
    ban_rule,
    charged,
    end_of,
    engine,
    from_outside,
    grant,
    quota_rule,
    rcpt,
    says,
)

REFUSES = Opinion(make_answer("550", "5.7.1 Listed; ref {ref}"), "listed")
DEFER = Answer("451", "4.3.0 Policy decision not possible now; try again later. ref 2ABCDEF")
USER = "user"
ALICE = "alice@example.org"


def every_third() -> Callable[[Request], Opinion | None]:
    """Refuses every third message, by its queue id."""
    return lambda request: REFUSES if int(request.queue_id, 16) % 3 == 0 else None


class Broken:
    """A standing that fails when it is asked again."""

    def judge(self, *_: object) -> Opinion | None:
        raise RuntimeError("a bug")


class BackendContract:
    """The promises. ``opened`` starts a store; ``reads`` shows what it holds; ``put`` and ``drop`` change steering data."""

    # --- what a backend says of itself ---

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """Where the store is."""
        return tmp_path / "policyd.db"

    def opened(self, place: Path, *rules: Any, **options: Any) -> Store:
        return Store(place, engine(*rules), **options)

    def reads(self, place: Path) -> Disk:
        return Disk(place)

    @contextlib.contextmanager
    def changing(self, place: Path) -> Iterator[admin.Change]:
        with open_for_admin(str(place)) as connection, admin.change(connection, "root", "a test") as change:
            yield change

    def put(self, place: Path, table: str, row: Row) -> None:
        with self.changing(place) as change:
            change.put(table, row)

    def drop(self, place: Path, table: str, *key: str | int) -> None:
        with self.changing(place) as change:
            change.drop(table, *key)

    # --- exactness ---

    def test_counts_equal_the_accepted_exactly(self, place: Path) -> None:
        """2,000 requests, 50 at once, two quota checks and a later one that refuses every third; then all asked again."""
        requests = [end_of(f"i{n}", n % 4 + 1, "", queue_id=f"{n:X}", size=str(n)) for n in range(1, 2001)]
        rules = (
            quota_rule("5000 messages per 1h", "3000 recipients per 1d", name="first"),
            quota_rule("9000 messages per 1d", "9GB per 1h", per="server", name="second"),
            says(every_third()),
        )
        with self.opened(place, *rules) as store:
            decisions: list[Decision | None] = []
            for at in range(0, 2000, 50):
                decisions += store.decide(*requests[at : at + 50])
            rows = [(d.request, d.settled) for d in decisions if d is not None]
            assert len(rows) == 2000
            accepted = [r for r, settled in rows if settled.verdict == "pass"]
            assert len(accepted) > 1000
            expected = charged(rows)
            reads = self.reads(place)
            assert reads.all_used() == expected
            assert reads.used("messages/external") == len(accepted)
            assert reads.used("recipients/external") == sum(r.recipient_count for r in accepted)
            assert reads.used("bytes/external", "server", "server") == sum(r.size for r in accepted)

            again: list[Decision | None] = []
            for at in range(0, 2000, 50):
                again += store.decide(*requests[at : at + 50])
            for first, second in zip(decisions, again, strict=True):
                assert first is not None
                assert second is not None
                assert first.settled.verdict == second.settled.verdict
                if first.settled.verdict == "pass":
                    assert first.settled.answer == second.settled.answer
            assert reads.all_used() == expected
        assert reads.sound()

    @pytest.mark.parametrize("width", [1, 7, 50])
    def test_limit_100_lets_exactly_100_pass(self, place: Path, width: int) -> None:
        """However the requests come together."""
        rules = (
            quota_rule("100 messages per 1d", name="first"),
            quota_rule("1000 messages per 1d", per="server", name="second"),
            says(every_third()),
        )
        requests = [ask(queue_id=f"{n:X}") for n in range(1, 401)]
        verdicts = []
        with self.opened(place, *rules) as store:
            for at in range(0, len(requests), width):
                for decision in store.decide(*requests[at : at + width]):
                    assert decision is not None
                    verdicts.append(decision.settled.verdict)
        assert verdicts.count("pass") == 100
        assert self.reads(place).used("messages/external") == 100
        assert verdicts[:150].count("pass") == 100

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        plan=st.lists(
            st.tuples(
                st.sampled_from(("", "i1", "i2", "i3")),
                st.integers(1, 4),
                st.sampled_from((None, None, None, DUNNO, DEFER)),
                st.booleans(),
            ),
            min_size=1,
            max_size=30,
        ),
        widths=st.lists(st.integers(1, 6), min_size=30, max_size=30),
    )
    def test_any_requests_in_any_batches_count_what_was_answered(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        plan: list[tuple[str, int, Answer | None, bool]],
        widths: list[int],
    ) -> None:
        """Repeats, deadlines and refusals within and across batches, with a restart in the middle."""
        place = tmp_path_factory.mktemp("any") / "policyd.db"
        rules = (
            quota_rule("4 messages per 1h", "9 recipients per 1d", name="first"),
            quota_rule("8 messages per 1h", per="server", name="second"),
            says(lambda request: REFUSES if request.queue_id == "refuse" else None),
        )
        rows: list[tuple[Request, Any]] = []
        store = self.opened(place, *rules)
        with store:
            at = 0
            for turn, width in enumerate(widths):
                operations = []
                for instance, count, forced, refuse in plan[at : at + width]:
                    request = end_of(instance, count, queue_id="refuse" if refuse else "q")
                    operation = store.operation(request)
                    if forced is not None:
                        operation.forced = DEFER if refuse else forced
                    operations.append(operation)
                at += width
                for decision in store.run(*operations):
                    assert decision is not None
                    rows.append((decision.request, decision.settled))
                assert self.reads(place).all_used() == charged(rows)
                if turn == 2:
                    store.stop()
                    store = self.opened(place, *rules)
                    store.__enter__()
                if at >= len(plan):
                    break
        store.stop()
        assert self.reads(place).all_used() == charged(rows)
        # What is asked at the same time may be written in another order: some of it has to be read for first.
        assert sorted(self.reads(place).verdicts()) == sorted(settled.verdict for _, settled in rows)

    # --- once per request ---

    def test_asked_again_after_a_restart_and_a_new_partition(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same answer, nothing counted: identity is on disk, whichever table it is in."""
        monkeypatch.setattr(partitions, "FULL", 4)
        rules = (ban_rule(), quota_rule("9 messages per 1h"))
        requests = [ask() for _ in range(6)]
        with self.opened(place, *rules) as store:
            for request in requests:
                assert store.settled(request).mark == ""
        for _ in range(2):
            with self.opened(place, *rules) as store:
                for request in requests:
                    again = store.settled(request)
                    assert (again.mark, again.answer) == ("repeat", DUNNO)
        assert self.reads(place).used("messages/external") == 6

    def test_asked_again_within_one_batch(self, place: Path) -> None:
        """Both in the same transaction."""
        request = ask()
        with self.opened(place, quota_rule("9 messages per 1h")) as store:
            decisions = store.decide(request, request, request)
        assert [d.settled.mark for d in decisions if d is not None] == ["", "repeat", "repeat"]
        assert self.reads(place).used("messages/external") == 1

    def test_an_empty_instance_is_never_a_duplicate(self, place: Path) -> None:
        """Nothing tells two such requests apart."""
        request = ask(instance="")
        with self.opened(place, quota_rule("9 messages per 1h")) as store:
            store.decide(request, request)
            store.decide(request)
        assert self.reads(place).used("messages/external") == 3

    def test_a_ban_in_between_returns_the_count_once(self, place: Path) -> None:
        """Also when the daemon was started anew between the two."""
        rules = (ban_rule(), quota_rule("9 messages per 1h"))
        request = ask()
        with self.opened(place, *rules) as store:
            store.settled(ask())
            store.settled(request)
            self.put(place, "ban", Entry("user", ALICE, "spam", "root", 0, 0))
            assert store.settled(request).by == "bans"
            assert self.reads(place).used("messages/external") == 1
            assert store.settled(request).by == "bans"
        with self.opened(place, *rules) as store:
            assert store.settled(request).by == "bans"
            assert self.reads(place).used("messages/external") == 1

    def test_a_correction_follows_what_was_answered(self, place: Path) -> None:
        """The deadline deferred what the writer had let pass: its count is returned, also without an instance."""
        for instance in ("i", ""):
            request = ask(instance=instance)
            with self.opened(place, quota_rule("9 messages per 1h")) as store:
                (decision,) = store.decide(request)
                assert decision is not None
                settled = decision.settled
                previous = (
                    decision.id,
                    decision.at,
                    request.listener,
                    request.stage,
                    request.recipient,
                    settled.verdict,
                    str(settled.answer),
                    settled.by,
                    settled.charges,
                )
                from policyd.decision import Earlier

                assert self.reads(place).used("messages/external") == 1
                (corrected,) = store.run(store.operation(request, DEFER, Earlier(*previous)))
                assert corrected is not None
                assert corrected.settled.mark == "late"
            assert self.reads(place).used("messages/external") == 0

    def test_recipients_are_joined_by_instance(self, place: Path) -> None:
        """RCPT requests of earlier batches and of the same one, also after a restart."""
        rules = (quota_rule("9 recipients per 1h"),)
        with self.opened(place, *rules) as store:
            store.decide(rcpt("i", "a@example.org"), rcpt("i", "b@example.net"))
        with self.opened(place, *rules) as store:
            store.decide(rcpt("i", "c@example.org"), end_of("i", 3))
        assert self.reads(place).used("recipients/external") == 1

    def test_counted_at_rcpt(self, place: Path) -> None:
        """Recipients each, the message and its octets once."""
        rules = (quota_rule("9 recipients per 1h", "9 messages per 1h", "9MB per 1h", count_at="rcpt"),)
        with self.opened(place, *rules) as store:
            store.decide(rcpt("i", "a@example.net", size="50"), rcpt("i", "b@example.net", size="50"))
            store.decide(rcpt("i", "c@example.net", size="50"), rcpt("i", "a@example.net", size="50"))
        reads = self.reads(place)
        assert [reads.used(f"{unit}/external") for unit in ("recipients", "messages", "bytes")] == [3, 1, 50]

    # --- steering ---

    def test_what_the_admin_changes_holds_on_the_next_request(self, place: Path) -> None:
        """Ban and lift, grant, reset of what was used."""
        with self.opened(place, ban_rule(), quota_rule("2 messages per 1h")) as store:
            assert [store.settled(ask()).verdict for _ in range(3)] == ["pass", "pass", "refuse"]
            self.put(place, "user_grant", grant(1, ALICE, "messages", 1))
            assert [store.settled(ask()).verdict for _ in range(2)] == ["pass", "refuse"]
            self.put(place, "ban", Entry("client", "192.0.2.0/24", "spam", "root", 0, 0))
            assert store.settled(ask()).by == "bans"
            self.drop(place, "ban", "client", "192.0.2.0/24")
            with self.changing(place) as change:
                change.reset_usage(ALICE)
            assert [store.settled(ask()).verdict for _ in range(4)] == ["pass", "pass", "pass", "refuse"]
        assert self.reads(place).used("messages/external") == 3

    def test_a_ban_set_after_the_chain_was_asked_holds(self, place: Path) -> None:
        """The writer asks again, within its transaction."""
        with self.opened(place, ban_rule(), quota_rule("9 messages per 1h")) as store:
            store.settled(ask())
            operation = store.operation(ask())
            self.put(place, "ban", Entry("user", ALICE, "spam", "root", 0, 0))
            (decision,) = store.run(operation)
        assert decision is not None
        assert decision.settled.by == "bans"
        assert self.reads(place).used("messages/external") == 1

    # --- what is written down ---

    def test_each_decision_has_its_row_and_each_refusal_its_reference(self, place: Path) -> None:
        """Complete, in order, and found by the reference that the sender saw; references never come twice."""
        seen: set[str] = set()
        for _ in range(2):
            with self.opened(place, quota_rule("3 messages per 1h"), says(every_third())) as store:
                for decision in store.decide(*[ask(queue_id=f"{n:X}") for n in range(1, 40)]):
                    assert decision is not None
                    (row,) = self.reads(place).query(
                        "SELECT at, user, sender, size, action, verdict, by, ref, detail, charges, policy, mark, direction, "
                        "client, client_name, helo, recipient, recipient_count, instance, queue_id, listener, stage "
                        "FROM decision WHERE id = ?",
                        decision.id,
                    )
                    request, settled = decision.request, decision.settled
                    assert row == (
                        decision.at,
                        request.account,
                        request.sender,
                        request.size,
                        str(settled.answer),
                        settled.verdict,
                        settled.by,
                        settled.ref,
                        settled.detail,
                        settled.charges,
                        "p0",
                        settled.mark,
                        request.direction,
                        request.client_address,
                        request.client_name,
                        request.helo_name,
                        request.recipient,
                        request.recipient_count,
                        request.instance,
                        request.queue_id,
                        request.listener,
                        request.stage,
                    )
                    if settled.verdict == "refuse":
                        assert settled.ref is not None
                        assert settled.ref in settled.answer.text
                        assert settled.ref not in seen
                        seen.add(settled.ref)
                        assert self.reads(place).query(
                            "SELECT id FROM decision WHERE ref = ?", settled.ref
                        ) == [(decision.id,)]
        assert len(seen) > 60

    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        texts=st.lists(
            st.dictionaries(
                st.sampled_from(
                    (
                        "sasl_username",
                        "sender",
                        "recipient",
                        "client_name",
                        "helo_name",
                        "instance",
                        "queue_id",
                    )
                ),
                st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n")),
            ),
            min_size=1,
            max_size=20,
        ),
        number=st.integers(0, 10**30),
    )
    def test_hostile_text_is_written_down_as_it_came(
        self, tmp_path_factory: pytest.TempPathFactory, texts: list[dict[str, str]], number: int
    ) -> None:
        """Quotes, other scripts, controls, numbers without end: every request is decided and its row is there."""
        place = tmp_path_factory.mktemp("hostile") / "policyd.db"
        requests = [ask(**{"size": str(number), "recipient_count": str(number), **text}) for text in texts]
        with self.opened(place, quota_rule("9 messages per 1h"), quota_rule("9GB per 1h", name="b")) as store:
            decisions = store.decide(*requests)
        assert None not in decisions
        rows = self.reads(place).query("SELECT sender, recipient, helo, size FROM decision ORDER BY id")
        assert rows == [(r.sender, r.recipient, r.helo_name, r.size) for r in requests]

    @pytest.mark.parametrize("poison", ["standing", "surrogate", "number"])
    def test_an_operation_that_fails_does_not_fail_its_neighbours(self, place: Path, poison: str) -> None:
        """A bug in a check, a value that cannot be bound: no decision for it, and every other is decided and counted."""
        broken: set[Request] = set()
        rules = (
            quota_rule("99 messages per 1h"),
            says(lambda request: Opinion(standing=Broken()) if request in broken else None),
        )
        requests = [ask() for _ in range(7)]
        if poison == "standing":
            broken.add(requests[3])
        elif poison == "surrogate":
            requests[3] = requests[3]._replace(helo_name="\ud800")
        else:
            requests[3] = requests[3]._replace(size=2**70)
        with self.opened(place, *rules) as store:
            decisions = store.decide(*requests)
            assert [decision is None for decision in decisions] == [n == 3 for n in range(7)]
            assert self.reads(place).used("messages/external") == 6
            assert store.settled(ask()).verdict == "pass"
        assert self.reads(place).used("messages/external") == 7
        assert self.reads(place).verdicts() == ["pass"] * 7

    def test_the_charges_in_the_rows_are_what_the_counters_hold(self, place: Path) -> None:
        """Counters can be explained from the decisions."""
        rules = (
            quota_rule("9 messages per 1h", "4 recipients per 1h"),
            quota_rule("9KB per 1h", per="client", name="c"),
        )
        with self.opened(place, *rules) as store:
            store.decide(*[ask() for _ in range(6)], from_outside(), end_of("x", 3))
        total: dict[CounterKey, int] = {}
        for (text,) in self.reads(place).query("SELECT charges FROM decision WHERE charges <> ''"):
            for scope, value, unit, amount in json.loads(text):
                key = CounterKey(scope, value, unit)
                total[key] = total.get(key, 0) + amount
        assert total == self.reads(place).all_used(HOUR)

    def test_a_changed_window_keeps_the_history(self, place: Path) -> None:
        """Counts belong to the account, not to the limit."""
        with self.opened(place, quota_rule("9 messages per 1h")) as store:
            store.decide(*[ask() for _ in range(4)])
        with self.opened(place, quota_rule("5 messages per 20m", name="other")) as store:
            assert [store.settled(ask()).verdict for _ in range(2)] == ["pass", "refuse"]

    def test_what_is_queued_at_the_end_is_settled(self, place: Path) -> None:
        """A stop loses nothing."""
        store = self.opened(place, quota_rule("999 messages per 1h"))
        with store:
            for request in [ask() for _ in range(300)]:
                store.writer.submit(store.operation(request))
        assert store.handed.qsize() == 300
        assert self.reads(place).used("messages/external") == 300

"""Headers, once each per mail; remembered facts, asked and written when the decision is settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from policyd.answer import DUNNO, make_answer
from policyd.opinion import Memory, MemoryKey, Opinion, Recalled
from policyd.request import Request
from tests.fakes import Disk, FakeLedger, Store, ask, ban_rule, engine, quota_rule, rcpt, says

SPF = make_answer("PREPEND", "Received-SPF: pass (example.net)")
GREY = make_answer("PREPEND", "X-Greylist: delayed 301 seconds by policyd")
LATER = make_answer("DEFER_IF_PERMIT", "4.2.0 Greylisted; ref {ref}")
REFUSES = Opinion(make_answer("550", "5.7.1 Listed; ref {ref}"), "listed")


@dataclass(frozen=True)
class Twice:
    """Defers what it does not remember, and counts how often it was asked."""

    name: str = "triplet"

    @property
    def keys(self) -> tuple[MemoryKey, ...]:
        return (MemoryKey("test", self.name),)

    def judge(self, request: Request, now: int, known: Mapping[MemoryKey, Memory]) -> Recalled:
        (key,) = self.keys
        fact = known.get(key)
        if fact is None:
            return Recalled(Opinion(LATER, "new"), {key: Memory(now, now, 1, now + 60_000)})
        return Recalled(Opinion(GREY, "known"), {key: fact._replace(hits=fact.hits + 1)})


def hears(opinion: Opinion, name: str, mode: str = "enforce"):  # type: ignore[no-untyped-def]
    return says(lambda _: opinion, name, mode)


def test_each_header_goes_once_into_a_mail_one_with_each_recipient() -> None:
    """In the order of the chain; when all are in, the answer is DUNNO; another mail gets them anew."""
    ledger = FakeLedger(engine(hears(Opinion(SPF), "spf"), hears(Opinion(GREY), "grey")))
    answers = [ledger.decide(rcpt("i1", f"u{n}@example.net")).answer for n in range(3)]
    assert answers == [SPF, GREY, DUNNO]
    assert ledger.decide(rcpt("i2", "u0@example.net")).answer == SPF


def test_a_header_is_given_again_when_its_answer_was_lost() -> None:
    """The same request of the same mail gets the same answer."""
    ledger = FakeLedger(engine(hears(Opinion(SPF), "spf")))
    assert [ledger.decide(rcpt("i1", "bob@example.net")).answer for _ in range(2)] == [SPF, SPF]


def test_without_an_instance_nothing_is_known_to_have_been_sent() -> None:
    """A header twice does less harm than none."""
    ledger = FakeLedger(engine(hears(Opinion(SPF), "spf")))
    assert [ledger.decide(rcpt("", f"u{n}@example.net")).answer for n in range(2)] == [SPF, SPF]


def test_a_header_in_shadow_is_told_and_not_sent() -> None:
    """What would have been."""
    ledger = FakeLedger(engine(hears(Opinion(SPF), "spf", "shadow")))
    settled = ledger.decide(rcpt("i1", "bob@example.net"))
    assert (settled.answer, settled.would) == (DUNNO, f"spf: {SPF}")


def test_what_is_remembered_decides_when_it_is_settled() -> None:
    """Deferred and remembered; then known; the log tells the outcome, not the question."""
    ledger = FakeLedger(engine(hears(Opinion(recall=Twice()), "grey")))
    first = ledger.decide(rcpt("i1", "bob@example.net"))
    assert (first.answer.verb, first.by, first.reason) == ("DEFER_IF_PERMIT", "grey", "new")
    assert '"grey","enforce","DEFER_IF_PERMIT"' in first.detail
    assert ledger.decide(rcpt("i2", "bob@example.net")).answer == GREY
    assert ledger.facts[MemoryKey("test", "triplet")].hits == 2


def test_two_checks_that_remember_are_asked_both() -> None:
    """The first refusal answers; what the other would have remembered is not."""
    ledger = FakeLedger(
        engine(hears(Opinion(recall=Twice("one")), "one"), hears(Opinion(recall=Twice("two")), "two"))
    )
    assert ledger.decide(rcpt("i1", "bob@example.net")).by == "one"
    assert set(ledger.facts) == {MemoryKey("test", "one")}


def test_mail_that_another_check_refuses_is_not_remembered() -> None:
    """Nobody gets on a list of those who tried before by mail that was refused for good."""
    ledger = FakeLedger(engine(hears(Opinion(recall=Twice()), "grey"), hears(REFUSES, "other")))
    assert ledger.decide(rcpt("i1", "bob@example.net")).by == "other"
    assert not ledger.facts


def test_in_shadow_it_learns_and_says_what_would_have_been() -> None:
    """Otherwise it would say for ever that it would have deferred."""
    ledger = FakeLedger(engine(hears(Opinion(recall=Twice()), "grey", "shadow")))
    settled = ledger.decide(rcpt("i1", "bob@example.net"))
    assert (settled.answer, settled.would) == (DUNNO, "grey: DEFER_IF_PERMIT 4.2.0 Greylisted; ref -----")
    assert ledger.decide(rcpt("i2", "bob@example.net")).would == f"grey: {GREY}"


@pytest.mark.parametrize("width", [1, 40])
def test_facts_are_on_disk_with_the_decision(tmp_path: Path, width: int) -> None:
    """Of forty triplets in one batch or in forty each is deferred once, and known after a restart."""
    rules = (
        ban_rule(),
        says(lambda request: Opinion(recall=Twice(request.queue_id)), "grey"),
        quota_rule("100 messages per 1h"),
    )
    requests = [ask(queue_id=f"{n:X}") for n in range(40)]
    path = tmp_path / "policyd.db"
    with Store(path, engine(*rules)) as store:
        for at in range(0, 40, width):
            for decision in store.decide(*requests[at : at + width]):
                assert decision is not None
                assert decision.settled.by == "grey"
    assert Disk(path).query("SELECT count(*), min(hits), max(hits) FROM memory") == [(40, 1, 1)]
    with Store(path, engine(*rules)) as store:
        for decision in store.decide(*[ask(queue_id=f"{n:X}") for n in range(40)]):
            assert decision is not None
            assert decision.settled.verdict == "pass"
    assert Disk(path).query("SELECT count(*), min(hits), max(hits) FROM memory") == [(40, 2, 2)]
    assert Disk(path).used("messages/external") == 40

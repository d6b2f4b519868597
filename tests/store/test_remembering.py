"""Greylisting through the real ledger: what was answered is remembered on disk, together, once, and forgotten when it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policyd.answer import make_answer
from policyd.checks import Context
from policyd.checks.greylist import Check, Options
from policyd.engine import Rule
from policyd.greylisting import PASSED, WAITING
from policyd.opinion import Opinion
from policyd.request import Request
from policyd.store import admin, memory
from policyd.store import sturdy as sturdy_module
from policyd.store.connect import open_for_admin
from policyd.store.upkeep import Keep
from policyd.units import DAY, MINUTE, SECOND
from tests.fakes import Disk, Store, engine, from_outside, locked, says

KEY = "203.0.113.0/24 alice@example.net bob@example.org"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "policyd.db"


def greylist(mode: str = "enforce", **options: Any) -> Rule:
    delay = options.pop("delay", 0)
    made = Options(**{"delay": SECOND, **options})
    check = Check(made, Context("greylist", "mx"))
    # Shorter than an admin may write it: no test waits a second.
    check._options = replace(made, delay=delay or 1)
    return Rule("greylist", "greylist", "mx", mode, "skip", check)


def mail(**attributes: str) -> Request:
    """One recipient of a mail from outside, a new transaction unless said otherwise."""
    return from_outside(
        **{
            "protocol_state": "RCPT",
            "client_address": "203.0.113.9",
            "sender": "alice@example.net",
            "recipient": "bob@example.org",
            "instance": "",
            **attributes,
        }
    )


def known(place: Path, kind: str) -> dict[str, int]:
    return dict(Disk(place).query("SELECT key, hits FROM memory WHERE kind = ?", kind))


def passes(store: Store, request: Request, tries: int = 10_000) -> str:
    """Ask until it passes, as ledger time goes on; the answer."""
    for _ in range(tries):
        settled = store.settled(request)
        if settled.verdict == "pass":
            return str(settled.answer)
        assert settled.answer.verb == "DEFER_IF_PERMIT"
    raise AssertionError("it never passes")


def test_deferred_passed_and_known_after_a_restart(place: Path) -> None:
    """Each step is on disk before it is answered."""
    with Store(place, engine(greylist())) as store:
        first = store.settled(mail())
        assert first.verdict == "refuse"
        assert str(first.answer).startswith("DEFER_IF_PERMIT 4.2.0 Greylisted; try again in 1 seconds. ref ")
        assert known(place, WAITING) == {KEY: 0}
    with Store(place, engine(greylist())) as store:
        assert passes(store, mail()).startswith("PREPEND X-Greylist: delayed 0 seconds by policyd")
        assert known(place, PASSED) == {KEY: 1}
    with Store(place, engine(greylist(delay=1))) as store:
        assert str(store.settled(mail()).answer) == "DUNNO"
        assert known(place, PASSED) == {KEY: 2}


def test_those_that_come_together_are_all_strangers(place: Path) -> None:
    """Of one batch none passes by another; one row stands for all."""
    with Store(place, engine(greylist(delay=5 * MINUTE))) as store:
        decisions = store.decide(*[mail() for _ in range(20)])
        assert {d.settled.verdict for d in decisions if d is not None} == {"refuse"}
        assert known(place, WAITING) == {KEY: 0}


def test_what_is_forgotten_by_hand_is_a_stranger_on_the_next_request(place: Path) -> None:
    """Also what the daemon has in memory."""
    with Store(place, engine(greylist())) as store:
        store.settled(mail())
        passes(store, mail())
        assert store.settled(mail()).verdict == "pass"
        with open_for_admin(str(place)) as connection, admin.change(connection, "root", "spam"):
            assert memory.delete(connection, PASSED, [KEY]) == 1
        store.chain = engine(greylist(delay=5 * MINUTE))
        assert store.settled(mail()).verdict == "refuse"
        assert known(place, PASSED) == {}


def test_what_another_check_refuses_proves_nothing(place: Path) -> None:
    """A mail that is refused for another reason neither passes nor is it known for it."""
    refuses = Opinion(make_answer("550", "5.7.1 Listed; ref {ref}"), "listed")
    with Store(place, engine(greylist(), says(lambda request: refuses))) as store:
        for _ in range(5):
            assert store.settled(mail()).answer.verb == "550"
        assert known(place, WAITING) == known(place, PASSED) == {}


def test_in_shadow_it_learns(place: Path) -> None:
    """Nobody is delayed, and what it would have answered is kept; who is switched on later knows who came before."""
    with Store(place, engine(greylist("shadow"))) as store:
        first = store.settled(mail())
        assert (first.verdict, str(first.answer)) == ("pass", "DUNNO")
        assert first.would.startswith("greylist: DEFER_IF_PERMIT 4.2.0 Greylisted")
        for _ in range(10_000):
            if known(place, PASSED):
                break
            store.settled(mail())
    with Store(place, engine(greylist())) as store:
        assert str(store.settled(mail()).answer) == "DUNNO"


def test_a_flood_of_strangers_stays_within_keep(place: Path) -> None:
    """However many come, each with a triplet of its own; who is known stays known."""
    with Store(place, engine(greylist())) as store:
        store.settled(mail())
        passes(store, mail())
    with Store(place, engine(greylist(retry_window=2 * DAY)), keep=Keep(min_free=0, memory=1_000)) as store:
        for batch in range(60):
            store.decide(*[mail(sender=f"u@a{batch}-{number}.example") for number in range(50)])
            assert len(known(place, WAITING)) <= 1_000
        assert known(place, PASSED) == {KEY: 1}
        assert store.settled(mail()).verdict == "pass"


def test_what_was_written_after_trouble_is_not_written_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A triplet from the time of trouble that is forgotten afterwards stays forgotten, whatever is decided then."""
    monkeypatch.setattr(sturdy_module, "RETRY", 0.002)
    with Store(place, engine(greylist(delay=DAY, retry_window=2 * DAY))) as store:
        with locked(place):
            store.decide(mail(), mail(recipient="carol@example.org"))
            assert store.writer.sick
        while store.writer.sick:
            store.decide(mail(sender=""))
        assert KEY in known(place, WAITING)
        with open_for_admin(str(place)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            assert memory.delete(connection, WAITING, [KEY]) == 1
            connection.execute("COMMIT")
        store.decide(mail(recipient="dora@example.org"))
        assert KEY not in known(place, WAITING)

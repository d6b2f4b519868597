"""What the daemon tells of itself: each trouble begins once and is over once."""

from __future__ import annotations

from typing import Any

from policyd.alert import Event
from policyd.alertbook import Book, Channel
from policyd.alertwatch import STEADY, Asked, State, Watch, clock_state, dns_states
from policyd.units import HOUR, MINUTE

SICK = State("store-sick", "database", True, {"why": "the disk is full"})
WELL = State("store-sick", "database", False, {})


def shown(events: list[Event]) -> list[tuple[str, bool]]:
    return [(event.subject, event.resolved) for event in events]


def test_a_trouble_begins_once_and_is_over_once() -> None:
    """And one that is seen at a single look is none: a policyctl held the database for a moment."""
    watch = Watch()
    assert not watch.look([SICK], [], 0, 0)
    assert not watch.look([WELL], [], 1, 1)
    assert not watch.look([SICK], [], 2, 2)
    assert shown(watch.look([SICK], [], 3, 3)) == [("database", False)]
    told = [("store-sick", "database")]
    assert not watch.look([SICK], told, 4, 4)
    (over,) = watch.look([WELL], told, HOUR, 5)
    assert (over.resolved, over.facts["lasted"]) == (True, "59m")
    assert not watch.look([WELL], told, HOUR, 6), "as long as it is being written down it is not told again"
    assert not watch.look([WELL], [], HOUR, 7)


def test_what_was_told_before_a_restart_is_over_when_it_is_well() -> None:
    """And not before that is known; what is not watched any more is over too."""
    watch = Watch()
    told = [("dnsbl-sick", "zen"), ("dnsbl-sick", "removed")]
    unknown = State("dnsbl-sick", "zen", None, {})
    assert shown(watch.look([unknown], told, 0, 0)) == [("removed", True)]
    well = State("dnsbl-sick", "zen", False, {})
    assert shown(watch.look([well], told[:1], 1, 1)) == [("zen", True)]


def test_not_asked() -> None:
    """Only when it was asked before, or for longer than that after the start; a reload, which counts anew, is no question."""
    asked = Asked(0)
    assert asked.state(0, 59 * MINUTE, HOUR).trouble is None
    silent = asked.state(0, HOUR, HOUR)
    assert (silent.trouble, silent.facts["for"]) == (True, "1h")
    assert asked.state(1, 2 * HOUR, HOUR).trouble is False
    assert asked.state(0, 3 * HOUR, HOUR).trouble is True
    assert asked.state(3, 3 * HOUR, HOUR).trouble is False
    assert asked.state(2, 4 * HOUR, HOUR).trouble is False, "counted anew, and asked twice since"


def test_the_clock() -> None:
    """A step is told, and that there was none for an hour."""
    assert clock_state((0, 0), 0, HOUR - 1).trouble is None
    assert clock_state((0, 0), 0, HOUR).trouble is False
    stepped = clock_state((-3_600_000, 5 * HOUR), 0, 5 * HOUR)
    assert (stepped.trouble, stepped.facts["by"]) == (True, "-3600.0 s")
    assert clock_state((-3_600_000, 5 * HOUR), 0, 5 * HOUR + STEADY).trouble is False


def test_the_dns() -> None:
    """A list is well only when a test has said so, and nothing is said of parts that are not told of."""
    report = [
        ("resolver", "down", 0, {}),
        ("nameserver/192.0.2.1:53", "down", 0, {}),
        ("dnsbl/zen", "sick", 0, {"why": "lists everything"}),
        ("dnsbl/new", "well", 0, {"tested_at": 0}),
        ("dnsbl/good", "well", 0, {"tested_at": 1}),
    ]
    states = {(state.kind, state.subject): state for state in dns_states(report, "dnsbl/")}
    assert {key: state.trouble for key, state in states.items()} == {
        ("dns-down", "nameservers"): True,
        ("dnsbl-sick", "zen"): True,
        ("dnsbl-sick", "new"): None,
        ("dnsbl-sick", "good"): False,
    }
    assert states["dnsbl-sick", "zen"].facts == {"why": "lists everything"}


def test_after_a_restart_the_dns_is_well_only_when_a_nameserver_has_answered() -> None:
    """Who was told that no nameserver answers is told neither that it is over nor that it began again, while nothing changed."""

    def looked(state: str, answers: int) -> list[tuple[str, bool]]:
        report: list[tuple[str, str, int, dict[str, Any]]] = [
            ("resolver", state, 0, {}),
            ("nameserver/192.0.2.1:53", state, 0, {"answers": answers}),
        ]
        events = [
            event
            for now in (1, 2)
            for event in watch.look(dns_states(report, "dnsbl/"), told, now, now)
            if book.take(event, now)
        ]
        told[:] = book.is_open({"dns-down"})
        return [(event.kind, event.resolved) for event in events]

    told: list[tuple[str, str]] = []
    book, watch = Book(), Watch()
    book.configure([Channel("post", frozenset({"dns-down"}), HOUR)])
    assert looked("up", 0) == []
    assert looked("down", 0) == [("dns-down", False)]
    watch = Watch()
    assert looked("up", 0) == []
    assert looked("down", 0) == []
    assert looked("up", 0) == []
    assert looked("up", 1) == [("dns-down", True)]

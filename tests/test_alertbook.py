"""The book of alerts: repeats, floods, resolved messages, back-off, and that nothing is lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd import alertbook
from policyd.alert import GIVEN_UP, KINDS, LASTING, RETRY, SENT, TEST, WAITS, Alert, Event
from policyd.alertbook import GATHER, GIVE_UP, LONGEST_PAUSE, LONGEST_SILENCE, SINGLY, Book, Channel
from policyd.units import DAY, HOUR, MINUTE, SECOND

ALICE = "alice@example.org"
ALL = frozenset(KINDS)
_ids = itertools.count(1)


def book(*names: str, kinds: frozenset[str] = ALL, repeat_after: int = 6 * HOUR) -> Book:
    made = Book()
    made.configure([Channel(name, kinds, repeat_after) for name in names or ("mail",)])
    return made


def event(kind: str = "suspend", subject: str = ALICE, resolved: bool = False, **facts: Any) -> Event:
    number = next(_ids)
    return Event(number, number, 1_000_000 + number, kind, subject, resolved, facts)


def stored(book: Book) -> Book:
    """As after an exchange with the disk."""
    book.written(book.changes())
    return book


def delivered(book: Book, now: int, channel: str = "mail") -> list[Alert]:
    """What the channel gets if it takes everything at ``now``."""
    found = []
    stored(book)
    while (alert := book.due(channel, now)) is not None:
        found.append(alert)
        book.sent(alert, now)
    return found


def test_what_is_over_is_told_and_what_began_is_told_once() -> None:
    """The admin hears that an account was suspended, not each time again, and that it is over."""
    told = book()
    told.take(event(), 0)
    told.take(event(), MINUTE)
    told.take(event(resolved=True), HOUR)
    assert [(alert.kind, alert.resolved) for alert in delivered(told, HOUR)] == [
        ("suspend", False),
        ("suspend", True),
    ]


def test_that_it_is_over_is_not_told_to_who_was_not_told_that_it_began() -> None:
    """A resolved message without the one before says nothing."""
    told = book()
    assert not told.take(event(resolved=True), 0)
    told.take(event("detect"), 0)
    assert not told.take(event("detect", resolved=True), 0)


def test_the_same_is_told_again_after_repeat_after_with_how_often_it_was_held_back() -> None:
    """A detector that goes on finding something is not forgotten either."""
    told = book()
    assert told.take(event("detect", detector="bounces"), 0)
    assert told.take(event("detect", detector="many-networks"), 0), "another detector is another thing"
    for minute in range(1, 6):
        assert not told.take(event("detect", detector="bounces"), minute * MINUTE)
    (again,) = told.take(event("detect", detector="bounces"), 6 * HOUR)
    assert again.facts["times_before"] == 5


def test_what_comes_back_after_it_was_over_is_told_but_not_without_end() -> None:
    """A second suspension of an hour later is news; a list that goes up and down all night is not."""
    told = book()
    count = 0
    for turn in range(20):
        count += len(told.take(event("dnsbl-sick", "zen"), turn * 10 * MINUTE))
        count += len(told.take(event("dnsbl-sick", "zen", resolved=True), turn * 10 * MINUTE + MINUTE))
    assert count == 2 * alertbook.FLAPS


def test_what_lasts_is_told_again() -> None:
    """A store that is sick all day is told of more than once, and one that was held back as flapping at last too."""
    told = book()
    sick = event("store-sick", "database")
    told.take(sick, 0)
    assert not told.lasts(sick, HOUR)
    assert told.lasts(sick, 6 * HOUR)
    assert not told.lasts(sick, 7 * HOUR)
    assert told.is_open(["store-sick"]) == [("store-sick", "database")]
    told.take(event("store-sick", "database", resolved=True), 8 * HOUR)
    assert told.is_open(["store-sick"]) == []


def test_each_channel_is_told_what_it_wants() -> None:
    """on = [...] holds for each channel by itself."""
    told = Book()
    told.configure([Channel("mail", ALL, HOUR), Channel("page", frozenset({"store-sick"}), DAY)])
    assert [alert.channel for alert in told.take(event(), 0)] == ["mail"]
    assert [alert.channel for alert in told.take(event("store-sick", "database"), 0)] == ["mail", "page"]
    assert [alert.channel for alert in told.take(event(TEST, ""), 0)] == ["mail", "page"]
    assert [alert.channel for alert in told.take(event(TEST, "page"), 0)] == ["page"]


def test_a_flood_is_told_together() -> None:
    """A thousand accounts at 80 % are some mails, not a thousand; none is left out of the count, other kinds are not delayed."""
    told = book()
    for number in range(1_000):
        told.take(event("quota-80%", f"user{number}@example.org", used=8, limit=10), number)
    told.take(event(), 1_000)
    first = delivered(told, 1_000)
    assert [alert.kind for alert in first].count("quota-80%") == SINGLY
    assert [alert.kind for alert in first].count("suspend") == 1
    (together,) = delivered(told, 1_000 + GATHER)
    assert together.count == 1_000 - SINGLY
    assert len(together.facts["events"]) == alertbook.MOST_GATHERED
    assert together.facts["left_out"] == 1_000 - SINGLY - alertbook.MOST_GATHERED


def test_what_may_have_arrived_does_not_change_any_more() -> None:
    """An attempt without an answer may have been read: what comes after it goes into the next one."""
    told = book()
    for number in range(SINGLY + 1):
        told.take(event("detect", f"user{number}@example.org"), 0)
    assert len(delivered(told, 0)) == SINGLY
    stored(told)
    gathered = told.due("mail", GATHER)
    assert gathered is not None
    told.failed(gathered, "time-out", GATHER, 0.0)
    (other,) = told.take(event("detect", "late@example.org"), GATHER)
    assert other.uid != gathered.uid
    assert gathered.count == 1


def test_the_queue_is_bounded_and_counts_what_it_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is down for days cannot fill memory and disk; what happened is counted."""
    monkeypatch.setattr(alertbook, "MOST_WAITING", 20)
    told = book()
    for number in range(500):
        told.take(event("detect", f"user{number}@example.org"), number * 10 * MINUTE)
    assert len(told.waiting) <= 21
    assert sum(alert.count for alert in told.waiting.values()) == 500


def test_what_was_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of accounts leave no row each."""
    monkeypatch.setattr(alertbook, "MOST_TOLD", 50)
    told = book()
    for number in range(500):
        told.take(event("detect", f"user{number}@example.org"), number)
    assert len(told.told) <= 50


def test_nothing_is_sent_that_a_restart_would_not_find() -> None:
    """Unless the disk is in trouble: then better twice than never."""
    told = book()
    told.take(event(), 0)
    assert told.due("mail", 0) is None
    assert told.due("mail", 0, unstored=True) is not None
    assert stored(told).due("mail", 0) is not None


def test_back_off() -> None:
    """Each failure doubles the pause, up to an hour; a channel is tried every five minutes; once it works nothing waits."""
    told = book()
    told.take(event(), 0)
    alert = stored(told).due("mail", 0)
    assert alert is not None
    now, pauses = 0, []
    for _ in range(14):
        told.failed(alert, "refused", now, 0.0)
        pauses.append(alert.next_try - now)
        assert told.due("mail", alert.next_try - 1) is None
        now = alert.next_try
        assert told.due("mail", now) is alert
    assert pauses[:3] == [5 * SECOND, 10 * SECOND, 20 * SECOND]
    assert pauses[-1] == LONGEST_PAUSE
    told.failed(alert, "refused", now, 0.0)
    told.take(event("clock", "wall clock"), now)
    assert stored(told).due("mail", now + LONGEST_SILENCE - 1) is None
    other = told.due("mail", now + LONGEST_SILENCE)
    assert other is not None
    assert other.kind == "clock"
    told.sent(other, now + LONGEST_SILENCE)
    assert told.due("mail", now + LONGEST_SILENCE) is alert, "it works again: nothing waits for its hour"
    told.failed(alert, "busy", now, 1.0, retry_after=10 * MINUTE)
    assert alert.next_try - now >= 10 * MINUTE


def test_one_that_is_refused_for_ever_does_not_hold_up_the_others() -> None:
    """And that something is over is told after that it began."""
    told = book()
    bad, good = event("detect", "bad@example.org"), event("detect", "good@example.org")
    told.take(event(subject="bad@example.org"), 0)
    told.take(event(subject="bad@example.org", resolved=True), 1)
    told.take(good, 2)
    told.take(bad, 3)
    stored(told)
    now, arrived = 3, []
    for _ in range(20):
        alert = told.due("mail", now)
        if alert is None:
            now += MINUTE
        elif alert.kind == "suspend":
            assert not alert.resolved
            told.failed(alert, "answered 400", now, 0.5)
        else:
            arrived.append(alert.subject)
            told.sent(alert, now)
    assert sorted(arrived) == ["bad@example.org", "good@example.org"]


def test_gone_stops_the_channel_until_the_admin_says_otherwise() -> None:
    """410 Gone: nothing is sent any more, and nothing is lost."""
    told = book("mail", "web")
    told.take(event(), 0)
    alert = stored(told).due("web", 0)
    assert alert is not None
    told.gone(alert, "answered 410 Gone", 0)
    told.take(event("clock", "wall clock"), 1)
    stored(told)
    assert told.due("web", DAY) is None
    assert told.due("mail", 1) is not None
    told.take(event(RETRY, "web"), 2)
    assert [alert.channel for alert in delivered(told, 2, "web")] == ["web", "web"]


def test_what_nobody_takes_for_a_week_is_given_up_and_said_to_be() -> None:
    """An hour is nothing; a week is enough."""
    told = book()
    told.take(event(), 0)
    alert = stored(told).due("mail", 0)
    assert alert is not None
    told.failed(alert, "refused", GIVE_UP - 1, 0.0)
    assert alert.state == WAITS
    told.failed(alert, "refused", GIVE_UP, 0.0)
    assert alert.state == GIVEN_UP
    told.take(event("clock", "wall clock"), 0)
    told.configure([])
    assert [alert.kind for alert in told.expire(GIVE_UP)] == ["clock"]
    assert not told.waiting


def test_retry_sends_what_waits_at_once() -> None:
    """policyctl alert retry: who has mended the channel does not wait an hour."""
    told = book()
    told.take(event(), 0)
    alert = stored(told).due("mail", 0)
    assert alert is not None
    told.failed(alert, "refused", 0, 0.0)
    assert told.due("mail", 1) is None
    told.take(event(RETRY, alert.uid), 1)
    assert told.due("mail", 1) is alert


def test_a_restart_knows_what_was_told_and_what_waits() -> None:
    """Nothing is told twice because of it, and nothing is forgotten."""
    before = book()
    before.take(event(), 0)
    before.take(event("clock", "wall clock"), 0)
    (first, *_) = delivered_one(before)
    changes = before.changes()
    after = book()
    after.restore(
        list(before.waiting.values()),
        dict(before.told),
        {},
    )
    assert changes.alerts[first.uid].state == SENT
    assert not after.take(event(), MINUTE)
    assert [alert.kind for alert in delivered(after, MINUTE)] == ["clock"]


def delivered_one(book: Book) -> list[Alert]:
    alert = stored(book).due("mail", 0)
    assert alert is not None
    book.sent(alert, 0)
    return [alert]


def test_what_could_not_be_written_is_written_later_and_newer_news_hold() -> None:
    """A failed exchange loses nothing."""
    told = book()
    told.take(event(), 0)
    lost = told.changes()
    alert = told.due("mail", 0, unstored=True)
    assert alert is not None
    told.sent(alert, 1)
    told.put_back(lost)
    (written,) = told.changes().alerts.values()
    assert written.state == SENT
    assert not told.changes()
    told.take(event("clock", "wall clock"), 2)
    told.changes()
    told.write_anew()
    assert [each.kind for each in told.changes().alerts.values()] == ["clock"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["suspend", "detect", "dnsbl-sick", "quota-80%"]),
            st.sampled_from(["a", "b", "c"]),
            st.booleans(),
            st.sampled_from(["take", "fail", "send"]),
            st.integers(0, 2 * HOUR),
        ),
        max_size=60,
    )
)
def test_no_alert_is_lost_and_none_is_sent_twice(steps: list[tuple[str, str, bool, str, int]]) -> None:
    """Whatever happens in whatever order: each alert that was made is sent exactly once when the channel works at last, what
    is over never before what began."""
    told = book(repeat_after=HOUR)
    now = 0
    made: dict[str, Alert] = {}
    arrived: list[Alert] = []
    for kind, subject, resolved, what, wait in steps:
        now += wait
        for alert in told.take(event(kind, subject, resolved), now):
            made[alert.uid] = alert
        stored(told)
        due = told.due("mail", now)
        if due is not None and what == "fail":
            told.failed(due, "no", now, 0.5)
        elif due is not None and what == "send":
            told.sent(due, now)
            arrived.append(due)
    for _ in range(200):
        now += 10 * MINUTE
        arrived += delivered(told, now)
    assert sorted(alert.uid for alert in arrived) == sorted(made)
    open_: set[tuple[str, str]] = set()
    for alert in arrived:
        for one in alert.facts.get("events", [{"subject": alert.subject, "resolved": alert.resolved}]):
            thing = alert.kind, one["subject"]
            assert not one["resolved"] or thing in open_
            if alert.kind in LASTING:
                (open_.discard if one["resolved"] else open_.add)(thing)

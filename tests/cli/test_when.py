"""Times as an admin types them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.cli.when import ending, iso, parse_for, parse_past, parse_until, spoken, stamp
from policyd.units import DAY, HOUR, MINUTE


@pytest.fixture(autouse=True)
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Without the zone files, which a machine need not have.
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


def exact(text: str) -> datetime:
    return datetime.fromisoformat(text.replace(" +", "+"))


# A Wednesday.
def noon() -> datetime:
    return local("2026-11-25 12:00")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("24h", "2026-11-26 12:00"),
        ("1h30m", "2026-11-25 13:30"),
        ("18:30", "2026-11-25 18:30"),
        ("9:00", "2026-11-26 09:00"),
        ("12:00", "2026-11-26 12:00"),
        ("today 18:30", "2026-11-25 18:30"),
        ("tomorrow 08:00", "2026-11-26 08:00"),
        ("  Tomorrow   8:00 ", "2026-11-26 08:00"),
        ("tomorrow", "2026-11-26 00:00"),
        ("monday 9:00", "2026-11-30 09:00"),
        ("mon", "2026-11-30 00:00"),
        ("wednesday 13:00", "2026-11-25 13:00"),
        ("wednesday 11:00", "2026-12-02 11:00"),
        ("2026-12-01", "2026-12-01 00:00"),
        ("2026-12-1 6:05", "2026-12-01 06:05"),
        ("2026-12-01T18:30:15", "2026-12-01 18:30:15"),
        ("2026-12-01 18:30 +0000", "2026-12-01 19:30"),
        ("2026-12-01T18:30Z", "2026-12-01 19:30"),
        ("2026-12-01 18:30-05:00", "2026-12-02 00:30"),
        ("2027-07-01 12:00", "2027-07-01 12:00"),
    ],
)
def test_a_moment(text: str, meant: str) -> None:
    """What is typed means the next such moment in the local zone; what policyctl prints can be typed again."""
    assert parse_until(text, noon()) == local(meant)


def test_a_day_of_23_hours() -> None:
    """'tomorrow 08:00' is 08:00 on the clock on the wall, also when the night has an hour less."""
    before = local("2027-03-27 12:00")
    assert parse_until("tomorrow 08:00", before) - before == timedelta(hours=19)
    assert parse_until("24h", before) - before == timedelta(hours=24)


@pytest.mark.parametrize(
    ("now", "text", "meant"),
    [
        # 2026-10-25: at 03:00 +0200 the clock is set back to 02:00 +0100.
        ("2026-10-25 01:00 +0200", "02:30", "2026-10-25 02:30 +0200"),
        ("2026-10-25 01:00 +0200", "2026-10-25 02:30", "2026-10-25 02:30 +0200"),
        ("2026-10-25 02:40 +0200", "02:30", "2026-10-25 02:30 +0100"),
        ("2026-10-25 02:40 +0200", "today 02:30", "2026-10-25 02:30 +0100"),
        ("2026-10-25 02:40 +0200", "2026-10-25 02:30", "2026-10-25 02:30 +0100"),
        ("2026-10-25 02:10 +0100", "02:30", "2026-10-25 02:30 +0100"),
        ("2026-10-25 02:40 +0100", "02:30", "2026-10-26 02:30 +0100"),
        ("2026-10-25 02:40 +0200", "2026-10-25 02:50 +0100", "2026-10-25 02:50 +0100"),
        ("2026-10-25 01:00 +0200", "03:00", "2026-10-25 03:00 +0100"),
        ("2026-10-24 12:00 +0200", "24h", "2026-10-25 11:00 +0100"),
        # 2027-03-28: at 02:00 +0100 the clock is set forward to 03:00 +0200.
        ("2027-03-28 01:00 +0100", "02:30", "2027-03-28 03:30 +0200"),
        ("2027-03-27 12:00 +0100", "tomorrow 02:30", "2027-03-28 03:30 +0200"),
        ("2027-03-28 03:10 +0200", "02:30", "2027-03-28 03:30 +0200"),
        ("2027-03-28 03:40 +0200", "02:30", "2027-03-29 02:30 +0200"),
        ("2027-03-28 01:59 +0100", "03:00", "2027-03-28 03:00 +0200"),
    ],
)
def test_the_hours_that_the_clock_shows_twice_or_not_at_all(now: str, text: str, meant: str) -> None:
    """The first such moment that is ahead; one that is left out counts on from before the gap."""
    assert parse_until(text, exact(now)) == exact(meant)


@pytest.mark.parametrize(
    "text", ["2026-10-25 02:30 +0200", "2026-10-25 02:30 +0100", "2026-11-25 11:59 +0100"]
)
def test_what_is_printed_can_be_typed(text: str) -> None:
    """To the second for people, to the millisecond for programs: both mean the same moment again, in the past or ahead."""
    moment = exact(text)
    wall = round(moment.timestamp() * 1000)
    assert ending(wall) == text
    assert stamp(wall) == text.replace(" +", ":00 +")
    assert spoken(iso(wall)) == stamp(wall)
    for printed in (ending(wall), stamp(wall), str(iso(wall))):
        assert parse_past(printed, noon()) == moment
    for printed in (ending(wall), stamp(wall)):
        assert parse_until(printed, moment - timedelta(hours=5)) == moment
    assert parse_until(str(iso(wall)), moment - timedelta(hours=5)) == moment


def test_an_end_is_never_named_too_early() -> None:
    """It is rounded up to the minute; a second of slack is for reading two clocks."""
    eight = round(local("2026-11-25 08:00").timestamp() * 1000)
    assert ending(eight) == ending(eight + 1_000) == "2026-11-25 08:00 +0100"
    assert ending(eight + 1_001) == ending(eight + 60_000) == "2026-11-25 08:01 +0100"
    assert (stamp(0), ending(0), iso(0), spoken(None)) == ("", "", None, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no time"),
        ("soon", "is no time"),
        ("next week", "is no time"),
        ("8", "is no time"),
        ("8am", "is no time"),
        ("+0100", "is no time"),
        ("25:00", "hour must be in 0..23"),
        ("18:60", "minute must be in 0..59"),
        ("2026-02-30", "day"),
        ("2026-13-01", "month must be in 1..12"),
        ("today 11:00", "is in the past: it is 2026-11-25 12:00"),
        ("2026-11-24", "is in the past"),
        ("2226-12-01", "more than 100 years"),
        ("9999-12-31 23:59", "more than 100 years"),
        ("0001-01-01", "is in the past"),
        ("18:30 +9900", "no valid time zone"),
        ("99999999999w", "100 years"),
        ("0s", "no time at all"),
        ("18:30\n19:30", "is no time"),
        ("\uff11\uff18:\uff13\uff10", "is no time"),
    ],
)
def test_what_is_no_moment(text: str, says: str) -> None:
    """A wrong time is named, and never taken for another one."""
    with pytest.raises(ValueError, match=re.escape(repr(text))) as caught:
        parse_until(text, noon())
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "ms"), [("24h", DAY), ("7d", 7 * DAY), (" 1h30m ", 90 * MINUTE), ("2H", 2 * HOUR)]
)
def test_a_duration(text: str, ms: int) -> None:
    """--for takes what the configuration takes."""
    assert parse_for(text) == ms


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("18:30", "--until"),
        ("tomorrow", "--until"),
        ("2026-12-01", "--until"),
        ("24", "is no duration"),
        ("-1h", "--until"),
        ("0m", "no time at all"),
    ],
)
def test_what_is_no_duration(text: str, says: str) -> None:
    """A wrong duration is named, with the option that was meant."""
    with pytest.raises(ValueError, match="is no") as caught:
        parse_for(text)
    assert says in str(caught.value)


@given(st.text(st.characters() | st.sampled_from("0123456789-:+ tzZmonday"), max_size=30))
def test_any_text(text: str) -> None:
    """Whatever is typed, the answer is a moment ahead or one clear error."""
    now = noon()
    refused = ""
    try:
        moment = parse_until(text, now)
    except ValueError as error:
        refused, moment = str(error), now
    assert refused or moment > now

"""Times of log lines: every format that a logger on Debian writes, without a year and with."""

from __future__ import annotations

import calendar
import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.maillog.stamps import Stamps

UTC_MS = calendar.timegm((2026, 11, 28, 11, 20, 32)) * 1000


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """This machine's zone for the time of a test."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def ends(*moment: int) -> float:
    return float(calendar.timegm((*moment, 0, 0, 0)))


@pytest.mark.parametrize(
    "line",
    [
        b"2026-11-28T11:20:32.000000+00:00 mx postfix/qmgr[1]: x",
        b"2026-11-28T12:20:32+01:00 mx postfix/qmgr[1]: x",
        b"2026-11-28T06:50:32.000-0430 mx postfix/qmgr[1]: x",
        b"2026-11-28T11:20:32Z mx postfix/qmgr[1]: x",
        b"2026-11-28 11:20:32Z mx postfix/qmgr[1]: x",
        b"@1795864832.000000 mx postfix/qmgr[1]: x",
    ],
)
def test_a_stamp_with_a_zone_is_the_same_moment_everywhere(line: bytes, zone: pytest.MonkeyPatch) -> None:
    """RFC 3339 as rsyslog and syslog-ng write it, journalctl's zone without a colon, and the journal's own number."""
    assert Stamps(0).ms(line) == UTC_MS


def test_milliseconds_are_kept() -> None:
    """rsyslog's high precision: what stands behind the third digit is left out."""
    assert Stamps(0).ms(b"2026-11-28T11:20:32.987654+00:00 mx x") == UTC_MS + 987


@pytest.mark.parametrize(
    ("stamp", "year"),
    [
        (b"Nov 28 11:20:32", 2026),
        (b"Nov 30 11:20:32", 2025),
        (b"Nov  8 11:20:32", 2026),
        (b"Jan  1 00:00:00", 2026),
    ],
)
def test_a_stamp_without_a_year_is_the_newest_that_is_not_after_the_end(stamp: bytes, year: int) -> None:
    """The log's last change says the year; a day of slack is for clocks that differ."""
    at = Stamps(ends(2026, 11, 28)).ms(stamp + b" mx x")
    assert time.localtime(at / 1000).tm_year == year


def test_29_february_is_that_of_the_last_leap_year() -> None:
    """A day that most years do not have says more of the year than the end does."""
    at = Stamps(ends(2026, 3, 1)).ms(b"Feb 29 10:00:00 mx x")
    assert time.localtime(at / 1000)[:3] == (2024, 2, 29)


def test_january_follows_december() -> None:
    """A log over the turn of a year is in one piece."""
    stamps = Stamps(ends(2026, 1, 3))
    first, second, third = (
        stamps.ms(line)
        for line in (b"Dec 31 23:59:59 mx x", b"Jan  1 00:00:01 mx x", b"Jan  2 00:00:00 mx x")
    )
    assert (second - first, third - second) == (2000, 86_399_000)
    assert time.localtime(first / 1000).tm_year == 2025


def test_a_line_a_little_out_of_order_changes_no_year() -> None:
    """Lines of several processes come a second late: that is no turn of a year, and no other hour."""
    stamps = Stamps(ends(2026, 11, 28))
    later, before = stamps.ms(b"Nov 27 10:00:01 mx x"), stamps.ms(b"Nov 27 09:59:59 mx x")
    assert later - before == 2000


def test_the_hour_that_comes_twice_comes_twice(zone: pytest.MonkeyPatch) -> None:
    """At the end of summer time, 02:30 is first half an hour after 02:00, and then half an hour before 03:00."""
    stamps = Stamps(ends(2026, 11, 1))
    lines = (
        b"Oct 25 02:00:00 mx",
        b"Oct 25 02:30:00 mx",
        b"Oct 25 02:59:00 mx",
        b"Oct 25 02:30:00 mx",
        b"Oct 25 03:00:00 mx",
    )
    times = [stamps.ms(line + b" x") for line in lines]
    assert [(late - early) // 60_000 for early, late in itertools.pairwise(times)] == [
        30,
        29,
        31,
        30,
    ]


def test_a_summer_and_a_winter_day_are_local_time(zone: pytest.MonkeyPatch) -> None:
    """RFC 3164 writes the clock on the wall."""
    stamps = Stamps(ends(2026, 11, 28))
    assert stamps.ms(b"Jul  1 12:00:00 mx x") == calendar.timegm((2026, 7, 1, 10, 0, 0)) * 1000
    assert stamps.ms(b"Nov 28 12:00:00 mx x") == calendar.timegm((2026, 11, 28, 11, 0, 0)) * 1000


@pytest.mark.parametrize(
    "line",
    [b"", b" ", b"Nov", b"Nov 31 10:00:00 x", b"Nov 28 10:00:", b"Nov 28 10:00:aa", b"2026-13-28T11:20:32Z x",
     b"2026-11-28T11:20:32", b"@12", b"@123456789012.000000 x", b"\xff\xfe", b"9" * 40],
)  # fmt: skip
def test_what_is_no_time_is_none(line: bytes) -> None:
    """0, and no error: a log may hold anything."""
    assert Stamps(ends(2026, 11, 28)).ms(line) == 0


@given(
    st.lists(
        st.binary(max_size=40) | st.from_regex(rb"\A(Nov|Feb|Dec) [ 0-3]\d \d\d:\d\d:\d\d [a-z]\Z"),
        max_size=8,
    )
)
def test_any_bytes_have_a_time_or_none(lines: list[bytes]) -> None:
    """No line of any log ends the reading."""
    stamps = Stamps(ends(2026, 11, 28))
    assert all(stamps.ms(line) >= 0 for line in lines)

"""Durations, sizes and limits as an admin writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.units import (
    DAY,
    HOUR,
    MAX_AMOUNT,
    MAX_WINDOW,
    MIN_WINDOW,
    MINUTE,
    SECOND,
    UNITS,
    Limit,
    format_duration,
    format_size,
    parse_duration,
    parse_limit,
    parse_size,
    parse_window,
    spoken_window,
)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0s", 0),
        ("1ms", 1),
        ("250ms", 250),
        ("30s", 30 * SECOND),
        ("5m", 5 * MINUTE),
        ("1h", HOUR),
        ("1h30m", 90 * MINUTE),
        ("1d12h", 36 * HOUR),
        ("7d", 7 * DAY),
        ("2w", 14 * DAY),
        ("1m1ms", MINUTE + 1),
        ("36600d", 36_600 * DAY),
    ],
)
def test_durations(text: str, ms: int) -> None:
    """Each unit, and several in a row."""
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "h",
        "5 m",
        " 5m",
        "5m ",
        "-5m",
        "1.5h",
        "5M",
        "5y",
        "5m30",
        "1h,30m",
        "\u0665m",
        "5m\n",
        "36601d",
        "9" * 12 + "w",
    ],
)
def test_what_is_no_duration_says_so(text: str) -> None:
    """The text is quoted in the error, and what is right is shown."""
    with pytest.raises(ValueError, match=r"no duration|longer than 100 years") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 100 * MAX_WINDOW))
def test_a_formatted_duration_reads_back(ms: int) -> None:
    """Exactly, to the millisecond."""
    assert parse_duration(format_duration(ms)) == ms


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    """Never another exception, never a negative duration."""
    for parse in (parse_duration, parse_window, parse_size):
        try:
            number = parse(text)
        except ValueError:
            continue
        assert number >= 0


def test_durations_below_zero_are_written_as_none() -> None:
    """An expiry that has passed."""
    assert format_duration(-5) == "0s"
    assert format_duration(0) == "0s"
    assert format_duration(90 * SECOND) == "1m30s"


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (SECOND, "second"),
        (30 * SECOND, "30 seconds"),
        (MINUTE, "minute"),
        (90 * MINUTE, "90 minutes"),
        (HOUR, "hour"),
        (DAY, "day"),
        (7 * DAY, "7 days"),
        (1_500, "1s500ms"),
    ],
)
def test_windows_are_spoken(ms: int, words: str) -> None:
    """As they stand after "per"."""
    assert spoken_window(ms) == words


def test_windows_reach_from_a_second_to_366_days() -> None:
    """Both ends belong to it."""
    assert parse_window("1s") == MIN_WINDOW
    assert parse_window("366d") == MAX_WINDOW
    for text in ("999ms", "0s", "367d", "366d1ms"):
        with pytest.raises(ValueError, match="outside 1s to 366d"):
            parse_window(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("500", 500),
        ("500B", 500),
        ("500KB", 500_000),
        ("10mb", 10_000_000),
        ("10 MB", 10_000_000),
        (" 1GB ", 10**9),
        ("1TB", 10**12),
        ("1KiB", 1024),
        ("1MiB", 1024**2),
        ("1GiB", 1024**3),
        ("1TiB", 1024**4),
        (str(MAX_AMOUNT), MAX_AMOUNT),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Thousands and powers of 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MB",
        "10k",
        "10i",
        "10iB",
        "1.5GB",
        "-1",
        "10 M B",
        "10PB",
        str(MAX_AMOUNT + 1),
        "9999TiB",
        "\u0661",
    ],
)
def test_what_is_no_size_says_so(text: str) -> None:
    """Also what is too large to count exactly."""
    with pytest.raises(ValueError, match=r"no size|more than policyd can count"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1KB"),
        (1_500_000_000, "1.5GB"),
        (20_000_000, "20MB"),
        (3 * 10**12, "3TB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    """Rounded to a tenth."""
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("20 recipients per 1h", Limit(20, "recipients", HOUR)),
        ("1 recipient per 1s", Limit(1, "recipients", SECOND)),
        ("5 messages per 1m", Limit(5, "messages", MINUTE)),
        ("0 messages per 1d", Limit(0, "messages", DAY)),
        ("20MB per 1d", Limit(20_000_000, "bytes", DAY)),
        ("20 MB per 1d", Limit(20_000_000, "bytes", DAY)),
        ("1GiB per 7d", Limit(1024**3, "bytes", 7 * DAY)),
        ("500 bytes per 1m", Limit(500, "bytes", MINUTE)),
        ("500B per 1m", Limit(500, "bytes", MINUTE)),
        ("  20  Recipients  per  1h30m ", Limit(20, "recipients", 90 * MINUTE)),
        (f"{MAX_AMOUNT} recipients per 366d", Limit(MAX_AMOUNT, "recipients", MAX_WINDOW)),
    ],
)
def test_limits(text: str, limit: Limit) -> None:
    """A number with its unit, or a size, and the window."""
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no limit"),
        ("20 recipients", "is no limit"),
        ("20 recipients per", "is no limit"),
        ("per 1h", "is no limit"),
        ("20 per 1h", "does not say what it counts"),
        ("20 mails per 1h", "is no unit"),
        ("20MB recipients per 1h", "no whole number"),
        ("1.5 messages per 1h", "no whole number"),
        ("-1 messages per 1h", "no whole number"),
        ("\u0661 messages per 1h", "no whole number"),
        ("12345678901234567 messages per 1h", "no whole number"),
        (f"{MAX_AMOUNT + 1} messages per 1h", "more than policyd can count"),
        ("20XB per 1h", "no size"),
        ("20 recipients per hour", "no duration"),
        ("20 recipients per 500ms", "outside 1s to 366d"),
        ("20 recipients per 367d", "outside 1s to 366d"),
        ("20 recipients per 1h per 1d", "is no"),
    ],
)
def test_what_is_no_limit_says_why(text: str, why: str) -> None:
    """The part that is wrong is named."""
    with pytest.raises(ValueError, match=why):
        parse_limit(text)


@given(st.integers(0, MAX_AMOUNT), st.sampled_from(UNITS), st.integers(MIN_WINDOW, MAX_WINDOW))
def test_a_written_limit_reads_back(amount: int, unit: str, window: int) -> None:
    """`policyctl` prints limits in the words in which the configuration takes them, without rounding."""
    limit = Limit(amount, unit, window)
    assert parse_limit(str(limit)) == limit


@given(st.text(max_size=30) | st.from_regex(r"\A\d{1,20} ?[a-zA-Z]{0,9} per \d{1,5}[a-z]{1,2}\Z"))
def test_any_text_is_a_limit_or_a_value_error(text: str) -> None:
    """Never another exception."""
    try:
        limit = parse_limit(text)
    except ValueError:
        return
    assert limit.unit in UNITS
    assert 0 <= limit.amount <= MAX_AMOUNT
    assert MIN_WINDOW <= limit.window <= MAX_WINDOW

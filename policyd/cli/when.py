"""Times, as an admin types them and as policyctl prints them, in the local time zone; what is printed can be typed.

For people there is one form, ``2026-12-01 18:30:05 +0100``, without the seconds where something ends (then it is rounded
up: nothing ends before the time that was named); for programs ISO 8601 with milliseconds, in UTC.

A time of day that the clock shows twice, at the end of summer time, means the first of the two that is still ahead. One that
the clock leaves out counts by the offset before the gap (RFC 5545 section 3.3.5): 02:30 is 03:30 then.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, timezone

from policyd.units import parse_duration

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdw]))+", re.ASCII)
_MOMENT = re.compile(
    r"(?:(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<date>\d{1,2})|(?P<day>[a-z]{3,9}))?"
    r"(?:(?:^|(?<=\d)t| )(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.\d{1,6})?)?)?"
    r"(?: ?(?P<zone>z|[+-]\d{2}:?\d{2}))?",
    re.ASCII,
)


def parse_for(text: str) -> int:
    """Milliseconds meant by ``24h`` or ``7d``; :class:`ValueError` says what is wrong."""
    text = text.strip().lower()
    if not _DURATION.fullmatch(text) and (":" in text or "-" in text or text.isalpha()):
        raise ValueError(
            f"{text!r} is no duration; write 30m, 24h or 7d, or --until for a time of day or a date"
        )
    duration = parse_duration(text)
    if not duration:
        raise ValueError(f"{text!r} is no time at all; write 30m, 24h or 7d")
    return duration


def parse_until(text: str, now: datetime) -> datetime:
    """The moment meant by ``18:30``, ``tomorrow 08:00``, ``monday 9:00``, ``2026-12-01``, ``2026-12-01 18:30 +0100`` or ``24h``.

    A day without a time means its beginning; a time or weekday alone the next one after ``now`` (which has a zone).
    :class:`ValueError` says what is wrong, also of a moment in the past.
    """
    words = " ".join(text.lower().split())
    if _DURATION.fullmatch(words):
        return now + timedelta(milliseconds=parse_for(words))
    match = _MOMENT.fullmatch(words)
    if match is None or not (match["year"] or match["day"] or match["hour"]):
        raise _no_time(text)
    zone = _zone(match["zone"], text)
    here = now.astimezone(zone)
    try:
        clock = time(int(match["hour"] or 0), int(match["minute"] or 0), int(match["second"] or 0))
        if match["year"]:
            day, step = date(int(match["year"]), int(match["month"]), int(match["date"])), 0
        else:
            ahead, step = _ahead(match["day"], here, text)
            day = here.date() + timedelta(days=ahead)
    except ValueError as error:
        if str(error).startswith(repr(text)):
            raise
        raise ValueError(f"{text!r} is no time: {error}") from None
    if day.year > here.year + 100:
        raise ValueError(f"{text!r} is more than 100 years away")
    # A day's margin for the zone; years at the end of the calendar have no instant in every zone.
    past = day < here.date() - timedelta(days=2)
    if not past:
        for each in (day, day + timedelta(days=step)) if step else (day,):
            for moment in _moments(datetime.combine(each, clock), zone):
                if moment > now:
                    return moment
    raise ValueError(f"{text!r} is in the past: it is {here:%Y-%m-%d %H:%M}")


def _no_time(text: str) -> ValueError:
    return ValueError(
        f"{text!r} is no time; write 24h, 18:30, 'tomorrow 08:00', 'monday 9:00', 2026-12-01 or '2026-12-01 18:30'"
    )


def _zone(text: str | None, whole: str) -> timezone | None:
    if not text:
        return None
    if text == "z":
        return UTC
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    if offset >= timedelta(hours=24):
        raise ValueError(f"{whole!r} has no valid time zone; write +0100")
    return timezone(-offset if text[0] == "-" else offset)


def _ahead(day: str | None, here: datetime, text: str) -> tuple[int, int]:
    """How many days ahead ``day`` is, and how many more when that moment has passed."""
    if day is None:
        return 0, 1
    if day in ("today", "tomorrow"):
        return int(day == "tomorrow"), 0
    for number, name in enumerate(_DAYS):
        if day in (name, name[:3]):
            return (number - here.weekday()) % 7, 7
    raise _no_time(text)


def _moments(naive: datetime, zone: timezone | None) -> list[datetime]:
    """The moments at which clocks show this time; two when they are set back over it."""
    if zone is not None:
        return [naive.replace(tzinfo=zone)]
    first, second = sorted((naive.astimezone(), naive.replace(fold=1).astimezone()))
    return [first, second] if first.replace(tzinfo=None, fold=0) == naive else [second]


_DAYTIME = re.compile(
    r"(?:(?P<day>today|yesterday)|(?P<date>\d{4}-\d{2}-\d{2}))?"
    r"(?:(?:^|[t ])(?P<clock>\d{1,2}:\d{2}(?::\d{2})?)(?:\.\d{1,6})?(?: ?(?P<zone>z|[+-]\d{2}:?\d{2}))?)?",
    re.ASCII,
)


def parse_past(text: str, now: datetime) -> datetime:
    """The moment meant by ``2h`` (ago), ``14:30``, ``yesterday``, ``2026-12-01 08:00``; :class:`ValueError` otherwise."""
    words = " ".join(text.lower().split())
    wrong = ValueError(
        f"{text!r} is no time; write 2h (ago), 14:30, yesterday, 'yesterday 8:00' or '2026-12-01 08:00'"
    )
    if words in ("", "now"):
        return now
    match = _DAYTIME.fullmatch(words)
    if match is None:
        try:
            return now - timedelta(milliseconds=parse_duration(words.removesuffix(" ago")))
        except (ValueError, OverflowError):
            raise wrong from None
    try:
        zone = _zone(match["zone"], text)
        here = now.astimezone(zone)
        day = date.fromisoformat(match["date"]) if match["date"] else here.date()
        if match["day"] == "yesterday":
            day -= timedelta(days=1)
        parts = [int(part) for part in (match["clock"] or "0:00").split(":")]
        clock = time(parts[0], parts[1], parts[2] if len(parts) == 3 else 0)
        moment = _moments(datetime.combine(day, clock), zone)[0]
        if not match["day"] and not match["date"] and moment > now:
            moment = _moments(datetime.combine(day - timedelta(days=1), clock), zone)[0]
    except (ValueError, OverflowError):
        raise wrong from None
    return moment


# --- what is printed --------------------------------------------------------------------------------------------------


def _local(wall_ms: int) -> datetime:
    return datetime.fromtimestamp(wall_ms / 1000).astimezone()


def stamp(wall_ms: int) -> str:
    """A wall time for people, to the second; empty for 0."""
    return f"{_local(wall_ms):%Y-%m-%d %H:%M:%S %z}" if wall_ms else ""


def ending(wall_ms: int) -> str:
    """The wall time at which something ends, for people: to the minute, rounded up; empty for 0."""
    # Reading two clocks takes a moment: 08:00 and a few ms is meant as 08:00.
    return f"{_local(-(-(wall_ms - 1_000) // 60_000) * 60_000):%Y-%m-%d %H:%M %z}" if wall_ms else ""


def iso(wall_ms: int) -> str | None:
    """A wall time for programs, in UTC to the millisecond; ``None`` for 0."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds") if wall_ms else None


def spoken(text: str | None) -> str:
    """What :func:`iso` gave, for people; empty for ``None``."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S %z}" if text else ""

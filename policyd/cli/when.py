"""The times an admin types: how long (``24h``) and until when (``tomorrow 08:00``), in the local time zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, timezone

from policyd.units import parse_duration

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdw]))+", re.ASCII)
_MOMENT = re.compile(
    r"(?:(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<date>\d{1,2})|(?P<day>[a-z]{3,9}))?"
    r"(?:(?:^|(?<=\d)t| )(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?)?"
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
        moment = _at(datetime.combine(day, clock), zone)
        if step and moment <= now:
            moment = _at(datetime.combine(day + timedelta(days=step), clock), zone)
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


def _at(naive: datetime, zone: timezone | None) -> datetime:
    return naive.astimezone() if zone is None else naive.replace(tzinfo=zone)

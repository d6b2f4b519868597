"""When a line of a mail log was written: the formats that loggers use, as milliseconds since 1970.

- ``Nov 28 11:20:32 host ...``: RFC 3164, as rsyslog, syslog-ng, journalctl and Postfix's own maillog_file write it. It has
  neither year nor zone. The zone is this machine's; the year follows from when the log ends, and from December before January.
- ``2026-11-28T11:20:32.123456+01:00 host ...``: RFC 3339, rsyslog's "high precision" (Debian 12's default), syslog-ng's iso,
  and ``journalctl -o short-iso-precise``, which leaves the colon out of the zone.
- ``@1732792832.123456 host ...``: what :mod:`policyd.maillog.sources` makes of the journal's JSON.
"""

from __future__ import annotations

import calendar
import re
import time

_MONTHS = {
    name: number for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}
_OLD = re.compile(rb"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) ([ 0-3]?\d) ([0-2]\d):([0-5]\d):")
_ISO = re.compile(
    rb"(\d{4})-([01]\d)-([0-3]\d)[T ]([0-2]\d):([0-5]\d):([0-6]\d)(?:[.,](\d{1,9}))?(Z|[+-][0-2]\d:?[0-5]\d)? "
)
_SINCE = re.compile(rb"@(\d{1,11})\.(\d{6}) ")
_DAY = 86_400
#: A line may be so much newer than the end of its file is said to be, s: clocks differ.
_SLACK = _DAY
#: How far back a year is looked for: 29 February is there every four years, or eight.
_YEARS = 9


class Stamps:
    """Reads the stamps of one file, in the order of its lines."""

    def __init__(self, ends: float) -> None:
        """
        :param ends: when the file was last written, s since 1970; a stamp without a year is not newer.
        """
        self._ends = ends
        self._year = 0
        self._minute = b""
        self._base = 0
        self._last = 0

    def ms(self, line: bytes) -> int:
        """When ``line`` was written, ms since 1970; 0 when it does not begin with a time."""
        # Nearly always the minute is that of the line before.
        if line[:13] == self._minute:
            second = line[13:15]
            if second.isdigit() and len(second) == 2:
                return self._base + int(second) * 1000
        first = line[:1]
        if first == b"@":
            since = _SINCE.match(line)
            return int(since[1]) * 1000 + int(since[2]) // 1000 if since else 0
        return self._iso(line) if first.isdigit() else self._old(line)

    def _iso(self, line: bytes) -> int:
        found = _ISO.match(line)
        if found is None:
            return 0
        year, month, day, hour, minute, second = map(int, found.groups()[:6])
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return 0
        zone = found[8]
        if zone is None:
            at = _local(year, month, day, hour, minute, -1) or 0
        else:
            at = calendar.timegm((year, month, day, hour, minute, 0))
            if zone != b"Z":
                away = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
                at += away if zone[:1] == b"-" else -away
        return max(0, (at + second) * 1000 + int((found[7] or b"").ljust(3, b"0")[:3]))

    def _old(self, line: bytes) -> int:
        found = _OLD.match(line)
        if found is None:
            return 0
        month, day, hour, minute = _MONTHS[found[1]], int(found[2]), int(found[3]), int(found[4])
        at = self._guess(month, day, hour, minute) if not self._year else None
        if at is None:
            at = _local(self._year, month, day, hour, minute, -1)
            # January after December; a log does not go back half a year otherwise.
            if at is not None and at < self._last - 180 * _DAY:
                later = _local(self._year + 1, month, day, hour, minute, -1)
                if later is not None:
                    at, self._year = later, self._year + 1
        if at is None:
            return 0
        # An hour that comes twice at the end of summer time: the second time when it would lie before what went before.
        if at < self._last - 120:
            again = _local(self._year, month, day, hour, minute, 0)
            if again is not None and at < again <= at + 7200:
                at = again
        self._last = max(self._last, at)
        second = line[found.end() : found.end() + 2]
        if not (len(second) == 2 and second.isdigit()):
            return 0
        if found.end() == 13:
            self._minute, self._base = line[:13], at * 1000
        return at * 1000 + int(second) * 1000

    def _guess(self, month: int, day: int, hour: int, minute: int) -> int | None:
        """The newest such time that is not after the end; the year is kept."""
        newest = time.localtime(self._ends + _SLACK).tm_year
        for year in range(newest, newest - _YEARS, -1):
            at = _local(year, month, day, hour, minute, -1)
            if at is not None and at <= self._ends + _SLACK:
                self._year = year
                return at
        return None


def _local(year: int, month: int, day: int, hour: int, minute: int, summer: int) -> int | None:
    """Seconds since 1970 of a minute in this machine's zone; ``None`` when there is no such day.

    :param summer: 1, 0: which of the two, when summer time's end makes it come twice; -1: the first.
    """
    if not 1970 <= year <= 9998 or day < 1 or day > calendar.monthrange(year, month)[1]:
        return None
    try:
        if summer >= 0:
            return int(time.mktime((year, month, day, hour, minute, 0, 0, 0, summer)))
        at = int(time.mktime((year, month, day, hour, minute, 0, 0, 0, -1)))
        first = int(time.mktime((year, month, day, hour, minute, 0, 0, 0, 1))) if time.daylight else at
    except (OverflowError, ValueError):
        return None
    # With the wrong flag mktime answers with another hour of the clock: that one does not come twice.
    return first if time.localtime(first)[3:5] == (hour, minute) else at

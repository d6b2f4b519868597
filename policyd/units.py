"""The quantities an admin writes: durations, sizes and limits, to and from text.

Durations are integer milliseconds everywhere inside policyd, sizes are integer bytes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

#: The shortest and the longest window a limit may have.
MIN_WINDOW = 1 * SECOND
MAX_WINDOW = 366 * DAY
#: Amounts stay exact in SQLite, JSON and JavaScript.
MAX_AMOUNT = 2**53

UNITS = ("messages", "recipients", "bytes")

_DURATION_UNITS = {"ms": 1, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_SIZE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _SIZE_UNITS |= {_letter + "b": 1000**_power, _letter + "ib": 1024**_power}

_DURATION = re.compile(r"(\d{1,12})(ms|s|m|h|d|w)", re.ASCII)
_SIZE = re.compile(r"(\d{1,16})\s*([kmgt]?i?b?)", re.ASCII | re.IGNORECASE)
_LIMIT = re.compile(r"(\S+(?:\s+(?:[KMGT]i?)?B)?)(?:\s+([a-z]+))?\s+per\s+(\S+)", re.ASCII | re.IGNORECASE)


def parse_duration(text: str) -> int:
    """Milliseconds meant by ``30s``, ``5m``, ``1h30m``, ``7d``; :class:`ValueError` says what is wrong."""
    total, at = 0, 0
    for match in _DURATION.finditer(text):
        if match.start() != at:
            break
        total += int(match[1]) * _DURATION_UNITS[match[2]]
        at = match.end()
    if at != len(text) or not text:
        raise ValueError(f"{text!r} is no duration; write 30s, 5m, 1h, 1h30m, 7d or 2w")
    if total > 100 * MAX_WINDOW:
        raise ValueError(f"{text!r} is longer than 100 years")
    return total


def format_duration(ms: int) -> str:
    """A text that :func:`parse_duration` reads back as ``ms``: days, hours, minutes, seconds; ``0s`` below 1 ms."""
    if ms <= 0:
        return "0s"
    parts = []
    for name, size in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)):
        count, ms = divmod(ms, size)
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts)


def spoken_window(ms: int) -> str:
    """A window as it stands after "per" in a sentence: ``hour``, ``day``, ``10 minutes``."""
    for name, size in (("day", DAY), ("hour", HOUR), ("minute", MINUTE), ("second", SECOND)):
        count, rest = divmod(ms, size)
        if count and not rest:
            return name if count == 1 else f"{count} {name}s"
    return format_duration(ms)


def parse_size(text: str) -> int:
    """Bytes meant by ``500KB``, ``10MB`` (thousands) or ``1GiB`` (1024); :class:`ValueError` otherwise."""
    match = _SIZE.fullmatch(text.strip())
    factor = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size; write 500KB, 10MB, 1GB (thousands) or 1GiB (1024)")
    size = int(match[1]) * factor
    if size > MAX_AMOUNT:
        raise ValueError(f"{text!r} is more than policyd can count")
    return size


def format_size(size: int) -> str:
    """A size for people: ``20MB``, ``1.5GB``, ``500 bytes``."""
    for name, factor in (("TB", 1000**4), ("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + name
    return f"{size} bytes"


class Limit(NamedTuple):
    """At most ``amount`` of ``unit`` in any window of ``window`` milliseconds."""

    amount: int
    unit: str
    window: int

    def __str__(self) -> str:
        if self.unit == "bytes":
            whole = next(
                (
                    f"{self.amount // factor}{name}"
                    for name, factor in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000))
                    if self.amount and self.amount % factor == 0
                ),
                f"{self.amount}B",
            )
            return f"{whole} per {format_duration(self.window)}"
        return f"{self.amount} {self.unit} per {format_duration(self.window)}"


def parse_limit(text: str) -> Limit:
    """A limit as written in the configuration: ``20 recipients per 1h``, ``20MB per 1d``.

    A bare size counts bytes; a number needs ``messages``, ``recipients`` or ``bytes`` after it.
    :class:`ValueError` says what is wrong and what is right.
    """
    match = _LIMIT.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is no limit; write '20 recipients per 1h', '5 messages per 1m' or '20MB per 1d'"
        )
    amount_text, unit, window_text = match[1], (match[2] or "").lower(), match[3]
    unit = {"message": "messages", "recipient": "recipients", "byte": "bytes"}.get(unit, unit)
    if unit in ("messages", "recipients"):
        if not (amount_text.isascii() and amount_text.isdigit() and len(amount_text) <= 16):
            raise ValueError(f"{amount_text!r} in {text!r} is no whole number")
        amount = int(amount_text)
    elif unit in ("", "bytes"):
        if not unit and amount_text.isdigit():
            raise ValueError(f"{text!r} does not say what it counts: messages, recipients or bytes")
        amount, unit = parse_size(amount_text), "bytes"
    else:
        raise ValueError(f"{unit!r} in {text!r} is no unit; use messages, recipients or bytes")
    if amount > MAX_AMOUNT:
        raise ValueError(f"{amount_text!r} in {text!r} is more than policyd can count")
    return Limit(amount, unit, parse_window(window_text))


def parse_window(text: str) -> int:
    """Milliseconds of a limit's window, from 1 s to 366 d; :class:`ValueError` otherwise."""
    window = parse_duration(text)
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(f"a window of {text} is outside 1s to 366d")
    return window

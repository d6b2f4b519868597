"""Versions of what policyd rests on that have known holes, and how versions compare.

Only what concerns policyd is listed. Postfix before 3.8.16, 3.9.10, 3.10.9 and 3.11.2 can crash over a status code
without a text (CVE-2026-43964); policyd never sends one, so that is none of its findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import NamedTuple

from policyd.doctor.facts import Software

_POSTFIX_FIXED = {(3, 5): 23, (3, 6): 13, (3, 7): 9, (3, 8): 4}


class Hole(NamedTuple):
    """A known hole."""

    id: str
    what: str
    why: str
    package: str = ""
    mend: str = ""


class _Known(NamedTuple):
    #: The first version without it, of the maker and, where Debian mended its own, of Debian's package.
    fixed: str
    debian: str
    hole: Hole


_KNOWN: dict[str, _Known] = {
    "dnspython": _Known(
        "2.6.1",
        "2.3.0-1+deb12u1",
        Hole(
            "CVE-2023-29483 and CVE-2026-114605",
            "one wrong packet ends a look-up, or keeps the processor busy",
            "somebody outside can slow down or blind blocklists and SPF",
            "python3-dnspython",
        ),
    ),
    "twisted": _Known(
        "24.7.0",
        "22.4.0-4+deb12u1",
        Hole(
            "CVE-2024-41671",
            "requests to its web server can be mixed up",
            "it concerns whatever is served over HTTP",
            "python3-twisted",
        ),
    ),
}


def holes(software: Software, postfix: Mapping[str, str]) -> Iterator[Hole]:
    """The holes of one version. ``postfix``: parameters of main.cf that close one."""
    known = _KNOWN.get(software.name)
    if known is not None:
        if (
            older_debian(software.debian, known.debian)
            if software.debian
            else _numbers(software.version) < _numbers(known.fixed)
        ):
            hole = known.hole
            yield (
                hole
                if software.debian
                else hole._replace(
                    mend=f"install {software.name} {known.fixed} or newer into the environment in which policyd runs"
                )
            )
    if software.name == "postfix":
        numbers = (*_numbers(software.version), 0, 0, 0)
        fixed = _POSTFIX_FIXED.get((numbers[0], numbers[1]))
        open_ = numbers[2] < fixed if fixed is not None else numbers[:2] < (3, 5)
        if open_ and postfix.get("smtpd_forbid_unauth_pipelining") != "yes":
            yield Hole(
                "CVE-2023-51764",
                "a second message can be smuggled in behind the end of one",
                "policyd is asked about the second in the name of whoever sent the first",
                "postfix",
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:4]))


def older_debian(one: str, other: str) -> bool:
    """Whether one Debian version is older than another (deb-version(7))."""
    return _compare(one, other) < 0


def _compare(one: str, other: str) -> int:
    for mine, yours in zip(_parts(one), _parts(other), strict=True):
        result = _compare_part(mine, yours)
        if result:
            return result
    return 0


def _parts(version: str) -> tuple[str, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    return (epoch, upstream, revision) if dash else (epoch, rest, "0")


def _compare_part(one: str, other: str) -> int:
    pieces = zip_longest(re.findall(r"(\D*)(\d*)", one), re.findall(r"(\D*)(\d*)", other), fillvalue=("", ""))
    for (text, number), (text_other, number_other) in pieces:
        mine, yours = _order(text), _order(text_other)
        if mine != yours:
            return -1 if mine < yours else 1
        if int(number or 0) != int(number_other or 0):
            return -1 if int(number or 0) < int(number_other or 0) else 1
    return 0


def _order(text: str) -> list[int]:
    # ~ sorts before the end, letters before everything else.
    return [*(-1 if ch == "~" else ord(ch) if ch.isalpha() else ord(ch) + 256 for ch in text), 0]

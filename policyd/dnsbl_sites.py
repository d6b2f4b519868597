"""How blocklists are written in the configuration: ``zone[=filter][*weight]``, as in Postfix's ``postscreen_dnsbl_sites``.

One site may be written several times with other filters and weights; its zone is asked once. A filter without any
reply that it lets through, and a number outside of an octet, are errors here as they are in Postfix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from policyd.blocklists import public_name
from policyd.settings import string

#: Larger weights are mistakes; sums stay readable.
MOST_WEIGHT = 1_000_000

_EXAMPLE = "write zone=filter*weight, as zen.spamhaus.org=127.0.0.[2..11]*3"
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_OCTET = re.compile(r"\[([^\[\]]*)\]|([^.\[\]]+)")
_RANGE = re.compile(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?", re.ASCII)
_WEIGHT = re.compile(r"[+-]?[0-9]{1,7}", re.ASCII)

#: One octet of a filter: the ranges that it lets through, both ends included.
Ranges = tuple[tuple[int, int], ...]
Filter = tuple[Ranges, Ranges, Ranges, Ranges]
#: Without a filter everything that is no refusal counts.
ANY_REPLY: Filter = (((127, 127),), ((0, 255),), ((0, 255),), ((0, 255),))

#: The first octets of a filter that lets through nothing but refusals to answer (policyd.blocklists.REFUSALS).
ONLY_REFUSALS = (((127, 127),), ((255, 255),), ((255, 255),))


class DnsblSite(NamedTuple):
    """One entry of ``sites``."""

    #: Lower case, without the last dot; it may hold a key, so it is not for the eyes of others.
    zone: str
    filter: Filter
    #: What a reply that passes the filter adds to the score; negative for allow lists.
    weight: int
    #: As it was written.
    text: str

    def passes(self, code: str) -> bool:
        """Whether the filter lets the reply ``code``, an IPv4 address, through."""
        octets = code.split(".")
        return len(octets) == 4 and all(
            any(low <= int(octet) <= high for low, high in ranges)
            for octet, ranges in zip(octets, self.filter, strict=True)
        )

    def __str__(self) -> str:
        return self.text


def parse_site(text: str) -> DnsblSite:
    """The site that ``text`` writes.

    :raises ValueError: it is malformed; the message says where, and what to write.
    """
    text = text.strip()
    # From right to left, as Postfix does: a filter holds no asterisk, a zone no equals sign.
    head, star, weight_text = text.partition("*")
    zone, equals, filter_text = head.partition("=")
    weight = 1
    if star:
        if not _WEIGHT.fullmatch(weight_text) or abs(int(weight_text)) > MOST_WEIGHT:
            raise ValueError(
                f"{without_key(text)!r}: the weight {weight_text!r} is no whole number, as 3 or -4; {_EXAMPLE}"
            )
        weight = int(weight_text)
    if equals and not filter_text:
        raise ValueError(f"{without_key(text)!r} has no filter after '='; {_EXAMPLE}")
    try:
        pattern = parse_filter(filter_text) if equals else ANY_REPLY
        return DnsblSite(parse_zone(zone), pattern, weight, text)
    except ValueError as error:
        raise ValueError(f"{without_key(text)!r}: {error}") from None


def without_key(text: str) -> str:
    """A site as it may be shown, also when it is malformed: without what looks like a customer's key in its zone."""
    zone = re.split(r"[=*]", text, maxsplit=1)[0]
    return public_name(zone.strip().lower()) + text[len(zone) :]


def parse_zone(text: str) -> str:
    """The name of a list's zone; :class:`ValueError` when no list can have it."""
    zone = text.strip().lower().removesuffix(".")
    if odd := re.search(r"[^a-z0-9_.-]", zone, re.ASCII):
        raise ValueError(
            f"the zone {public_name(zone)!r} has {odd[0]!r} in it; there are no options but =filter and *weight: {_EXAMPLE}"
        )
    labels = zone.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or len(zone) > 200 or labels[-1].isdigit():
        raise ValueError(f"{public_name(zone)!r} is no name of a zone; {_EXAMPLE}")
    return zone


def parse_filter(text: str) -> Filter:
    """The filter ``d.d.d.d``, each ``d`` a number or ``[a;b;c..d]``; :class:`ValueError` says what is wrong."""
    octets: list[Ranges] = []
    at = 0
    while True:
        match = _OCTET.match(text, at)
        if match is None:
            raise ValueError(f"the filter {text!r} is malformed; write four octets, as 127.0.0.[2;4..11]")
        # Outside of brackets an octet is one number.
        ranges = match[1].split(";") if match[1] is not None else [match[2]]
        octets.append(tuple(_range(each, text, bracketed=match[1] is not None) for each in ranges))
        at = match.end()
        if at == len(text):
            break
        if text[at] != ".":
            raise ValueError(f"the filter {text!r} has {text[at]!r} where a dot belongs")
        at += 1
    if len(octets) != 4:
        raise ValueError(f"the filter {text!r} has {len(octets)} octets; four are needed, as 127.0.0.[2..11]")
    first, second, third, fourth = octets
    return first, second, third, fourth


def _range(text: str, whole: str, *, bracketed: bool) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None or (match[2] is not None and not bracketed):
        raise ValueError(
            f"{text!r} in the filter {whole!r} is no number from 0 to 255; ranges stand in [], as [2..11]"
        )
    low = int(match[1])
    high = int(match[2]) if match[2] is not None else low
    if high > 255:
        raise ValueError(f"{text!r} in the filter {whole!r} is beyond 255")
    if low > high:
        raise ValueError(f"{text!r} in the filter {whole!r} goes down; write {high}..{low}")
    return low, high


def sites(value: Any) -> tuple[DnsblSite, ...]:
    """A list of sites, or one text of them as it stands in Postfix's main.cf, with commas or white space between them."""
    if isinstance(value, str):
        members: list[Any] = re.split(r"[,\s]+", value.strip(", \t\r\n"))
    elif isinstance(value, list):
        members = value
    else:
        raise ValueError("must be a list of sites, as " + '["zen.spamhaus.org=127.0.0.[2..11]*3"]')
    if not members:
        raise ValueError(f"names no list; {_EXAMPLE}")
    return tuple(parse_site(string(member)) for member in members)


def most_score(of: Iterable[DnsblSite]) -> int:
    """The highest score that these sites can add up to."""
    return sum(site.weight for site in of if site.weight > 0)


def least_score(of: Iterable[DnsblSite]) -> int:
    """The lowest one."""
    return sum(site.weight for site in of if site.weight < 0)

"""What greylisting goes by: a triplet of client, sender and recipient, with what changes from try to try left out of it.

A server that tries again comes from its own network, not always from the same address, and with software that puts a tag
into the sender it is seldom the same sender. Left out are: BATV's tag (``prvs=``), what SRS signs with and dates, an
extension (``+tag``), and numbers (VERP). What stays the same for one mail from one place must come out the same here; that
two senders come out the same now and then does no harm.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

from policyd.match import parse_address

#: Kinds of remembered facts, each bounded on its own: triplets that nothing came of yet, those that passed (``hits``: mails),
#: and what a client has proved (``hits``: triplets). Apart, so that a flood of strangers pushes out nobody who is known, and
#: however many are known there is room for strangers.
WAITING, PASSED, CLIENT = "greylist", "greylist-passed", "greylist-client"
#: The networks that stand for a client: who has an address there has others.
PREFIX_V4, PREFIX_V6 = 24, 64
#: Longest address within a triplet; of a longer one the end is a digest. It bounds what a row takes.
MOST = 120
_KEPT = 80

#: draft-levine-smtp-batv: prvs=KDDDSSSSSS=local; two vendors have their own word for it.
_BATV = re.compile(r"(?:prvs=[0-9a-z]{8,12}|btv1==[0-9a-z]+=|msprvs1=[0-9a-z_-]+)=(?=.)", re.ASCII)
#: SRS0=HASH=DAY=domain=local, SRS1=HASH=forwarder==HASH=DAY=domain=local; - and + may stand for the first =.
_SRS0 = re.compile(r"srs0[=+-][^=]+=[^=]+=(?=.)", re.ASCII)
_SRS1 = re.compile(r"srs1[=+-][^=]+=([^=]+)=[=+-][^=]+=[^=]+=(?=.)", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
#: What is between other characters is one word.
_WORD = re.compile(r"[0-9a-z]+", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{8,}", re.ASCII)
_DIGIT = re.compile(r"[0-9]", re.ASCII)
#: A word of so many letters and digits, mixed, is no name.
_TOKEN = 16


class Triplet(NamedTuple):
    """What is greylisted."""

    #: A network, or ``@domain`` for all servers that may send for the domain.
    origin: str
    #: Normalised; ``<>`` is the null sender.
    sender: str
    recipient: str

    @property
    def key(self) -> str:
        """The triplet as it is remembered."""
        return f"{self.origin} {_shortened(self.sender)} {_shortened(self.recipient)}"


def parse_triplet(key: str) -> Triplet:
    """The triplet with this :attr:`Triplet.key`; what is none comes out as one with empty parts."""
    origin, _, rest = key.partition(" ")
    sender, _, recipient = rest.partition(" ")
    return Triplet(origin, sender, recipient)


@lru_cache(maxsize=4096)
def origin_of(address: str) -> str:
    """The network that stands for a client's address: its /24, for IPv6 its /64; empty when it is no address."""
    parsed = parse_address(address)
    if parsed is None:
        return ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return f"{str(parsed).rpartition('.')[0]}.0/{PREFIX_V4}"
    low = 128 - PREFIX_V6
    return f"{ipaddress.IPv6Address(int(parsed) >> low << low)}/{PREFIX_V6}"


def normal_sender(sender: str) -> str:
    """A folded sender without what changes from try to try; ``<>`` for the null sender."""
    if not sender:
        return "<>"
    local, at, domain = sender.rpartition("@")
    if not at:
        local, domain = sender, ""
    return f"{_normal_local(local)}{at}{domain}"


def _normal_local(local: str) -> str:
    # One may be within the other: a signed sender that was forwarded.
    for _ in range(3):
        before = local
        for pattern, instead in ((_BATV, ""), (_SRS1, r"srs1=\1=="), (_SRS0, "srs0=")):
            match = pattern.match(local)
            if match is not None:
                local = match.expand(instead) + local[match.end() :]
        if local == before or local.startswith("srs"):
            break
    plus = local.find("+", 1)
    if plus > 0 and not local.startswith("srs"):
        local = local[:plus]
    return _WORD.sub(_normal_word, _UUID.sub("#", local))


def _normal_word(match: re.Match[str]) -> str:
    word = match[0]
    if not _DIGIT.search(word):
        return word
    changes = word.isdigit() or len(word) >= _TOKEN or _HEX.fullmatch(word) is not None
    return "#" if changes else word


def _shortened(address: str) -> str:
    """An address as a part of a key: without spaces, and not too long."""
    if len(address) > MOST:
        digest = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        address = f"{address[:_KEPT]}~{digest}"
    return address if address.isprintable() and " " not in address else _printable(address)


def _printable(address: str) -> str:
    return "".join(ch if ch.isprintable() and ch != " " else "?" for ch in address)

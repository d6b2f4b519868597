"""Blocklists as a check asks them, and what comes back; who asks, and watches over their health, is policyd.dns.

"Not known" is an answer of its own kind: a list that is sick, silent or refuses to answer lists nobody.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from policyd.match import parse_address

#: What a list's name begins with in the table of modes (``policyctl dnsbl off``) and in that of health.
SUBJECT = "dnsbl/"

#: A reply from here says that the list refuses to answer: mistyped zone (252), asked through a public resolver (254), asked
#: too often (255). Begun by Spamhaus (news article 788), taken over by others.
REFUSALS = "127.255.255."
#: Replies that mean a refusal, not a listing, by the zone's end. 127.0.0.1 is URIBL's and SURBL's "blocked", and no list may
#: use it for a listing (RFC 5782 2.1 has them begin at 127.0.0.2), but for those in :data:`LISTING_AT_1`.
REFUSALS_OF: dict[str, tuple[str, ...]] = {
    # dnswl.org: asked too often.
    "dnswl.org": ("127.0.0.255", "127.0.10."),
    # Spamhaus DBL: was asked for an address.
    "dbl.spamhaus.org": ("127.0.1.255",),
    "dbl.dq.spamhaus.net": ("127.0.1.255",),
}
#: Lists whose 127.0.0.1 is a listing (wiki.junkemailfilter.com: "white").
LISTING_AT_1 = ("hostkarma.junkemailfilter.com",)

#: Ends of zones behind which a customer's key stands before the list: abcdef.zen.dq.spamhaus.net.
KEYED = ("dq.spamhaus.net", "mail.abusix.zone", "score.senderscore.com")
#: A label that no person made up.
_KEY = re.compile(r"(?=.*[0-9])[a-z0-9_-]{12,}|[a-z0-9_-]{20,}", re.ASCII)


class Blocklist(NamedTuple):
    """One list."""

    #: With the customer's key, if it has one.
    zone: str
    #: The name that others may see.
    public: str
    #: Whether it lists domains; otherwise addresses.
    domains: bool = False
    #: Whether it has the test entries of RFC 5782 section 5.
    tested: bool = True

    @property
    def subject(self) -> str:
        """Its name in the tables of modes and of health."""
        return SUBJECT + self.public

    @property
    def operator(self) -> str:
        """Whose it is, as far as its name tells: the two last labels."""
        return ".".join(self.public.rsplit(".", 2)[-2:])


class Listing(NamedTuple):
    """What one list says of one address or domain."""

    #: The replies, IPv4 addresses within 127.0.0.0/8 and no refusals; none: it is not listed, or that is not known.
    codes: tuple[str, ...] = ()
    #: Whether the list said anything that counts.
    known: bool = False
    #: Why not.
    why: str = ""
    #: For how long this counts, s.
    ttl: float = 0.0


class Blocklists(Protocol):
    """All lists, shared by all checks."""

    #: Rises with each change of any list's health: what was made of older answers is no longer to be used.
    epoch: int

    async def look_up(self, lists: Sequence[Blocklist], name: str, due: float) -> Sequence[Listing]:
        """What each of ``lists`` says on ``name``, all asked side by side, by ``due`` (``time.monotonic()``, s) at the latest.

        A listing counts only if a random name was found not to be listed within the last seconds. It never raises.

        :param name: :func:`reversed_address`, or a domain in A-labels, for lists of domains.
        """

    async def text(self, blocklist: Blocklist, name: str, due: float) -> str:
        """The list's TXT record on ``name``; what others wrote, not escaped. Empty when there is none in time."""

    def tally(self, lists: Sequence[Blocklist], name: str, listings: Sequence[Listing]) -> None:
        """Count what a client's look-ups came to, for the figures of each list, its overlap with others and its breaker."""


class NoBlocklists:
    """Knows nothing: where no DNS is to be had."""

    epoch = 0

    async def look_up(self, lists: Sequence[Blocklist], name: str, due: float) -> Sequence[Listing]:
        """See :class:`Blocklists`."""
        return [Listing(why="no resolver")] * len(lists)

    async def text(self, blocklist: Blocklist, name: str, due: float) -> str:
        """See :class:`Blocklists`."""
        return ""

    def tally(self, lists: Sequence[Blocklist], name: str, listings: Sequence[Listing]) -> None:
        """See :class:`Blocklists`."""


def reversed_address(text: str) -> str:
    """An address as it stands before a list's zone (RFC 5782 2.1, 2.4): octets, or 32 nibbles, the last one first.

    An IPv4-mapped IPv6 address is asked as IPv4; empty for what is no address.
    """
    address = parse_address(text)
    if address is None:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return ".".join(reversed(str(address).split(".")))
    return ".".join(reversed(address.exploded.replace(":", "")))


def mapped_name(last: str) -> str:
    """The IPv4-mapped IPv6 address of the IPv4 address ``last`` as it stands before a zone; for test entries (RFC 5782 5)."""
    nibbles = f"{'0' * 20}ffff{int(ipaddress.IPv4Address(last)):08x}"
    return ".".join(reversed(nibbles))


def is_refusal(zone: str, code: str) -> bool:
    """Whether the reply ``code`` says that the list of ``zone`` refuses to answer, or is no reply of a list at all."""
    if not code.startswith("127.") or code.startswith(REFUSALS):
        return True
    if code == "127.0.0.1":
        return not _ends(zone, LISTING_AT_1)
    for end, codes in REFUSALS_OF.items():
        if _ends(zone, (end,)) and any(
            code.startswith(each) if each.endswith(".") else code == each for each in codes
        ):
            return True
    return False


def public_name(zone: str, names: Mapping[str, str] | None = None) -> str:
    """The name of a zone that others may see: the one that ``names`` gives, else the zone without what looks like a key."""
    if names and zone in names:
        return names[zone]
    for end in KEYED:
        if zone.endswith("." + end):
            return zone[: -len(end) - 1].rpartition(".")[2] + "." + end
    labels = zone.split(".")
    return ".".join([*(label for label in labels[:-2] if not _KEY.fullmatch(label)), *labels[-2:]])


def hide_key(text: str, blocklist: Blocklist) -> str:
    """``text`` without the key in the list's zone, if it has one."""
    zone, bare = blocklist.zone, public_name(blocklist.zone)
    if zone == blocklist.public:
        return text
    text = re.sub(re.escape(zone), lambda _: blocklist.public, text, flags=re.IGNORECASE)
    # Where the admin alone knows that there is a key, it is the first label.
    keys = zone.removesuffix(bare).split(".") if bare != zone else zone.split(".")[:1]
    for key in keys:
        if len(key) > 3:
            text = re.sub(re.escape(key), "...", text, flags=re.IGNORECASE)
    return text


def _ends(zone: str, ends: Sequence[str]) -> bool:
    return any(zone == end or zone.endswith("." + end) for end in ends)

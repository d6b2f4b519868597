"""Questions to the DNS as a check asks them, and what comes back.

The words only: who asks the nameservers, and remembers what they said, is policyd.dns. "Not known" is an answer of its
own kind: it is never "no such name" and never "listed".
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

#: What became of a question: there are records; the name has none of this type; there is no such name (RFC 8020);
#: nobody could say.
FOUND, NODATA, NXDOMAIN, UNKNOWN = "found", "nodata", "nxdomain", "unknown"


class Found(NamedTuple):
    """The outcome of one question."""

    status: str
    #: A, AAAA: the address as text; TXT: ``bytes``, its strings joined; MX: ``(preference, name)``; PTR, NS: the name.
    #: Names are A-labels, lower case, without the last dot. CNAMEs have been followed.
    records: tuple[Any, ...] = ()
    #: How long it may be remembered, s.
    ttl: int = 0
    #: Why nobody could say: ``timeout``, ``servfail``, ``refused``, ``no nameserver answers``, ``bad name``, ...
    why: str = ""


#: Nobody was asked, because there is nobody to ask.
NOBODY = Found(UNKNOWN, why="no resolver")


class Resolver(Protocol):
    """The one resolver that all share."""

    async def ask(self, name: str, rdtype: str, due: float) -> Found:
        """What the DNS says on ``name``, by ``due`` (``time.monotonic()``, s) at the latest; it never raises.

        What is remembered is answered without waiting. A question that is under way is waited for, not asked twice; who
        gives up waiting does not cancel it for the others.
        """


class NoResolver:
    """Knows nothing: where no DNS is wanted, and where it cannot be had."""

    async def ask(self, name: str, rdtype: str, due: float) -> Found:
        """See :class:`Resolver`."""
        return NOBODY

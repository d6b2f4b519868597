"""Known good clients, senders, domains and recipients pass without further checks.

A hit ends the chain and answers DUNNO, so that Postfix's own restrictions still decide. Entries come from the
configuration (``clients``, ``senders``, ``domains``, ``recipients``) and from ``policyctl allow``. A domain stands for itself
and what is below it, ``.example.org`` only for what is below; a client is an address, a network or a verified
host name (``client_name``). What a sender writes can be forged: allow senders and domains only where something else
holds the door. Sender, domain and recipient entries are asked when these are known, from MAIL and RCPT on; at
END-OF-MESSAGE with several recipients there is none to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from policyd.checks import Context
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import Request
from policyd.settings import list_of, setting, string
from policyd.steering import Entry, Listing, Steering, canonical_value


def _values(kind: str) -> Any:
    return list_of(lambda value: canonical_value(kind, string(value)))


@dataclass(frozen=True)
class Options:
    """The section of an ``allow`` check."""

    clients: tuple[str, ...] = setting(
        _values("client"), (), help="Addresses, networks or verified host names."
    )
    senders: tuple[str, ...] = setting(_values("sender"), (), help="Envelope senders; <> is the null sender.")
    domains: tuple[str, ...] = setting(_values("domain"), (), help="Sender domains, with what is below them.")
    recipients: tuple[str, ...] = setting(_values("recipient"), (), help="Envelope recipients.")


class Check:
    """Asks the configured entries first, then those of ``policyctl allow``."""

    stages: ClassVar[frozenset[str]] = frozenset()
    steadfast: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, frozenset[str]]] = {}

    def __init__(self, options: Options, context: Context) -> None:
        self._own = Listing()
        for kind, values in (
            ("client", options.clients),
            ("sender", options.senders),
            ("domain", options.domains),
            ("recipient", options.recipients),
        ):
            for value in values:
                self._own.put(Entry(kind, value, "configuration", "", 0, 0))

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        """A final opinion when an entry in force matches."""
        return self.judge(request, now, steering)

    def judge(self, request: Request, now: int, steering: Steering) -> Opinion | None:
        """The same, for who does not wait."""
        for listing in (self._own, steering.allows):
            if listing.entries:
                entry = find(listing, request, now)
                if entry is not None:
                    return Opinion(reason=f"allowed {entry.kind} {entry.value or '<>'}", final=True)
        return None


def find(listing: Listing, request: Request, now: int) -> Entry | None:
    """The most specific entry that matches: recipient, sender, sender domain, client address, client name."""
    entry = listing.exact("recipient", request.recipient_key, now) if request.recipient_key else None
    if entry is None and request.knows_sender:
        entry = listing.exact("sender", request.sender_key, now)
    if entry is None and request.sender_domain:
        entry = listing.domain(request.sender_domain, now)
    if entry is None:
        entry = listing.client(request.client_address, now)
    if entry is None and request.client_name and request.client_name != "unknown":
        entry = listing.domain(request.client_name.lower().rstrip("."), now, kind="client")
    return entry

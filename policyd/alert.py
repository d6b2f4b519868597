"""What the admin is told of: the kinds of events, an event, and an alert that tells of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: What ``on`` of an [[alert]] can name, with what it means; those that end have a resolved message too.
KINDS = {
    "suspend": "an account was suspended",
    "detect": "a detector found something",
    "quota-80%": "an account has used four fifths of a limit",
    "quota-100%": "an account has used up a limit",
    "dnsbl-sick": "a blocklist does not work and counts nothing",
    "dns-down": "no nameserver answers",
    "store-sick": "the database cannot be written",
    "clock": "the wall clock was stepped",
    "not-asked": "Postfix asks nothing any more",
    "stage-missing": "Postfix never asks at a stage that a check needs",
}
#: Those that last until they are over; the others happen.
LASTING = frozenset(
    {"suspend", "dnsbl-sick", "dns-down", "store-sick", "clock", "not-asked", "stage-missing"}
)
#: Not of the world but of the admin: try the channels; send now what waits. The subject names a channel or an alert; "" all.
TEST, RETRY = "test", "retry"

WAITS, SENT, GIVEN_UP = "waits", "sent", "given-up"


class Event(NamedTuple):
    """Something that happened, or is over."""

    #: In the table ``event``; 0: it never was there.
    id: int
    #: Ledger time and wall clock, ms.
    at: int
    wall_at: int
    kind: str
    #: Whom or what it is about.
    subject: str
    resolved: bool
    facts: Mapping[str, Any]

    @property
    def thing(self) -> str:
        """What must not be told again too soon: the subject, and the check or detector where a subject has several."""
        aspects = [
            str(self.facts[name]) for name in ("check", "detector", "unit", "window") if name in self.facts
        ]
        # A suspension is one, whoever found the reason for it, and whoever ends it.
        return "/".join([self.subject, *aspects]) if self.kind not in LASTING else self.subject

    def uid(self, channel: str) -> str:
        """The name of the alert that tells of it on ``channel``: the same however often it is made."""
        text = "\0".join(
            (str(self.id), str(self.wall_at), self.kind, self.thing, str(self.resolved), channel)
        )
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:20]


@dataclass
class Alert:
    """On its way to one channel."""

    uid: str
    channel: str
    kind: str
    subject: str
    resolved: bool
    facts: dict[str, Any]
    #: Events it tells of.
    count: int
    #: When it was made (ledger time), and the wall clock of its first event, ms.
    at: int
    wall_at: int
    tries: int = 0
    next_try: int = 0
    error: str = ""
    state: str = WAITS
    done_at: int = 0
    #: Whether a restart would find it.
    stored: bool = field(default=False, compare=False)


@dataclass
class Told:
    """What a channel was told of one thing."""

    at: int
    #: Told that it began, and not yet that it is over.
    open: bool
    #: How often it was told without a pause.
    times: int = 1
    #: How often it happened since without being told.
    held: int = 0

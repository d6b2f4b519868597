"""What a check says: what to tell Postfix, and what is to be counted and asked again when the decision is settled.

A check reads and gives an opinion; it never writes. The one writer is ``settle`` (:mod:`policyd.settle`), which gets
the opinions of the whole chain as one :class:`Proposal`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from policyd.answer import DUNNO, Answer
from policyd.request import Request
from policyd.steering import Steering
from policyd.units import Limit

ENFORCE, SHADOW, OFF = "enforce", "shadow", "off"


class CounterKey(NamedTuple):
    """What one counter counts: facts about mail that policyd let pass, not property of a check."""

    #: user, user-domain, sender, sender-domain, server; client, client:mx, client:submission.
    scope: str
    value: str
    #: messages, recipients, bytes; with ``/external`` when mail among the site's own domains is left out.
    unit: str


class Quota(NamedTuple):
    """An intent: test these limits together with all others, and count if the whole mail passes."""

    scope: str
    value: str
    #: The site's own domains when mail among them is left out; ``None``: everything counts.
    external: frozenset[str] | None
    limits: tuple[Limit, ...]
    #: One-off grants in force, per unit: each window of that unit is wider by as much.
    grants: dict[str, int]
    #: Whether this request is the one that counts; otherwise only "no room at all" refuses.
    counts: bool
    on_breach: str
    text: str


class Standing(Protocol):
    """An intent: a rule on steering data that settle asks again with what is in the database at that moment."""

    def judge(self, request: Request, steering: Steering, now: int) -> Opinion | None:
        """The opinion on ``request`` at ledger time ``now``; pure and quick."""


class Opinion(NamedTuple):
    """One check's opinion. A refusal among the checks ends the chain; ``final`` ends it without one."""

    answer: Answer = DUNNO
    #: Why, for the log: short fixed words, then facts.
    reason: str = ""
    final: bool = False
    quota: Quota | None = None
    standing: Standing | None = None


class Heard(NamedTuple):
    """An opinion as the engine heard it."""

    check: str
    mode: str
    opinion: Opinion | None
    #: What the check took.
    micros: int
    #: The error that the check failed with, when it failed.
    error: str = ""


class Proposal(NamedTuple):
    """The outcome of the whole chain, for settle."""

    heard: tuple[Heard, ...]
    #: The strongest answer of the enforcing checks, and the check that gave it.
    answer: Answer
    check: str
    reason: str
    policy: str

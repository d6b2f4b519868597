"""What a check says: what to tell Postfix, and what is to be counted and asked again when the decision is settled.

A check reads and gives an opinion; it never writes. The one writer is ``settle`` (:mod:`policyd.settle`), which gets
the opinions of the whole chain as one :class:`Proposal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from policyd.answer import DUNNO, Answer
from policyd.inquiry import Finding
from policyd.request import Request
from policyd.steering import Steering
from policyd.tiers import Tiers
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
    #: The limits are those of the tier that the account is in when it is decided; ``limits`` is empty then.
    tiers: Tiers | None = None


class Standing(Protocol):
    """An intent: a rule on steering data that settle asks again with what is in the database at that moment."""

    def judge(self, request: Request, steering: Steering, now: int) -> Opinion | None:
        """The opinion on ``request`` at ledger time ``now``; pure and quick."""


class MemoryKey(NamedTuple):
    """What one remembered fact is about."""

    #: ``greylist``, ...: each kind is bounded on its own.
    kind: str
    #: At most 1,000 characters; text of a peer in it is escaped where it is shown.
    key: str


class Memory(NamedTuple):
    """A remembered fact. Times are ledger time, ms."""

    first_at: int
    last_at: int
    #: How often it held; what it counts is the kind's to say.
    hits: int
    expires_at: int


class Recalled(NamedTuple):
    """What a :class:`Recall` makes of what is remembered."""

    #: ``None``: no opinion.
    opinion: Opinion | None
    #: Written down unless another check refuses the mail; in shadow too, or it would never learn.
    remember: Mapping[MemoryKey, Memory] = {}


class Recall(Protocol):
    """An intent: a rule on remembered facts, which settle asks with what they are at that moment."""

    @property
    def keys(self) -> tuple[MemoryKey, ...]:
        """The facts that it looks at."""

    def judge(self, request: Request, now: int, known: Mapping[MemoryKey, Memory]) -> Recalled:
        """The opinion on ``request`` at ledger time ``now``, and the facts as they are then; pure and quick.

        :param known: those of ``keys`` that are remembered and have not expired.
        """


class Opinion(NamedTuple):
    """One check's opinion. A refusal among the checks ends the chain; ``final`` ends it without one."""

    answer: Answer = DUNNO
    #: Why, for the log: short fixed words, then facts.
    reason: str = ""
    final: bool = False
    quota: Quota | None = None
    standing: Standing | None = None
    recall: Recall | None = None
    #: For the ``when`` of checks further down the chain: a score, a result.
    finding: Finding | None = None


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
    #: The detectors that look at it: a :class:`policyd.watch.Watch`; ``None``: nobody does.
    watch: Any = None

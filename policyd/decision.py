"""A decision on its way: the operation that the server queues, what settle makes of it, what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from policyd.answer import Answer
from policyd.opinion import Proposal
from policyd.request import Request

#: Verdicts.
PASSED, HELD, REFUSED = "pass", "hold", "refuse"
#: Marks of a decision: asked again; written after it was answered; counted in memory while the store was sick; by the deadline.
REPEAT, LATE, MEMORY, DEADLINE = "repeat", "late", "memory", "deadline"


class Earlier(NamedTuple):
    """A decision made before, as far as it matters to a later one of the same instance."""

    id: int
    at: int
    listener: str
    stage: str
    recipient: str
    verdict: str
    action: str
    by: str
    charges: str


class Settled(NamedTuple):
    """What is told to Postfix and written down; the fields in the order of the row's columns (schema/decision.sql)."""

    answer: Answer
    verdict: str
    by: str
    reason: str
    ref: str | None
    would: str
    detail: str
    charges: str
    mark: str


class Decision(NamedTuple):
    """A settled request with the circumstances, as it is logged."""

    id: int
    #: Ledger time, ms.
    at: int
    #: Wall clock, ms since 1970.
    wall_at: int
    request: Request
    settled: Settled
    policy: str
    micros: int


class Operation:
    """A request that waits to be settled. Made by the server, run by the writer, handed back through ``done``."""

    __slots__ = ("done", "forced", "previous", "proposal", "received", "request")

    def __init__(
        self,
        request: Request,
        proposal: Proposal,
        received: int,
        done: Callable[[Operation, Decision | None], None],
    ) -> None:
        self.request = request
        self.proposal = proposal
        #: Stopwatch (ns) when the desk took the request: complete, and those before it on its connection answered.
        self.received = received
        #: Called on the loop with the decision, or with ``None`` when none could be made.
        self.done = done
        #: The answer that the deadline gave in the meantime; set on the loop, read by the writer.
        self.forced: Answer | None = None
        #: The decision to correct, when the deadline's answer and the settled one differ.
        self.previous: Earlier | None = None

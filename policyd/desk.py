"""The front desk: takes a request from a session to the engine, to the writer, and back as one answer, in time.

Everything here runs on the loop's thread. A chain that never waits never becomes a task: its coroutine is driven on the
spot. One coarse timer looks after all deadlines.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from policyd.alerts.mail import OwnSessions
from policyd.answer import DUNNO, REFUSE, Answer, fill_ref, make_answer, with_ref
from policyd.decision import Decision, Earlier, Operation
from policyd.decisionlog import DecisionLog
from policyd.engine import Engine
from policyd.opinion import Proposal
from policyd.request import Attributes, Request, Site
from policyd.stagewatch import StageWatch
from policyd.steering import Steering

log = logging.getLogger("policyd.desk")

#: Between two looks at the deadlines, s.
TICK = 0.1

#: What stands in the place of a check where a mail of policyd's own passed.
OWN_MAIL = "alerts"
_FAIL_TEXTS = {
    "defer": ("451", "4.3.0 Policy decision not possible now; try again later. ref "),
    "reject": ("554", "5.3.0 Policy decision not possible. ref "),
}
_REF_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Ledgering(Protocol):
    """What the desk needs of the writer."""

    def submit(self, operation: Operation) -> None:
        """Queue an operation; it comes back to :meth:`Desk.deliver`."""


class Asked(NamedTuple):
    """A request as it came in, and how to answer it."""

    attributes: Attributes
    #: The label of the listener, and the direction of all that comes in on it (``""``: of either).
    listener: str
    direction: str
    reply: Callable[[Answer], None]


class Asking(Protocol):
    """What the desk needs of a session."""

    def next_request(self) -> Asked | None:
        """The next complete request; ``None`` when there is none, or the one before is not answered yet."""


class Desk:
    """Shared by all sessions. ``engine``, ``site``, ``deadline`` and ``fail`` are replaced at a reload."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        writer: Ledgering,
        engine: Engine,
        site: Site,
        decision_log: DecisionLog,
        now: Callable[[], int],
        steering: Callable[[], Steering],
    ) -> None:
        """
        :param now: ledger time, ms.
        :param steering: the steering data as of this moment; called at most once in a turn of the loop.
        """
        self.loop = loop
        self.engine = engine
        self.site = site
        self.decision_log = decision_log
        #: Every request is answered by then, s.
        self.deadline = 5.0
        self.fail: Mapping[str, str] = {"submission": "defer", "mx": "dunno"}
        self.answered = 0
        self._undecided = 0
        self.stages = StageWatch(engine.rules, engine.watch)
        #: The names by which policyd itself greets the mail server now, to hand it an alert: those mails are not checked.
        self.own = OwnSessions()
        self.waiting: set[Case] = set()
        self._ready: list[Asking] = []
        self._writer = writer
        self._now = now
        self._read_steering = steering
        self._steering: Steering | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, session: Asking) -> None:
        """Bytes have come on ``session``: ask it for its next request soon, together with those of other sessions.

        What the loop reads in one turn goes along the same steps together: so the processor's caches hold each step's
        code, and all of it becomes one batch for the writer.
        """
        if not self._ready:
            self.loop.call_soon(self._take_ready)
        self._ready.append(session)

    def _take_ready(self) -> None:
        sessions, self._ready = self._ready, []
        asked = []
        for session in sessions:
            try:
                one = session.next_request()
            except Exception:  # one session's trouble must not keep the others waiting
                log.exception("a session failed")
                continue
            if one is not None:
                asked.append(one)
        if asked:
            self.take(asked)

    def take(self, asked: Sequence[Asked]) -> None:
        """Decide these requests; each one's ``reply`` is called once, on a later turn of the loop, with the answer."""
        request_of = self.site.understand
        cases, not_understood = [], []
        for attributes, listener, direction, reply in asked:
            try:
                request = request_of(attributes, listener, direction)
            except Exception:  # a defect of ours: it must not leave the others of this turn without an answer
                log.exception("a request could not be understood")
                not_understood.append(Case(self, request_of(Attributes(), listener, direction), reply))
            else:
                cases.append(Case(self, request, reply))
        # From here on each request has a deadline, and so an answer, whatever goes wrong below.
        self.waiting.update(cases)
        self.waiting.update(not_understood)
        for case in not_understood:
            self.loop.call_soon(case.overdue)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)
        count, now = self.stages.count, self._now()
        own = self.own
        for case in cases:
            request = case.request
            try:
                if own and request.helo_name in own:
                    # Nor does it say that Postfix asks: what is told because nobody asks must not end it.
                    case.consulted(
                        Proposal((), DUNNO, OWN_MAIL, "an alert of policyd's own", self.engine.policy)
                    )
                    continue
                count(request.direction, request.stage, request.instance)
                steering = self._steering
                if steering is None:
                    steering = self._steering = self._read_steering()
                    self.loop.call_soon(self._stale)
                # What waits for the DNS has to leave time for the rest.
                due = case.due - self.deadline / 10
                chain = self.engine.consult(request, now, steering, due)
                awaited = chain.send(None)
            except StopIteration as end:
                case.consulted(end.value)
            except Exception as error:  # noqa: BLE001, it must not take the connections with it
                _chain_failed(request, error)
                self.loop.call_soon(case.overdue)
            else:
                case.task = self.loop.create_task(_finish(chain, awaited))
                case.task.add_done_callback(case.chain_ended)

    def submit(self, operation: Operation) -> None:
        """Queue an operation for the writer."""
        self._writer.submit(operation)

    def deliver(self, handed: Sequence[tuple[Operation, Decision | None]]) -> None:
        """What the writer made of a batch: answer each, then log."""
        for operation, decision in handed:
            try:
                operation.done(operation, decision)
            except Exception:  # one session's trouble must not keep the others waiting
                log.exception("an answer could not be handed over")
        try:
            self.decision_log.write([decision for _, decision in handed if decision is not None])
        except Exception:  # the log is derived from what is committed; it must not stop an answer
            log.exception("decisions could not be logged")

    def failing(self, request: Request, proposal: Proposal | None = None) -> Answer:
        """The answer when no decision is possible, with a reference of its own, at its end.

        What the chain refuses is refused: a known ban holds whatever the database does. Else ``[server] fail`` says it.
        """
        ref = "".join(secrets.choice(_REF_DIGITS) for _ in range(7))
        if proposal is not None and proposal.answer.strength == REFUSE:
            verb, text = proposal.answer
            return with_ref(Answer(verb, fill_ref(text.replace("ref {ref}", ""), "").rstrip()), ref)
        kind = self.fail[request.direction]
        if kind == "dunno":
            return DUNNO
        verb, text = _FAIL_TEXTS[kind]
        return make_answer(verb, text + ref)

    def undecided(self, request: Request, answer: Answer) -> None:
        """Tell of an answer without a decision: the 1st, 2nd, 4th, ... of them, since one trouble makes many."""
        self._undecided += 1
        if self._undecided & (self._undecided - 1) == 0:
            log.warning(
                "no decision in time on instance %r; answered %s (%d so far)",
                request.instance,
                answer,
                self._undecided,
            )

    def _stale(self) -> None:
        self._steering = None

    def _tick(self) -> None:
        now = time.monotonic()
        for case in [case for case in self.waiting if case.due <= now]:
            try:
                case.overdue()
            except Exception:  # one session's trouble must not switch off the deadlines of all
                log.exception("an answer could not be handed over")
                self.waiting.discard(case)
        self._timer = self.loop.call_later(TICK, self._tick) if self.waiting else None


class Case:
    """One request on its way."""

    __slots__ = ("_desk", "_reply", "due", "operation", "received", "request", "task")

    def __init__(self, desk: Desk, request: Request, reply: Callable[[Answer], None]) -> None:
        self._desk = desk
        self._reply: Callable[[Answer], None] | None = reply
        self.request = request
        self.received = time.perf_counter_ns()
        # Two ticks early, one of them for being late, so that the answer is out when the deadline comes.
        self.due = time.monotonic() + desk.deadline - 2 * TICK
        self.operation: Operation | None = None
        self.task: asyncio.Task[Proposal] | None = None

    def consulted(self, proposal: Proposal) -> None:
        """The chain has spoken: have it settled."""
        self.operation = Operation(self.request, proposal, self.received, self.settled)
        self._desk.submit(self.operation)

    def chain_ended(self, task: asyncio.Task[Proposal]) -> None:
        """The chain, run as a task, ended or was cancelled."""
        self.task = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            _chain_failed(self.request, error)
        if self.operation is not None:
            # The deadline came first, and what it answered is being written down.
            return
        if error is None:
            self.consulted(task.result())
        else:
            self.overdue()

    def settled(self, operation: Operation, decision: Decision | None) -> None:
        """The writer has decided, or could not."""
        # Nothing points back from here on: what is done with is freed at once, not by the collector.
        self.operation = None
        if self._reply is None:
            if decision is not None and operation.forced is not None and operation.previous is None:
                self._correct(operation, decision)
            return
        if decision is None:
            answer = self._desk.failing(self.request, operation.proposal)
            self._desk.undecided(self.request, answer)
        else:
            answer = decision.settled.answer
        self._answer(answer)

    def overdue(self) -> None:
        """The deadline has come: answer what ``fail`` says, and have that written down."""
        proposal = self.operation.proposal if self.operation is not None else None
        answer = self._desk.failing(self.request, proposal)
        if self.task is not None:
            self.task.cancel()
        if self.operation is None:
            self.operation = Operation(
                self.request,
                Proposal((), DUNNO, "", "", self._desk.engine.policy),
                self.received,
                self.settled,
            )
            self.operation.forced = answer
            self._desk.submit(self.operation)
        else:
            self.operation.forced = answer
        self._desk.undecided(self.request, answer)
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        reply, self._reply = self._reply, None
        self._desk.waiting.discard(self)
        if reply is not None:
            self._desk.answered += 1
            if answer.strength == REFUSE:
                self._desk.stages.refused(self.request.direction, self.request.instance)
            reply(answer)

    def _correct(self, operation: Operation, decision: Decision) -> None:
        """The deadline's answer went out while the writer decided: have the ledger follow what was answered."""
        settled, forced = decision.settled, operation.forced
        if forced is None or settled.answer == forced:
            return
        again = Operation(self.request, operation.proposal, self.received, self.settled)
        again.forced = forced
        again.previous = Earlier(
            decision.id,
            decision.at,
            self.request.listener,
            self.request.stage,
            self.request.recipient,
            settled.verdict,
            str(settled.answer),
            settled.by,
            settled.charges,
        )
        self._desk.submit(again)


def _chain_failed(request: Request, error: BaseException) -> None:
    log.error("chain failed on instance %r: %s: %s", request.instance, type(error).__name__, error)


async def _finish(chain: Coroutine[Any, Any, Proposal], awaited: Any) -> Proposal:
    return await _rest(chain, awaited)


@types.coroutine
def _rest(chain: Coroutine[Any, Any, Proposal], awaited: Any) -> Generator[Any, Any, Proposal]:
    """What is left of a chain that waits for ``awaited``, as something a task can run."""
    while True:
        thrown: BaseException | None = None
        value: Any = None
        try:
            value = yield awaited
        except BaseException as error:  # noqa: BLE001, a cancellation too belongs to the chain
            thrown = error
        try:
            awaited = chain.send(value) if thrown is None else chain.throw(thrown)
        except StopIteration as end:
            result: Proposal = end.value
            return result

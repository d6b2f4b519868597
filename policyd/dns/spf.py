"""SPF for all checks: pyspf's verdicts over the shared resolver, within policyd's own bounds, and remembered.

Bounds, all of them policyd's (pyspf with its defaults once took 100 questions and 100 s for one hostile mail): a deadline on the
monotonic clock, a number of questions, two evaluations of one domain at a time, and the size of what is evaluated
(:mod:`policyd.dns.spf_limits`). Whatever they cut short is ``temperror``, never ``fail``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from policyd.dns.spf_bounds import AT_ONCE, Headroom, OutOfBounds, Sheet, Slots, Trace, Turns
from policyd.dns.spf_round import Memo, Outcome, run
from policyd.lookup import Resolver
from policyd.senderpolicy import HELO_QUESTIONS, MOST_QUESTIONS, NONE, TEMPERROR, Claim, SpfResult, Verdicts

log = logging.getLogger("policyd.dns")

#: No evaluation takes longer, s, however much time the mail has (RFC 7208 4.6.4 asks for 20 at least where there is no
#: other bound).
LONGEST = 20.0
#: Processor time for one evaluation, s; most take a hundredth. Its longest run is left out: Python's collection of garbage may
#: have fallen into it.
MOST_WORK = 0.2
#: Below this it is over before anybody could wait for it, s.
NOTABLE = 0.001
#: A refusal waits so long at most for the text that explains it, s.
EXPLAIN = 1.0
#: How long a result is remembered, s, whatever its records say; one that could not be had, and one that never can.
SHORTEST_MEMORY, LONGEST_MEMORY = 60, 3600
TROUBLE_MEMORY, EXCESS_MEMORY = 10, 60
#: Results that are remembered, about 1 KB each.
MOST_REMEMBERED = 10_000
#: Characters kept of a text that strangers wrote.
MOST_TEXT = 400

#: The client and the domain; the whole claim where the records look at the sender or the HELO name too.
_Key = tuple[str, str] | Claim
#: A claim, and its result or who finds it out.
_Begun = tuple[Claim, SpfResult | asyncio.Task[SpfResult]]


class _Remembered(NamedTuple):
    #: The second at which it is forgotten.
    until: float
    #: ``None``: it stands under the whole claim.
    result: SpfResult | None
    #: It holds only for who has no more questions than these.
    most: float = math.inf


class Evaluator:
    """See :class:`policyd.senderpolicy.SpfEvaluator`. Belongs to one event loop."""

    def __init__(
        self,
        resolver: Resolver,
        receiver: str = "",
        *,
        trace: Trace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        :param receiver: this host's name; empty: what the system calls it.
        """
        self.receiver = receiver or host_name()
        self._resolver = resolver
        self._trace = trace
        self._clock = clock
        self._results: dict[_Key, _Remembered] = {}
        self._running: dict[tuple[Claim, int], asyncio.Task[SpfResult]] = {}
        self._slots: dict[str, Slots] = {}
        self._turns = Turns()
        self._headroom = Headroom()

    async def evaluate(self, mail_from: Claim, helo: Claim | None, due: float) -> Verdicts:
        """See :class:`policyd.senderpolicy.SpfEvaluator`."""
        if helo is None:
            return Verdicts(await self._verdict(self._begin(mail_from, due, MOST_QUESTIONS), due))
        # Both are begun before either is waited for: a HELO name that is slow on purpose must not use up the time.
        begun = self._begin(mail_from, due, MOST_QUESTIONS - HELO_QUESTIONS)
        begun_helo = self._begin(helo, due, HELO_QUESTIONS)
        return Verdicts(await self._verdict(begun, due), await self._verdict(begun_helo, due))

    def _begin(self, claim: Claim, due: float, most: int) -> _Begun:
        if not claim.domain:
            return claim, SpfResult(NONE)
        now = self._clock()
        known = self._remembered(claim, now, most)
        if known is not None:
            return claim, known
        # Both identities have the same records.
        key = claim._replace(identity="")
        task = self._running.get((key, most))
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._evaluation(key, min(due, now + LONGEST), most)
            )
            self._running[key, most] = task
            task.add_done_callback(lambda task: self._ended((key, most), task))
        return claim, task

    async def _verdict(self, begun: _Begun, due: float) -> SpfResult:
        claim, result = begun
        if not isinstance(result, SpfResult):
            seconds = min(due - self._clock(), LONGEST)
            result = await _within(result, seconds) or _trouble("no verdict in time")
        return result._replace(identity=claim.identity, domain=claim.domain)

    def forget(self) -> None:
        """Evaluate everything anew: others are asked from now on."""
        # What is under way ends as it began, and is remembered where nobody looks.
        self._results, self._running = {}, {}

    def close(self) -> None:
        """End what is under way; whoever waits is told temperror."""
        for task in list(self._running.values()):
            task.cancel()

    def _ended(self, key: tuple[Claim, int], task: asyncio.Task[SpfResult]) -> None:
        if self._running.get(key) is task:
            del self._running[key]

    # --- memory -----------------------------------------------------------------------------------------------------

    def _remembered(self, claim: Claim, now: float, most: int) -> SpfResult | None:
        for key in ((claim.ip, claim.domain), claim._replace(identity="")):
            entry = self._results.get(key)
            if entry is None or entry.until <= now or entry.most < most:
                return None
            if entry.result is not None:
                return entry.result
        return None

    @staticmethod
    def _remember(results: dict[_Key, _Remembered], key: _Key, entry: _Remembered) -> None:
        # Taken out first, so that the oldest stands first.
        results.pop(key, None)
        while len(results) >= MOST_REMEMBERED:
            del results[next(iter(results))]
        results[key] = entry

    # --- one evaluation ---------------------------------------------------------------------------------------------

    async def _evaluation(self, claim: Claim, due: float, most: int) -> SpfResult:
        slots = self._slots.setdefault(claim.domain, Slots())
        try:
            if not await slots.take(due - self._clock()):
                return _trouble(f"{AT_ONCE} evaluations of this domain are under way")
            try:
                # Somebody else may have found it out meanwhile.
                return self._remembered(claim, self._clock(), most) or await self._find_out(claim, due, most)
            finally:
                slots.leave()
        # A defect here must not become an error of each mail from that domain.
        except Exception:
            log.exception("SPF of %s could not be evaluated", claim.domain)
            return _trouble("policyd failed to evaluate it")
        finally:
            if slots.idle:
                self._slots.pop(claim.domain, None)

    async def _find_out(self, claim: Claim, due: float, most: int) -> SpfResult:
        results = self._results
        sheet = Sheet(self._resolver, self._headroom, due, most, self._clock, self._trace)
        try:
            outcome = await self._outcome(claim, sheet)
        except OutOfBounds as bound:
            result = _trouble(str(bound), sheet.asked)
            until = self._clock() + (EXCESS_MEMORY if bound.excess else TROUBLE_MEMORY)
            kept = result._replace(questions=0)
            entry = _Remembered(until, kept, most if bound.excess else math.inf)
            self._remember(results, (claim.ip, claim.domain), entry)
            return result
        finally:
            sheet.close()
        result = SpfResult(
            outcome.result,
            mechanism=outcome.mechanism[:MOST_TEXT],
            explanation=outcome.explanation[:MOST_TEXT],
            problem=outcome.problem[:MOST_TEXT],
            questions=sheet.asked,
        )
        until = self._clock() + (
            TROUBLE_MEMORY
            if result.result == TEMPERROR
            else min(max(outcome.ttl, SHORTEST_MEMORY), LONGEST_MEMORY)
        )
        kept = result._replace(questions=0)
        if outcome.personal:
            self._remember(results, claim, _Remembered(until, kept))
        entry = _Remembered(until, None if outcome.personal else kept)
        self._remember(results, (claim.ip, claim.domain), entry)
        return result

    async def _outcome(self, claim: Claim, sheet: Sheet) -> Outcome:
        memo = Memo()
        while (outcome := await self._run(claim, sheet, memo)).open:
            await sheet.answer(outcome.open)
        until = min(sheet.due, self._clock() + EXPLAIN)
        while outcome.explains and await sheet.explain(outcome.explains, until):
            explained = await self._run(claim, sheet, memo)
            if explained.open:
                break
            outcome = explained
        return outcome

    async def _run(self, claim: Claim, sheet: Sheet, memo: Memo) -> Outcome:
        # One at a time, and the loop looks after all others before the next: fifty hostile records hold nobody up.
        await self._turns.take(sheet.asked)
        try:
            begun = time.thread_time()
            outcome = run(claim, self.receiver, sheet.known, memo)
            worked = time.thread_time() - begun
            sheet.note_work(worked)
            # At least as long for all others as for this.
            await asyncio.sleep(worked if worked > NOTABLE else 0)
        finally:
            self._turns.leave()
        if outcome.open and sheet.worked > MOST_WORK:
            raise OutOfBounds("it takes too much work", excess=True)
        return outcome


def host_name() -> str:
    """This host's name as it may stand in a header; the DNS is not asked for a longer one."""
    name = socket.gethostname()[:100]
    return name if re.fullmatch(r"[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*", name, re.ASCII) else "localhost"


async def _within(task: asyncio.Task[SpfResult], seconds: float) -> SpfResult | None:
    """The task's result if it comes within so many seconds; who gives up waiting does not end it for others.

    Awaits a bare future: whoever asks may stand outside of any task.
    """
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(*_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    timer = asyncio.get_running_loop().call_later(max(0.0, seconds), wake)
    try:
        await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(wake)
    return task.result() if task.done() and not task.cancelled() else None


def _trouble(problem: str, questions: int = 0) -> SpfResult:
    return SpfResult(TEMPERROR, problem=problem, questions=questions)

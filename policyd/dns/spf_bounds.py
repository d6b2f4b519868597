"""What bounds one SPF evaluation: its questions and its time, and how many of one domain there are at a time."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable

from policyd.dns.spf_round import Question
from policyd.lookup import Found, Resolver

#: Evaluations of one domain at a time: its nameservers may be slow on purpose.
AT_ONCE = 2
#: Questions of one evaluation asked ahead of need, so that some of the others are still for what is needed.
AHEAD = 10
#: And of all evaluations together, at a time.
AHEAD_IN_ALL = 32

#: Told of each question: itself, its answer, s that it took.
Trace = Callable[[Question, Found, float], None]


class OutOfBounds(Exception):
    """The evaluation ends without a verdict: for want of time, or for good (``excess``) because it would cost too much."""

    def __init__(self, text: str, excess: bool) -> None:
        super().__init__(text)
        self.excess = excess


class Headroom:
    """How many questions all evaluations together may have under way ahead of need: answers that come all at once are
    read all at once, and hold the loop meanwhile."""

    __slots__ = ("free",)

    def __init__(self) -> None:
        self.free = AHEAD_IN_ALL

    def give_back(self, _: object) -> None:
        """One of them has ended."""
        self.free += 1


class Sheet:
    """The questions and answers of one evaluation."""

    def __init__(
        self,
        resolver: Resolver,
        headroom: Headroom,
        due: float,
        most: int,
        clock: Callable[[], float],
        trace: Trace | None,
    ) -> None:
        self.known: dict[Question, Found] = {}
        self.asked = 0
        #: Processor time of all runs but the longest, s.
        self.worked = 0.0
        self._longest = 0.0
        self.due = due
        self._resolver = resolver
        self._headroom = headroom
        self._most = most
        self._ahead = AHEAD
        self._clock = clock
        self._trace = trace
        self._asking: dict[Question, asyncio.Task[Found]] = {}

    async def answer(self, questions: tuple[Question, ...]) -> None:
        """Have the first of ``questions`` answered, and ask some of the others ahead of need.

        :raises OutOfBounds: no question is left, or no time.
        """
        needed = questions[0]
        if needed not in self._asking:
            if self.asked >= self._most:
                raise OutOfBounds(f"it takes more than {self._most} look-ups", excess=True)
            self._ask(needed, self.due)
        for question in questions[1:]:
            if not self._ahead or not self._headroom.free or self.asked >= self._most:
                break
            if question not in self._asking:
                self._ahead -= 1
                self._headroom.free -= 1
                self._ask(question, self.due)
                self._asking[question].add_done_callback(self._headroom.give_back)
        if not await self._wait(needed, self.due):
            raise OutOfBounds(f"no answer in time for {needed[1]} of {needed[0]}", excess=False)

    async def explain(self, questions: tuple[Question, ...], until: float) -> bool:
        """Ask what the verdict does not depend on; whether there are more answers than before."""
        for question in questions:
            if self.asked >= self._most or self._clock() >= until:
                return False
            self._ask(question, until)
            if not await self._wait(question, until):
                return False
        return True

    def note_work(self, seconds: float) -> None:
        """Add a run's processor time."""
        self.worked += min(seconds, self._longest)
        self._longest = max(seconds, self._longest)

    def close(self) -> None:
        """Wait no longer for what was asked ahead."""
        for task in self._asking.values():
            task.cancel()

    def _ask(self, question: Question, due: float) -> None:
        self.asked += 1
        self._asking[question] = asyncio.get_running_loop().create_task(self._one(question, due))

    async def _one(self, question: Question, due: float) -> Found:
        begun = self._clock()
        found = await self._resolver.ask(*question, due)
        if self._trace is not None:
            self._trace(question, found, self._clock() - begun)
        return found

    async def _wait(self, needed: Question, due: float) -> bool:
        await asyncio.wait([self._asking[needed]], timeout=max(0.0, due - self._clock()))
        for question, task in list(self._asking.items()):
            if task.done():
                self.known[question] = task.result()
                del self._asking[question]
        return needed in self.known


class Slots:
    """The evaluations of one domain: so many at a time, the others in turn."""

    __slots__ = ("_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """Whether nobody is evaluating, and nobody waits to."""
        return not self._taken and not self._waiting

    async def take(self, seconds: float) -> bool:
        """Wait for one's turn, so long at most; whether it came."""
        if self._taken < AT_ONCE:
            self._taken += 1
            return True
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait([turn], timeout=max(0.0, seconds))
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        if turn.done():
            return True
        self._give_up(turn)
        return False

    def leave(self) -> None:
        """Make room: the next one's turn."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._taken -= 1

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self.leave()
        else:
            self._waiting.remove(turn)


class Turns:
    """One evaluation computes at a time, who has asked least goes first: ordinary records do not wait for hostile ones."""

    __slots__ = ("_count", "_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    async def take(self, asked: int) -> None:
        """Wait for one's turn.

        :param asked: questions so far.
        """
        if not self._taken:
            self._taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting, (asked, self._count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """The next one's turn."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False

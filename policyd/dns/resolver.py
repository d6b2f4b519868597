"""The one resolver: each question asked once however many wait for it, remembered, and never for longer than there is time."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from policyd.descriptors import for_dns
from policyd.dns.cache import Cache, Key, clamp
from policyd.dns.inbox import Inbox
from policyd.dns.message import MOST_ALIASES, Question, Reply, canonical, make_question
from policyd.dns.nameservers import system_nameservers
from policyd.dns.upstream import Exchange, Nameserver
from policyd.lookup import FOUND, UNKNOWN, Found

log = logging.getLogger("policyd.dns")

TIMEOUT = 2.0
CACHE_SIZE = 32_000_000
#: Questions under way at once; each holds a descriptor for each nameserver that it was put to.
MOST_UNDER_WAY = 1000
#: Questions that wait until one of those ends; beyond that the answer is "unknown".
MOST_WAITING = 10_000

NO_TIME = Found(UNKNOWN, why="timeout")
NO_NAMESERVER = Found(UNKNOWN, why="no nameserver answers")
TOO_MANY = Found(UNKNOWN, why="too many questions")
CLOSED = Found(UNKNOWN, why="resolver closed")
DEFECT = Found(UNKNOWN, why="defect")

#: Makes a named tuple without the step of the interpreter that its own constructor is.
_new = tuple.__new__


class Health(NamedTuple):
    """How a part of the resolver does."""

    #: ``nameserver/ADDRESS:PORT``, ``resolver``.
    subject: str
    #: ``up``, ``down``.
    state: str
    #: Since when, wall clock, ms.
    since: int
    figures: dict[str, int | float]


class _LookUp:
    """A question under way, and who waits for it."""

    __slots__ = ("key", "question", "waiters")

    def __init__(self, key: Key, question: Question) -> None:
        self.key = key
        self.question = question
        self.waiters: set[asyncio.Future[Found]] = set()


class Resolver:
    """Asks nameservers that resolve names themselves (unbound, say). It lives on one asyncio loop.

    See :class:`policyd.lookup.Resolver`.
    """

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        timeout: float = TIMEOUT,
        cache_size: int = CACHE_SIZE,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """
        :param nameservers: ``ADDRESS:PORT``, asked in this order; none: those of /etc/resolv.conf.
        :param timeout: of one look-up, all nameservers together, s.
        :param cache_size: octets of what is remembered.
        :param clock: that of ``due``, s.
        :param wall: the wall clock, s.
        :raises ValueError: a nameserver is none.
        """
        self._clock = clock
        self._wall = wall
        self._cache = Cache(clock, cache_size)
        self._entries = self._cache.entries
        self._under_way: dict[Key, _LookUp] = {}
        self._queue: deque[_LookUp] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._inbox = Inbox()
        self._nameservers: tuple[Nameserver, ...] = ()
        self._timeout = timeout
        self._most = MOST_UNDER_WAY
        self._since = wall()
        self._reachable = True
        self.hits = self.misses = self.joined = 0
        self.configure(nameservers, timeout, cache_size)

    # --- asking -----------------------------------------------------------------------------------------------------

    async def ask(self, name: str, rdtype: str, due: float, *, first: bool = False) -> Found:
        """What the DNS says on ``name``, by ``due`` at the latest; see :class:`policyd.lookup.Resolver`.

        A name in A-labels, lower case, without the last dot takes the shortest way.

        :param first: where questions wait in line, before all that wait.
        """
        now = self._clock()
        entry = self._entries.get((name, rdtype))
        if entry is not None and now < entry[0]:
            self.hits += 1
            _, (status, records, _, why), _ = entry
            return _new(Found, (status, records, int(entry[0] - now) + 1, why))
        try:
            key = (canonical(name), rdtype)
            if key[0] != name and (found := self._cache.get(key)) is not None:
                self.hits += 1
                return found
            look_up = self._under_way.get(key)
            if look_up is None:
                question = make_question(*key)
                if (refused := self._refusal(due - now)) is not None:
                    return refused
                look_up = self._begin(key, question, first)
            else:
                self.joined += 1
        except ValueError as error:
            return Found(UNKNOWN, why=str(error))
        return await self._wait(look_up, due - now)

    def _refusal(self, left: float) -> Found | None:
        """Why nobody is asked now."""
        if self._closed:
            return CLOSED
        if left <= 0:
            return NO_TIME
        if not self._reachable:
            return NO_NAMESERVER
        if len(self._queue) >= MOST_WAITING:
            return TOO_MANY
        return None

    async def _wait(self, look_up: _LookUp, left: float) -> Found:
        """Who gives up leaves the question to the others."""
        if left <= 0:
            return NO_TIME
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Found] = loop.create_future()
        look_up.waiters.add(waiter)
        # A look-up ends by itself, but one that is still queued does not.
        timer = loop.call_later(min(left, 86400.0), _tell, waiter, NO_TIME)
        try:
            return await waiter
        finally:
            timer.cancel()
            look_up.waiters.discard(waiter)

    def forget(self, name: str, rdtype: str) -> None:
        """Ask anew next time, though an answer is remembered."""
        self._cache.drop((name, rdtype))

    # --- questions under way ------------------------------------------------------------------------------------------

    def _begin(self, key: Key, question: Question, first: bool) -> _LookUp:
        self.misses += 1
        look_up = self._under_way[key] = _LookUp(key, question)
        if len(self._tasks) < self._most:
            self._start(look_up)
        elif first:
            self._queue.appendleft(look_up)
        else:
            self._queue.append(look_up)
        return look_up

    def _start(self, look_up: _LookUp) -> None:
        task = asyncio.get_running_loop().create_task(self._run(look_up))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, look_up: _LookUp) -> None:
        found = CLOSED
        try:
            found = await self._follow(look_up.question)
            current = self._under_way.get(look_up.key) is look_up
            if current and not self._closed and found is not NO_NAMESERVER:
                self._cache.put(look_up.key, found)
        except Exception:  # one answer that trips us up must not leave those who wait for it without any
            # Not the name: a list's zone may have a customer's key in it.
            log.exception("a look-up of type %s failed", look_up.key[1])
            found = DEFECT
        finally:
            self._deliver(look_up, found)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._next()

    def _deliver(self, look_up: _LookUp, found: Found) -> None:
        if self._under_way.get(look_up.key) is look_up:
            del self._under_way[look_up.key]
        for waiter in look_up.waiters:
            _tell(waiter, found)

    def _next(self) -> None:
        while self._queue and len(self._tasks) < self._most:
            look_up = self._queue.popleft()
            if self._closed or not look_up.waiters:
                self._deliver(look_up, CLOSED)
            elif not self._reachable:
                self._deliver(look_up, NO_NAMESERVER)
            else:
                self._start(look_up)

    async def _follow(self, question: Question) -> Found:
        """The answer, also where a CNAME leads away and the nameserver did not follow."""
        until = asyncio.get_running_loop().time() + self._timeout
        ttls: list[int] = []
        for _ in range(MOST_ALIASES + 1):
            reply = await self._put(question, until)
            if reply.ttl is not None:
                ttls.append(reply.ttl)
            if not reply.alias:
                if reply.status == UNKNOWN:
                    return NO_NAMESERVER if reply is _DOWN else Found(UNKNOWN, why=reply.why)
                known = reply.ttl is not None or reply.status == FOUND
                return Found(reply.status, reply.records, clamp(min(ttls) if known else None))
            try:
                question = make_question(reply.alias, question.rdtype)
            except ValueError as error:
                return Found(UNKNOWN, why=str(error))
        return Found(UNKNOWN, why="too many CNAMEs")

    async def _put(self, question: Question, until: float) -> Reply:
        """The question to one nameserver after the other, and round again while there is time.

        Those asked first may still answer. Who fails makes room for the next at once.
        """
        loop = asyncio.get_running_loop()
        untried = deque(each for each in self._nameservers if each.up)
        if not untried:
            return _DOWN
        # A single nameserver is given time for a slow zone; a second datagram is for a lost first one.
        pace = self._timeout * (0.6 if len(untried) == 1 else 0.3)
        asked: dict[asyncio.Future[Reply], tuple[Nameserver, Exchange]] = {}
        why = ""
        try:
            while True:
                if untried:
                    nameserver = untried.popleft()
                    exchange = nameserver.exchange(question)
                    asked[exchange.future] = nameserver, exchange
                elif asked:
                    for _, exchange in asked.values():
                        exchange.send()
                else:
                    return Reply(UNKNOWN, why=why)
                again = min(until, loop.time() + pace)
                while asked and (left := again - loop.time()) > 0:
                    done, _ = await asyncio.wait(asked, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    for future in done:
                        del asked[future]
                        reply = future.result()
                        if reply.status != UNKNOWN or reply.alias:
                            return reply
                        why = reply.why
                    if done and untried:
                        break
                if not self._reachable and asked:
                    return _DOWN
                if loop.time() >= until:
                    for nameserver, _ in asked.values():
                        nameserver.timeouts += 1
                    return Reply(UNKNOWN, why=why or "timeout")
        finally:
            for _, exchange in asked.values():
                exchange.close()

    # --- nameservers ------------------------------------------------------------------------------------------------

    def configure(self, nameservers: Sequence[str], timeout: float, cache_size: int) -> bool:
        """Take over these settings; what is remembered stays, unless others are asked from now on: whether that is so.

        Questions under way end as they began.

        :raises ValueError: a nameserver is none; nothing has changed.
        """
        texts = tuple(nameservers) or system_nameservers()
        new = tuple(
            Nameserver(text, timeout, self._nameserver_changed, self._wall, self._inbox) for text in texts
        )
        others = [each.text for each in new] != [each.text for each in self._nameservers]
        if others:
            self._cache.clear()
            # Who waits for these is answered; what the former ones say is told to nobody else.
            self._under_way = {}
        elif timeout == self._timeout and self._nameservers:
            new = self._nameservers
        if new is not self._nameservers:
            for each in self._nameservers:
                each.close()
            self._nameservers = new
            self._reachable, self._since = True, self._wall()
        self._most = _most_under_way(len(texts))
        self._timeout = timeout
        self._cache.most_octets = cache_size
        self._cache.trim()
        return others

    def _nameserver_changed(self, nameserver: Nameserver) -> None:
        if nameserver.up:
            log.warning("nameserver-up: %s answers again", nameserver.text)
        else:
            why = f": {nameserver.trouble}" if nameserver.trouble else ""
            log.error("nameserver-down: %s does not answer%s", nameserver.text, why)
        reachable = any(each.up for each in self._nameservers)
        if reachable == self._reachable:
            return
        self._reachable, self._since = reachable, self._wall()
        if reachable:
            log.warning("dns-up: there are answers from the DNS again")
            return
        log.error(
            "dns-down: no nameserver answers; mail goes on without what the DNS knows, see [dns] nameservers"
        )
        for look_up in list(self._under_way.values()):
            self._deliver(look_up, NO_NAMESERVER)

    def health(self) -> list[Health]:
        """The whole and each nameserver, for status."""
        figures: dict[str, int | float] = {
            "hits": self.hits,
            "misses": self.misses,
            "joined": self.joined,
            "under_way": len(self._under_way),
            "most_under_way": self._most,
            "remembered": len(self._entries),
            "remembered_bytes": self._cache.octets,
        }
        found = [Health("resolver", _state(self._reachable), int(self._since * 1000), figures)]
        for each in self._nameservers:
            figures = {
                "questions": each.questions,
                "answers": each.answers,
                "timeouts": each.timeouts,
                "failures": each.failures,
                "malformed": each.malformed,
                "latency_ms": round(each.latency * 1000, 1),
            }
            found.append(Health(f"nameserver/{each.text}", _state(each.up), int(each.since * 1000), figures))
        return found

    async def close(self) -> None:
        """End: who still waits is told "unknown"."""
        self._closed = True
        for nameserver in self._nameservers:
            nameserver.close()
        for look_up in list(self._under_way.values()):
            self._deliver(look_up, CLOSED)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


_DOWN = Reply(UNKNOWN, why=NO_NAMESERVER.why)


def _most_under_way(nameservers: int) -> int:
    """As many as the process's descriptors allow."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return MOST_UNDER_WAY
    return max(10, min(MOST_UNDER_WAY, for_dns(descriptors) // nameservers))


def _state(up: bool) -> str:
    return "up" if up else "down"


def _tell(waiter: asyncio.Future[Found], found: Found) -> None:
    if not waiter.done():
        waiter.set_result(found)

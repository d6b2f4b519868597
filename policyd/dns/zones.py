"""The blocklists over the one resolver: asked side by side, believed only while they are well, tested again and again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from policyd.blocklists import Blocklist, Listing, hide_key, is_refusal
from policyd.dns.health import SICK, ListHealth
from policyd.dns.zone_names import Asked, absent, against, present, random_name
from policyd.lookup import FOUND, UNKNOWN, Found, Resolver

log = logging.getLogger("policyd.dnsbl")

#: A test, a random name: this long they are waited for, s.
PATIENCE = 5.0
#: A look-up that had less time says nothing about the list that did not answer it, s.
FAIR = 1.0
#: How long it counts that nobody could say, and that a list is sick (its recovery ends that at once), s.
UNKNOWN_TTL, SICK_TTL = 10.0, 3600.0
#: How often it is looked whether a test is due, s.
LOOK = 1.0
#: Why nobody could say, where the list cannot help it (policyd.dns.resolver).
NOT_THE_LIST = frozenset(
    {
        "no nameserver answers",
        "nameserver unreachable",
        "no resolver",
        "too many questions",
        "resolver closed",
        "bad name",
        "defect",
    }
)


class Forgetful(Resolver, Protocol):
    """A resolver whose memory, and whose line, can be passed by."""

    async def ask(self, name: str, rdtype: str, due: float, *, first: bool = False) -> Found:
        """See :class:`policyd.lookup.Resolver`; ``first``: before all questions that wait in line."""

    def forget(self, name: str, rdtype: str) -> None:
        """Ask anew next time, though an answer is remembered."""


class Zones:
    """All lists of all checks; see :class:`policyd.blocklists.Blocklists`. It lives on one asyncio loop."""

    def __init__(
        self,
        resolver: Forgetful,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """
        :param clock: for the health of the lists, s; questions have deadlines of ``time.monotonic`` whatever it says.
        :param wall: the wall clock, s.
        """
        self.epoch = 0
        self._resolver = resolver
        self._clock = clock
        self._wall = wall
        self._health: dict[tuple[str, bool], tuple[Blocklist, ListHealth]] = {}
        self._proofs: dict[tuple[str, bool, str], asyncio.Task[None]] = {}

    def keep(self, lists: Iterable[Blocklist]) -> None:
        """From now on these are all the lists; what is known of those that stay is kept. New ones are tested at once."""
        kept: dict[tuple[str, bool], tuple[Blocklist, ListHealth]] = {}
        for each in lists:
            key = each.zone, each.domains
            old = kept.get(key)
            if old is not None and not old[0].tested:
                # Another check knows that it has no test entries.
                continue
            kept[key] = each, self._health[key][1] if key in self._health else self._new()
        self._health = kept
        self.epoch += 1

    def test_anew(self) -> None:
        """Others are asked from now on: what the lists' health was may have been the former nameserver's."""
        for _, health in self._health.values():
            health.test_anew(self._clock())
        self.epoch += 1

    def report(self) -> list[tuple[str, str, int, dict[str, Any]]]:
        """Each list's name, ``well`` or ``sick``, since when (wall clock, ms), and figures."""
        found: dict[str, tuple[str, str, int, dict[str, Any]]] = {}
        for blocklist, health in self._health.values():
            subject = blocklist.subject
            if subject in found:
                subject += " (domains)" if blocklist.domains else " (addresses)"
            figures = {"lists": "domains" if blocklist.domains else "addresses"} | health.figures()
            found[subject] = subject, health.state, health.since, figures
        return list(found.values())

    # --- asking -----------------------------------------------------------------------------------------------------

    async def look_up(self, lists: Sequence[Blocklist], name: str, due: float) -> Sequence[Listing]:
        """See :class:`policyd.blocklists.Blocklists`."""
        # A check runs outside of any task; what waits side by side needs one.
        return await asyncio.get_running_loop().create_task(self._look_up_all(lists, name, due))

    async def _look_up_all(self, lists: Sequence[Blocklist], name: str, due: float) -> list[Listing]:
        due = min(due, time.monotonic() + PATIENCE)
        listings: list[Listing] = []
        asking = (self._look_up(each, name, due) for each in lists)
        for blocklist, said in zip(lists, await asyncio.gather(*asking, return_exceptions=True), strict=True):
            if isinstance(said, Listing):
                listings.append(said)
                continue
            if not isinstance(said, Exception):
                raise said
            log.error("look-up in %s failed: %s: %s", blocklist.public, type(said).__name__, said)
            listings.append(Listing(why="defect"))
        return listings

    async def _look_up(self, blocklist: Blocklist, name: str, due: float) -> Listing:
        health = self._of(blocklist)
        if health.state == SICK:
            return _sick(health)
        loop = asyncio.get_running_loop()
        waited: list[int] = []
        # Runs only if the answer was waited for: what is remembered says nothing about the list's pace.
        turn = loop.call_soon(waited.append, 1)
        began = time.monotonic()
        found = await self._resolver.ask(f"{name}.{blocklist.zone}", "A", due)
        turn.cancel()
        ended = time.monotonic()
        if found.status == UNKNOWN:
            # Not before its time: an answer that is no answer (SERVFAIL) counts whenever it comes.
            if found.why == "timeout" and due - began < FAIR:
                health.doubted(self._clock())
            elif found.why not in NOT_THE_LIST:
                why = health.unanswered(_kind(blocklist, name), self._clock())
                self._fall_sick(blocklist, health, why, silent=True)
            return _sick(health) if health.state == SICK else Listing(why=found.why, ttl=UNKNOWN_TTL)
        health.answered(ended - began if waited else None)
        if found.status != FOUND:
            return Listing(known=True, ttl=found.ttl)
        return await self._listed(blocklist, health, name, found, due)

    async def _listed(
        self, blocklist: Blocklist, health: ListHealth, name: str, found: Found, due: float
    ) -> Listing:
        """What an answer with addresses in it comes to."""
        # Also for a refusal: it shows whether the list refuses this name, or everything.
        health.listed(name, self._clock())
        left = await self._proof(blocklist, health, _kind(blocklist, name), due)
        if health.state == SICK:
            return _sick(health)
        refusal = next((code for code in found.records if is_refusal(blocklist.zone, code)), None)
        if refusal is not None:
            health.refusals += 1
            return Listing(why=f"answered {refusal}, which is no listing", ttl=found.ttl)
        if left <= 0:
            return Listing(why="nobody vouched for it in time", ttl=0.0)
        if not health.believes(name, self._clock()):
            return Listing(why="it was listed when the list listed everything", ttl=UNKNOWN_TTL)
        return Listing(found.records, True, "", min(found.ttl, left))

    async def text(self, blocklist: Blocklist, name: str, due: float) -> str:
        """See :class:`policyd.blocklists.Blocklists`."""
        due = min(due, time.monotonic() + PATIENCE)
        found = await self._resolver.ask(f"{name}.{blocklist.zone}", "TXT", due)
        if found.status != FOUND or not found.records:
            return ""
        return hide_key(found.records[0].decode("utf-8", "replace"), blocklist)

    def tally(self, lists: Sequence[Blocklist], name: str, listings: Sequence[Listing]) -> None:
        """See :class:`policyd.blocklists.Blocklists`."""
        listed = {
            each.public: each.operator for each, listing in zip(lists, listings, strict=True) if listing.codes
        }
        for blocklist, listing in zip(lists, listings, strict=True):
            if listing.known:
                health = self._of(blocklist)
                why = health.tally(
                    _kind(blocklist, name),
                    name,
                    bool(listing.codes),
                    listed.keys() - {blocklist.public},
                    strangers=not {blocklist.operator}.issuperset(listed.values()),
                )
                self._fall_sick(blocklist, health, why, breaker=True)

    # --- proof ------------------------------------------------------------------------------------------------------

    async def _proof(self, blocklist: Blocklist, health: ListHealth, kind: str, due: float) -> float:
        """For how long listings may be believed, s; a random name is asked when it was not within the last seconds."""
        left = health.proof_left(kind, self._clock())
        if left > 0:
            return left
        key = blocklist.zone, blocklist.domains, kind
        task = self._proofs.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._prove(blocklist, health, kind))
            self._proofs[key] = task
            task.add_done_callback(lambda _: self._proofs.pop(key, None))
        # Who has no more time leaves it to the others.
        await asyncio.wait({task}, timeout=max(0.0, due - time.monotonic()))
        return health.proof_left(kind, self._clock())

    async def _prove(self, blocklist: Blocklist, health: ListHealth, kind: str) -> None:
        asked_at = self._clock()
        name, shown = random_name(kind)
        asked = await self._put(blocklist, name, shown)
        if asked.found.status == FOUND:
            self._fall_sick(blocklist, health, against(blocklist, asked))
        elif asked.found.status != UNKNOWN:
            health.proved(kind, asked_at)

    async def _put(self, blocklist: Blocklist, name: str, shown: str) -> Asked:
        """One name of a test, asked as if nothing were remembered; nothing is remembered of it."""
        whole = f"{name}.{blocklist.zone}"
        self._resolver.forget(whole, "A")
        # First: a burst of look-ups must not hold up the one question that all of them wait for.
        found = await self._resolver.ask(whole, "A", time.monotonic() + PATIENCE, first=True)
        self._resolver.forget(whole, "A")
        return Asked(shown, found)

    # --- tests ------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Test each list when it is due, for ever: at the start, every half an hour, every minute while it is sick."""
        while True:
            try:
                await self.test_due()
            except Exception:  # a defect in one test must not be the last test
                log.exception("the blocklists could not be tested")
            await asyncio.sleep(LOOK)

    async def test_due(self) -> None:
        """Test the lists whose time has come, side by side."""
        now = self._clock()
        due = [pair for pair in self._health.values() if pair[1].next_test <= now]
        await asyncio.gather(*(self._test(blocklist, health) for blocklist, health in due))

    async def _test(self, blocklist: Blocklist, health: ListHealth) -> None:
        """The test entries of RFC 5782 section 5, and a random name."""
        listed, unlisted = present(blocklist.domains), absent(blocklist.domains)
        asked = await asyncio.gather(*(self._put(blocklist, *each) for each in [*listed, *unlisted]))
        there, not_there = asked[: len(listed)], asked[len(listed) :]
        now = self._clock()
        if not blocklist.domains and there[1].found.status != UNKNOWN:
            # Most lists have none for IPv6; what they list is proved all the same.
            health.ipv6 = there[1].found.status == FOUND
        said = [each for each in (*there, *not_there) if each.found.status == FOUND]
        for each in said:
            if each in not_there or any(is_refusal(blocklist.zone, code) for code in each.found.records):
                self._fall_sick(blocklist, health, against(blocklist, each))
                return
        # A list need not know what to say to IPv6.
        needed = [*not_there[:2], *(there[:1] if blocklist.tested else ())]
        unknown = [each.found.why for each in needed if each.found.status == UNKNOWN]
        if unknown:
            if any(why in NOT_THE_LIST for why in unknown):
                health.next_test = now + LOOK
            elif why := health.test_unanswered(now):
                self._fall_sick(blocklist, health, f"{why} ({unknown[0]})", silent=True)
            return
        if blocklist.tested and there[0].found.status != FOUND:
            why = f"does not list its test entry {there[0].shown} (RFC 5782); if it has none, name it in 'untested'"
            self._fall_sick(blocklist, health, why)
            return
        was = health.why
        if health.test_passed(now, int(self._wall() * 1000)):
            self.epoch += 1
            log.warning(
                "dnsbl-well: %s: passes its test and counts again; it was out because it %s",
                blocklist.public,
                was,
            )

    # --- health -----------------------------------------------------------------------------------------------------

    def _new(self) -> ListHealth:
        return ListHealth(self._clock(), int(self._wall() * 1000))

    def _of(self, blocklist: Blocklist) -> ListHealth:
        pair = self._health.get((blocklist.zone, blocklist.domains))
        # Not kept: a mail that began before a reload must not bring back a list that is no longer asked.
        return self._new() if pair is None else pair[1]

    def _fall_sick(
        self,
        blocklist: Blocklist,
        health: ListHealth,
        why: str,
        *,
        silent: bool = False,
        breaker: bool = False,
    ) -> None:
        if not why:
            return
        wall = int(self._wall() * 1000)
        if health.fall_sick(why, self._clock(), wall, silent=silent, breaker=breaker):
            self.epoch += 1
            ends = "for half an hour, and until it passes its test" if breaker else "until it passes its test"
            log.error("dnsbl-sick: %s: %s; it counts nothing %s", blocklist.public, why, ends)


def _sick(health: ListHealth) -> Listing:
    return Listing(why=f"sick: {health.why}", ttl=SICK_TTL)


def _kind(blocklist: Blocklist, name: str) -> str:
    if blocklist.domains:
        return "domain"
    return "v4" if name.count(".") == 3 else "v6"

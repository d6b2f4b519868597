"""How one blocklist does: whether what it says counts, and its figures. Time is handed in; it asks nobody.

A list is *well* until something speaks against it, and *sick* from then on until a test finds it well again. While it is sick
it is not asked, and counts nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from typing import Any

WELL, SICK = "well", "sick"

#: For how long a random name that is not listed vouches for what is listed, s.
PROOF = 10.0
#: Between two tests of a list that is well, of one that is sick, of one that does not answer, s.
TEST_EVERY, RETEST_EVERY, RETEST_SILENT = 1800.0, 60.0, 10.0
#: A list that the breaker took out is left out at least so long: it passes every test, s.
BREAKER_REST = 1800.0
#: A list that left so many look-ups in a row unanswered, over at least this time (s), does not answer.
MOST_SILENT, SILENT_FOR = 10, 5.0
#: A list that passes its tests and then leaves all look-ups unanswered again is tested half as often each time, down to this, s.
RETEST_MUTE = 1800.0
#: Tests in a row without an answer that make a list silent, and after which it is silent for long: it is asked less then, but
#: as it may have been the nameserver all the time, all is to be well within half a minute after that.
MOST_SILENT_TESTS, LONG_SILENT_TESTS, RETEST_LONG_SILENT = 3, 30, 25.0
#: The breaker looks at so many different clients, and takes a list out that lists more than this part of them, as no other
#: operator's list does: lists of one operator have failed together.
WINDOW, MOST_ALONE = 50, 0.9
#: Names of one client that are noted, as not to be believed for a day if the list was wrong.
MOST_NAMES = 100
#: Unless it listed so many already before: then it is the clients, not the list.
USUAL = 0.5
#: What a list said while it listed everything may be remembered on the way for a day; it is not believed so long, s.
TAINTED_FOR = 86_400.0
#: Listings of so many names since the last proof are known; a list that listed more meanwhile comes back a day later.
MOST_TAINTED = 10_000


class _Crowd:
    """The last different clients of one kind, for the breaker: a list may list all of IPv6, and few clients have it.

    All of an IPv4 /24 or an IPv6 /64 (RFC 4291 2.5.4) are one client, and all names below the same two last labels: who has
    one address or name there can have many, and must not be able to take out a list that lists him.
    """

    def __init__(self) -> None:
        #: By client: its names, and whether its operator alone listed it.
        self._window: OrderedDict[str, tuple[set[str], bool]] = OrderedDict()
        #: The part of those listed among the clients before, and how many these were.
        self._before, self._seen_before = 0.0, 0

    def tally(self, kind: str, name: str, alone: bool) -> int:
        """How many of the last clients this list's operator alone lists, if that is sudden; else 0."""
        window = self._window
        client = _client(kind, name)
        if client in window:
            names, _ = window[client]
            if len(names) < MOST_NAMES:
                names.add(name)
            return 0
        window[client] = {name}, alone
        if len(window) > WINDOW:
            _, (_, was_alone) = window.popitem(last=False)
            self._seen_before += 1
            self._before += (was_alone - self._before) / min(self._seen_before, 500)
        if len(window) < WINDOW:
            return 0
        alone_now = sum(each for _, each in window.values())
        usual = self._seen_before >= WINDOW and self._before >= USUAL
        # Without a past to compare with, nothing less than everybody is sudden.
        most = WINDOW * MOST_ALONE if self._seen_before >= WINDOW else WINDOW - 1
        return alone_now if alone_now > most and not usual else 0

    def names(self) -> list[str]:
        """Those of the last clients."""
        return [name for names, _ in self._window.values() for name in names]

    def clear(self) -> None:
        """Begin anew; what is usual is kept."""
        self._window.clear()


def _client(kind: str, name: str) -> str:
    """Addresses are reversed: of 7.2.0.192 it is 2.0.192."""
    if kind == "domain":
        return ".".join(name.rsplit(".", 2)[-2:])
    return name.split(".", 16)[-1] if kind == "v6" else name.partition(".")[2]


class ListHealth:
    """The state of one list."""

    def __init__(self, now: float, wall: int) -> None:
        """
        :param now: the monotonic clock, s.
        :param wall: the wall clock, ms.
        """
        self.state = WELL
        self.why = ""
        self.since = wall
        self.next_test = now
        #: When a test ended last.
        self._tested = now - RETEST_SILENT
        #: Not before then it may be well again.
        self._rest_until = now
        #: By kind of name (v4, v6, domain), when a random one was last asked and was not listed.
        self._proved: dict[str, float] = {}
        #: Names that were listed since before the last proof, and when.
        self._recent: OrderedDict[str, float] = OrderedDict()
        self._tainted: dict[str, float] = {}
        self._silent = self._silent_tests = 0
        self._silent_since = now
        #: How often in a row it was silent, well by a test, and silent again without an answer to a look-up in between.
        self._mute = 0
        #: By kind of name.
        self._crowds: dict[str, _Crowd] = {}
        # --- figures
        self.asked = self.hits = self.alone = self.errors = self.refusals = self.sicknesses = 0
        self.overlap: Counter[str] = Counter()
        self._timed = 0
        #: Means over the last some 64 that were waited for, and the slowest of them or so, s.
        self.latency = self.slowest = 0.0
        self.tested_at = 0
        #: Whether it has the test entry for IPv6; ``None``: nobody knows yet.
        self.ipv6: bool | None = None

    # --- proof ------------------------------------------------------------------------------------------------------

    def proof_left(self, kind: str, now: float) -> float:
        """For how long a listing of this kind may be believed, s; 0: a random name has to be asked first."""
        proved = self._proved.get(kind)
        return 0.0 if proved is None else max(0.0, proved + PROOF - now)

    def proved(self, kind: str, asked_at: float) -> None:
        """A random name that was asked at ``asked_at`` came back as not listed."""
        self._proved[kind] = asked_at

    def listed(self, name: str, now: float) -> None:
        """``name`` is said to be listed; noted, for the case that everything is."""
        self._recent[name] = now
        self._recent.move_to_end(name)
        oldest = now - 2 * PROOF
        while self._recent and (next(iter(self._recent.values())) < oldest):
            self._recent.popitem(last=False)
        if len(self._recent) > MOST_TAINTED:
            self._recent.popitem(last=False)

    def believes(self, name: str, now: float) -> bool:
        """Whether a listing of ``name`` counts: not when it may be from a time when everything was listed."""
        if not self._tainted:
            return True
        until = self._tainted.get(name)
        return until is None or now >= until

    def _taint(self, names: Collection[str], now: float) -> None:
        self._tainted = {name: until for name, until in self._tainted.items() if until > now}
        for name in names:
            if len(self._tainted) >= MOST_TAINTED:
                self._rest_until = now + TAINTED_FOR
                break
            self._tainted[name] = now + TAINTED_FOR

    # --- answers ----------------------------------------------------------------------------------------------------

    def answered(self, seconds: float | None) -> None:
        """It answered a look-up, whatever it said, in so many seconds; ``None``: it was remembered, nobody was asked."""
        self.asked += 1
        if seconds is not None:
            self._timed += 1
            self.latency += (seconds - self.latency) / min(self._timed, 64)
            self.slowest = max(self.slowest * 0.99, seconds)
            self._silent = self._mute = 0

    def unanswered(self, kind: str, now: float) -> str:
        """It did not answer a look-up; why it is sick of that, if it is."""
        self.asked += 1
        self.errors += 1
        if self._silent == 0:
            self._silent_since = now
        self._silent += 1
        if self._silent < MOST_SILENT or now - self._silent_since < SILENT_FOR:
            return ""
        # The tests need no answer to IPv6's: a list that has none must not be out for long for IPv4.
        self._mute += self.state == WELL and kind != "v6"
        return f"left {self._silent} look-ups in a row unanswered"

    def doubted(self, now: float) -> None:
        """It did not answer in time, which was short: a test, which has more, is to tell, if none has just now."""
        self.next_test = min(self.next_test, max(now, self._tested + RETEST_SILENT))

    def tally(self, kind: str, name: str, listed: bool, others: Collection[str], *, strangers: bool) -> str:
        """A client's look-ups are done; why the breaker takes this list out, if it does.

        :param others: lists that list it too.
        :param strangers: whether one of them is another operator's.
        """
        if listed:
            self.hits += 1
            self.alone += not others
            self.overlap.update(others)
        alone_now = self._crowds.setdefault(kind, _Crowd()).tally(kind, name, listed and not strangers)
        return (
            f"lists {alone_now} of the last {WINDOW} different clients, as no other operator's list does"
            if alone_now
            else ""
        )

    # --- tests ------------------------------------------------------------------------------------------------------

    def test_unanswered(self, now: float) -> str:
        """A test brought no answer; why it is sick of that, if it is."""
        self._silent_tests += 1
        # The tests tell by themselves when it answers again.
        self._mute = 0
        self._tested = now
        self.next_test = now + self._retest(silent=True)
        return (
            f"left {self._silent_tests} tests unanswered" if self._silent_tests >= MOST_SILENT_TESTS else ""
        )

    def test_anew(self, now: float) -> None:
        """Others are asked from now on: what was proved by the former ones is proved no longer."""
        self.next_test = now
        self._proved.clear()

    def test_passed(self, now: float, wall: int) -> bool:
        """The list is as it should be. Whether it is well again by that."""
        self.tested_at, self._tested = wall, now
        self._silent_tests = 0
        if self.state == WELL:
            self.next_test = now + TEST_EVERY
            return False
        if now < self._rest_until:
            self.next_test = min(self._rest_until, now + TEST_EVERY)
            return False
        self.state, self.why, self.since = WELL, "", wall
        self.next_test = now + TEST_EVERY
        self._silent = 0
        self._proved.clear()
        return True

    # --- sick -------------------------------------------------------------------------------------------------------

    def fall_sick(
        self, why: str, now: float, wall: int, *, silent: bool = False, breaker: bool = False
    ) -> bool:
        """Something speaks against the list. Whether it was well before."""
        self.next_test = now + self._retest(silent)
        if not silent:
            crowded = [name for crowd in self._crowds.values() for name in crowd.names()] if breaker else []
            self._taint([*self._recent, *crowded], now)
            self._recent.clear()
        if breaker:
            self._rest_until = self.next_test = now + BREAKER_REST
            for crowd in self._crowds.values():
                crowd.clear()
        first = self.state == WELL
        if first:
            self.state, self.since = SICK, wall
            self.sicknesses += 1
        self.why = why
        return first

    def _retest(self, silent: bool) -> float:
        if not silent:
            return RETEST_EVERY
        if self._mute:
            return min(RETEST_SILENT * (1 << min(self._mute - 1, 10)), RETEST_MUTE)
        return RETEST_SILENT if self._silent_tests < LONG_SILENT_TESTS else RETEST_LONG_SILENT

    def figures(self) -> dict[str, Any]:
        """What ``policyctl dnsbl list`` shows."""
        return {
            "why": self.why,
            "asked": self.asked,
            "hits": self.hits,
            "alone": self.alone,
            "overlap": dict(self.overlap.most_common(20)),
            "errors": self.errors,
            "refusals": self.refusals,
            "latency_ms": round(self.latency * 1000, 1),
            "slowest_ms": round(self.slowest * 1000, 1),
            "sicknesses": self.sicknesses,
            "tested_at": self.tested_at,
            "ipv6": self.ipv6,
        }

"""The resolver against a server that does whatever a server may do: one answer for each question, in time, and only true ones."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from policyd.dns import resolver as resolver_module
from policyd.dns.resolver import NO_NAMESERVER, Resolver
from policyd.lookup import FOUND, NODATA, NXDOMAIN, UNKNOWN, Found
from tests.dns.loops import LOOPS, at_once, run
from tests.dns.server import JUNK_ADDRESS, DnsServer

#: Long enough for a busy machine; who waits for it has lost.
PATIENCE = 30.0
#: A resolver that gives up soon, for tests in which nobody answers.
SHORT = 0.5

Test = Callable[[DnsServer], Awaitable[None]]


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer() as one:
        yield one


@pytest.fixture(params=list(LOOPS))
def go(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs ``test(resolver)`` on either loop and closes the resolver; every message of either loop is an error."""

    def go(test: Callable[[Resolver], Any], *nameservers: str, timeout: float = PATIENCE, **more: Any) -> Any:
        async def main() -> Any:
            wrong: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: wrong.append(context))
            resolver = Resolver(nameservers, timeout, **more)
            try:
                return await test(resolver)
            finally:
                await resolver.close()
                await asyncio.sleep(0)
                assert not wrong
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return run(request.param, main)

    return go


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


async def until(condition: Callable[[], bool]) -> None:
    """Poll: what is waited for happens in the background."""
    end = soon()
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.005)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- what it says --------------------------------------------------------------------------------------------------------


def test_each_type_comes_in_the_form_that_checks_expect(server: DnsServer, go: Any) -> None:
    """Addresses are text, TXT octets with its strings joined, names lower case without the last dot."""
    server.add("all.example", "A", "127.0.0.2", "127.0.0.4")
    server.add("all.example", "AAAA", "2001:DB8::1")
    server.add("all.example", "TXT", ["v=spf1 ", "-all"], b"\xff\x00", ttl=90)
    server.add("all.example", "MX", (10, "MX.Example"), (0, "."))
    server.add("all.example", "NS", "ns.example")
    server.add("all.example", "SPF", "v=spf1")
    server.add("1.2.0.192.in-addr.arpa", "PTR", "Host.Example")

    async def test(resolver: Resolver) -> None:
        async def ask(rdtype: str, name: str = "all.example") -> Any:
            found = await resolver.ask(name, rdtype, soon())
            assert found.status == FOUND
            assert found.ttl == (90 if rdtype == "TXT" else 300)
            return sorted(found.records)

        assert await ask("A") == ["127.0.0.2", "127.0.0.4"]
        assert await ask("AAAA") == ["2001:db8::1"]
        assert await ask("TXT") == [b"v=spf1 -all", b"\xff\x00"]
        assert await ask("MX") == [(0, "."), (10, "mx.example")]
        assert await ask("NS") == ["ns.example"]
        assert await ask("SPF") == [b"v=spf1"]
        assert await ask("PTR", "1.2.0.192.in-addr.arpa") == ["host.example"]

    go(test, server.nameserver)


def test_no_such_name_and_no_such_type_are_two_answers(server: DnsServer, go: Any) -> None:
    """NXDOMAIN and NODATA (RFC 2308 2) mean different things to SPF."""
    server.add("a.b.example", "A", "192.0.2.1")

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.b.example", "MX", soon())).status == NODATA
        assert (await resolver.ask("b.example", "A", soon())).status == NODATA
        assert (await resolver.ask("c.example", "A", soon())).status == NXDOMAIN

    go(test, server.nameserver)


def test_one_name_has_many_spellings(server: DnsServer, go: Any) -> None:
    """Case, a last dot and U-labels make no second name: one question, one memory."""
    server.add("xn--bcher-kva.example", "A", "192.0.2.1")

    async def test(resolver: Resolver) -> None:
        for name in ("xn--bcher-kva.example", "XN--BCHER-kva.Example.", "bücher.example", "BÜCHER。example"):
            assert (await resolver.ask(name, "A", soon())).records == ("192.0.2.1",)
        assert server.count() == 1

    go(test, server.nameserver)


@pytest.mark.parametrize(
    "name",
    [
        "", "..", ".example", "a..example", "a" * 64 + ".example", "a." * 127 + "aa", "a" * 5000, "é" * 300, "\udce9.example",
        "a\u3002.example", "xn--é.example", "\x00" * 64, "é" * 60 + ".example",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_name_is_not_asked(name: str, server: DnsServer, go: Any) -> None:
    """A hostile sender's domain costs no question and raises nothing."""

    async def test(resolver: Resolver) -> None:
        assert at_once(resolver.ask(name, "A", soon())) == Found(UNKNOWN, why="bad name")
        assert server.count() == 0

    go(test, server.nameserver)


@pytest.mark.parametrize(
    "name", [r"a\.b.example", r"\999.example", "a b.example", "\x00.example", "%n.example", "."]
)
def test_odd_octets_mean_themselves(name: str, server: DnsServer, go: Any) -> None:
    """The DNS takes any octet (RFC 2181 11); nothing is an escape."""

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask(name, "A", soon())).status in (NODATA, NXDOMAIN)
        assert server.count() == 1

    go(test, server.nameserver)


def test_a_type_that_nobody_needs_is_unknown(server: DnsServer, go: Any) -> None:
    """It never raises, whatever it is asked."""

    async def test(resolver: Resolver) -> None:
        for rdtype in ("", "ANY", "AXFR", "no such type"):
            assert at_once(resolver.ask("a.example", rdtype, soon())).status == UNKNOWN

    go(test, server.nameserver)


def test_search_domains_are_never_tried(server: DnsServer, go: Any) -> None:
    """A name is asked as it is, also one without a dot: no other question follows."""

    async def test(resolver: Resolver) -> None:
        await resolver.ask("localpart", "A", soon())
        assert set(server.queries) == {("localpart", "A")}

    go(test, server.nameserver)


# --- once, and remembered ------------------------------------------------------------------------------------------------


def test_a_remembered_answer_comes_without_waiting(server: DnsServer, go: Any) -> None:
    """The hot path: a request with six warm lists costs no task and no round of the loop, even when there is no time."""
    server.add("a.example", "A", "127.0.0.2")

    async def test(resolver: Resolver) -> None:
        await resolver.ask("a.example", "A", soon())
        assert at_once(resolver.ask("a.example", "A", 0.0)).records == ("127.0.0.2",)
        assert at_once(resolver.ask("A.example.", "A", 0.0)).records == ("127.0.0.2",)
        assert server.count() == 1

    go(test, server.nameserver)


def test_who_asks_the_same_waits_for_the_same(server: DnsServer, go: Any) -> None:
    """A hundred requests for one name are one question."""
    server.add("a.example", "A", "127.0.0.2")
    server.behave(delay=0.05)

    async def test(resolver: Resolver) -> None:
        found = await asyncio.gather(*(resolver.ask("a.example", "A", soon()) for _ in range(100)))
        assert {each.records for each in found} == {("127.0.0.2",)}
        assert server.count("a.example") == 1
        assert resolver.health()[0].figures["joined"] == 99

    go(test, server.nameserver)


def test_who_gives_up_leaves_the_question_to_the_others(server: DnsServer, go: Any) -> None:
    """A deadline or a cancelled request ends one's own waiting; the others get their answer, and the next too."""
    server.add("a.example", "A", "127.0.0.2")
    server.behave(silent=True)

    async def test(resolver: Resolver) -> None:
        patient = asyncio.ensure_future(resolver.ask("a.example", "A", soon()))
        cancelled = asyncio.ensure_future(resolver.ask("a.example", "A", soon()))
        hurried = asyncio.ensure_future(resolver.ask("a.example", "A", soon(0.01)))
        assert await hurried == Found(UNKNOWN, why="timeout")
        cancelled.cancel()
        await until(cancelled.done)
        assert not patient.done()
        server.behave()
        assert (await patient).records == ("127.0.0.2",)
        assert at_once(resolver.ask("a.example", "A", 0.0)).records == ("127.0.0.2",)

    go(test, server.nameserver, timeout=2.0)


def test_time_that_is_over_asks_nobody(server: DnsServer, go: Any) -> None:
    """What cannot be answered in time costs no question; without a deadline the look-up's own time holds."""

    async def test(resolver: Resolver) -> None:
        assert at_once(resolver.ask("a.example", "A", soon(-1))) == Found(UNKNOWN, why="timeout")
        assert server.count() == 0
        server.behave("a.example", silent=True)
        assert await resolver.ask("a.example", "A", math.inf) == Found(UNKNOWN, why="timeout")

    go(test, server.nameserver, timeout=SHORT)


@pytest.mark.parametrize(
    ("ttl", "held"), [(0, 60), (59, 60), (61, 61), (3599, 3599), (86400, 3600), (2**31 - 1, 3600)]
)
def test_an_answer_is_remembered_for_its_ttl_within_bounds(
    ttl: int, held: int, server: DnsServer, go: Any
) -> None:
    """60 s to 1 h; what is left of it is told, so that what is made of the answer ends with it."""
    server.add("a.example", "A", "127.0.0.2", ttl=ttl)
    clock = Clock()

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", math.inf)).ttl == held
        clock.now += held - 0.5
        assert at_once(resolver.ask("a.example", "A", math.inf)).ttl == 1
        clock.now += 0.5
        await resolver.ask("a.example", "A", math.inf)
        assert server.count() == 2

    go(test, server.nameserver, clock=clock)


@pytest.mark.parametrize(("minimum", "held"), [(-1, 60), (5, 60), (900, 900), (86400, 3600)])
def test_that_there_is_nothing_is_remembered_too(minimum: int, held: int, server: DnsServer, go: Any) -> None:
    """For the last field of the SOA record (RFC 2308 5), within the same bounds; a minute without one."""
    server.minimum = minimum
    server.add("mx.example", "MX", (10, "a.example"))
    clock = Clock()

    async def test(resolver: Resolver) -> None:
        for name in ("nx.example", "mx.example"):
            server.forget()
            assert (await resolver.ask(name, "A", math.inf)).ttl == held
            clock.now += held - 0.5
            assert at_once(resolver.ask(name, "A", math.inf)).ttl == 1
            clock.now += 0.5
            await resolver.ask(name, "A", math.inf)
            assert server.count() == 2

    go(test, server.nameserver, clock=clock)


def test_what_nobody_could_say_is_asked_again_soon(server: DnsServer, go: Any) -> None:
    """ "Unknown" is remembered for two seconds: it spares the next requests, and outlives no trouble."""
    server.add("a.example", "A", "127.0.0.2")
    server.behave(rcode="SERVFAIL")
    clock = Clock()

    async def test(resolver: Resolver) -> None:
        assert await resolver.ask("a.example", "A", math.inf) == Found(UNKNOWN, why="servfail")
        server.behave()
        clock.now += 1.9
        assert at_once(resolver.ask("a.example", "A", math.inf)).status == UNKNOWN
        clock.now += 0.1
        assert (await resolver.ask("a.example", "A", math.inf)).status == FOUND

    go(test, server.nameserver, clock=clock)


def test_one_answer_can_be_forgotten(server: DnsServer, go: Any) -> None:
    """Whoever must know how it is now does not get what was an hour ago."""
    server.add("a.example", "A", "127.0.0.2")

    async def test(resolver: Resolver) -> None:
        await resolver.ask("a.example", "A", soon())
        server.remove("a.example")
        resolver.forget("a.example", "A")
        resolver.forget("never.example", "A")
        assert (await resolver.ask("a.example", "A", soon())).status == NXDOMAIN

    go(test, server.nameserver)


# --- true answers only ---------------------------------------------------------------------------------------------------


def test_wrong_datagrams_are_passed_over(server: DnsServer, go: Any) -> None:
    """No DNS, cut off, a wrong id, another question, another source: the wait goes on, and the true answer comes."""
    server.add("a.example", "A", "127.0.0.2")
    server.behave(junk=20)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", soon())).records == ("127.0.0.2",)
        assert (await resolver.ask("nx.example", "A", soon())).status == NXDOMAIN
        assert resolver.health()[1].state == "up"

    go(test, server.nameserver)


def test_lies_alone_are_unknown(server: DnsServer, go: Any) -> None:
    """Who only gets wrong answers knows nothing: what they claim is believed by nobody."""
    server.behave(lie=True)

    async def test(resolver: Resolver) -> None:
        found = await resolver.ask("a.example", "A", soon())
        assert found.status == UNKNOWN
        assert JUNK_ADDRESS not in found.records

    go(test, server.nameserver, timeout=SHORT)


def test_nobody_can_guess_the_next_question(server: DnsServer, go: Any) -> None:
    """Each question comes from a port of its own with an id of its own (RFC 5452 9.2)."""

    async def test(resolver: Resolver) -> None:
        server.behave(delay=0.05)
        await asyncio.gather(*(resolver.ask(f"{n}.example", "A", soon()) for n in range(200)))
        assert len({port for _, port in server.sources}) == 200
        assert len(set(server.ids)) > 180

    go(test, server.nameserver)


def test_a_cut_off_answer_is_asked_for_over_tcp(server: DnsServer, go: Any) -> None:
    """Long SPF and TXT records come whole."""
    text = "v=spf1 " + "ip4:192.0.2.1 " * 200 + "-all"
    server.add("long.example", "TXT", text)
    server.add("a.example", "A", "127.0.0.2")
    server.behave("a.example", truncate=True)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("long.example", "TXT", soon())).records == (text.encode(),)
        assert (await resolver.ask("a.example", "A", soon())).records == ("127.0.0.2",)
        assert server.tcp_queries == {("long.example", "TXT"): 1, ("a.example", "A"): 1}

    go(test, server.nameserver)


def test_what_fits_into_a_datagram_needs_no_tcp(server: DnsServer, go: Any) -> None:
    """Up to 1232 octets come over UDP (EDNS, RFC 6891), which most SPF records need."""
    server.add("a.example", "TXT", "v=spf1 " + "ip4:192.0.2.1 " * 70)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "TXT", soon())).status == FOUND
        assert not server.tcp_queries

    go(test, server.nameserver)


@pytest.mark.parametrize("tcp", ["refuse", "silent"])
def test_cut_off_and_no_tcp_is_unknown(tcp: str, server: DnsServer, go: Any) -> None:
    """Half an answer is none."""
    server.add("a.example", "A", "127.0.0.2")
    server.behave("a.example", truncate=True, tcp=tcp)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", soon())).status == UNKNOWN

    go(test, server.nameserver, timeout=SHORT)


def test_a_huge_answer_is_not_read(server: DnsServer, go: Any) -> None:
    """Reading it would hold everybody up."""
    server.add("many.example", "A", *(f"10.0.{n // 250}.{n % 250}" for n in range(500)))
    server.add("long.example", "TXT", "x" * 40_000)

    async def test(resolver: Resolver) -> None:
        assert await resolver.ask("many.example", "A", soon()) == Found(UNKNOWN, why="answer too large")
        assert await resolver.ask("long.example", "TXT", soon()) == Found(UNKNOWN, why="answer too large")

    go(test, server.nameserver)


def test_a_server_without_edns_is_asked_without(server: DnsServer, go: Any) -> None:
    """FORMERR to what a server does not know is no reason to know nothing."""
    server.add("a.example", "A", "127.0.0.2")
    server.behave(no_edns=True)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", soon())).records == ("127.0.0.2",)
        server.behave(rcode="FORMERR")
        assert await resolver.ask("b.example", "A", soon()) == Found(UNKNOWN, why="formerr")

    go(test, server.nameserver)


def test_cnames_are_followed(server: DnsServer, go: Any) -> None:
    """Also where the nameserver leaves that to us; the shortest TTL on the way holds."""
    server.add("a.example", "CNAME", "b.example", ttl=120)
    server.add("b.example", "CNAME", "c.example", ttl=90)
    server.add("c.example", "TXT", "here")
    server.add("gone.example", "CNAME", "nx.example")
    for chase in (True, False):
        server.behave(chase=chase)

        async def test(resolver: Resolver) -> None:
            found = await resolver.ask("a.example", "TXT", soon())
            assert found == Found(FOUND, (b"here",), 90)
            assert (await resolver.ask("gone.example", "A", soon())).status == NXDOMAIN
            assert (await resolver.ask("a.example", "A", soon())).status == NODATA

        go(test, server.nameserver)


def test_a_cname_to_what_is_no_name_is_unknown(server: DnsServer, go: Any) -> None:
    """A label of odd octets is longer in text than a label may be."""
    server.add("a.example", "CNAME", r"\255" * 40 + ".example")
    server.behave(chase=False)

    async def test(resolver: Resolver) -> None:
        assert await resolver.ask("a.example", "A", soon()) == Found(UNKNOWN, why="bad name")

    go(test, server.nameserver)


def test_cnames_without_end_are_unknown(server: DnsServer, go: Any) -> None:
    """A loop costs a bounded number of questions and says nothing."""
    server.add("a.example", "CNAME", "b.example")
    server.add("b.example", "CNAME", "a.example")
    for n in range(50):
        server.add(f"{n}.long.example", "CNAME", f"{n + 1}.long.example")

    async def test(resolver: Resolver) -> None:
        for chase in (True, False):
            server.behave(chase=chase)
            for name in ("a.example", "0.long.example"):
                server.forget()
                assert (await resolver.ask(name, "A" if chase else "MX", soon())).status == UNKNOWN
                assert server.count() <= 12

    go(test, server.nameserver)


# --- nameservers in trouble ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP"])
def test_who_fails_makes_room_for_the_next(rcode: str, server: DnsServer, go: Any) -> None:
    """The next nameserver is asked at once, and an error is nobody's "no such name"."""
    server.behave(rcode=rcode)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", soon())).records == ("127.0.0.2",)
        second.behave(rcode=rcode)
        assert await resolver.ask("b.example", "A", soon()) == Found(UNKNOWN, why=rcode.lower())

    with DnsServer() as second:
        second.add("a.example", "A", "127.0.0.2")
        go(test, server.nameserver, second.nameserver)


def test_a_silent_nameserver_makes_room_for_the_next(server: DnsServer, go: Any) -> None:
    """Its silence costs a part of the time, and soon none: it is left out until it answers again."""
    server.behave(silent=True)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", soon())).records == ("127.0.0.2",)
        await until(lambda: resolver.health()[1].state == "down")
        asked = server.count("b.example")
        assert (await resolver.ask("b.example", "A", soon())).status == NXDOMAIN
        assert server.count("b.example") == asked == 0
        assert resolver.health()[0].state == "up"
        server.behave()
        await until(lambda: resolver.health()[1].state == "up")
        await resolver.ask("c.example", "A", soon())
        assert server.count("c.example") == 1

    with DnsServer() as second:
        second.add("a.example", "A", "127.0.0.2")
        go(test, server.nameserver, second.nameserver, timeout=1.0)


@pytest.mark.parametrize("trouble", [{"silent": True}, {"delay": 5.0}, {"lie": True}])
def test_when_nobody_answers_nobody_waits(
    trouble: dict[str, Any], server: DnsServer, go: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Noticed, told, then "unknown" at once; found again by itself. What is remembered goes on to hold."""
    server.add("a.example", "A", "127.0.0.2")

    async def test(resolver: Resolver) -> None:
        await resolver.ask("a.example", "A", soon())
        server.behave(**trouble)
        assert (await resolver.ask("b.example", "A", soon())).status == UNKNOWN
        await until(lambda: resolver.health()[0].state == "down")
        for n in range(100):
            assert at_once(resolver.ask(f"{n}.c.example", "A", soon())) is NO_NAMESERVER
        assert server.count_under("c.example") == 0
        assert at_once(resolver.ask("a.example", "A", soon())).status == FOUND
        server.behave()
        await until(lambda: resolver.health()[0].state == "up")
        assert (await resolver.ask("d.example", "A", soon())).status == NXDOMAIN
        said = [record.getMessage().partition(" ")[0] for record in caplog.records]
        assert said == ["nameserver-down:", "dns-down:", "nameserver-up:", "dns-up:"]

    go(test, server.nameserver, timeout=SHORT)


def test_who_waits_when_the_last_nameserver_goes_down_is_told(server: DnsServer, go: Any) -> None:
    """They do not wait for their own time to end."""
    server.behave(silent=True)

    async def test(resolver: Resolver) -> None:
        first = asyncio.ensure_future(resolver.ask("a.example", "A", soon()))
        await until(lambda: server.count("localhost") == 3)
        late = [asyncio.ensure_future(resolver.ask(f"{n}.example", "A", soon())) for n in range(5)]
        assert (await first).why == "timeout"
        assert {(await each) for each in late} == {NO_NAMESERVER}

    go(test, server.nameserver, timeout=0.8)


def test_who_has_not_had_a_turn_when_the_last_nameserver_goes_down_is_told(
    server: DnsServer, go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions that wait for others to end are not put to a nameserver that is known not to answer."""
    monkeypatch.setattr(resolver_module, "MOST_UNDER_WAY", 10)
    server.behave(silent=True)

    async def test(resolver: Resolver) -> None:
        found = await asyncio.gather(*(resolver.ask(f"{n}.a.example", "A", soon()) for n in range(40)))
        assert [each.why for each in found].count("no nameserver answers") >= 20
        server.behave()
        await until(lambda: resolver.health()[0].state == "up")
        assert (await resolver.ask("b.example", "A", soon())).status == NXDOMAIN
        assert server.count("39.a.example") == 0

    go(test, server.nameserver, timeout=SHORT)


def test_a_question_that_others_wait_for_goes_before_all_that_wait_in_line(
    server: DnsServer, go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst fills the line; the question that is to be first is put next, not last."""
    monkeypatch.setattr(resolver_module, "MOST_UNDER_WAY", 10)
    server.behave(delay=0.02)

    async def test(resolver: Resolver) -> None:
        burst = [asyncio.ensure_future(resolver.ask(f"{n}.a.example", "A", soon())) for n in range(100)]
        await asyncio.sleep(0)
        assert (await resolver.ask("proof.example", "A", soon(), first=True)).status == NXDOMAIN
        assert sum(each.done() for each in burst) < 50
        assert {each.status for each in await asyncio.gather(*burst)} == {NXDOMAIN}

    go(test, server.nameserver)


def test_a_nameserver_that_is_not_there(server: DnsServer, go: Any) -> None:
    """The system says so at once: "unknown" without waiting for the timeout, and found again when it listens."""
    server.stop()

    async def test(resolver: Resolver) -> None:
        assert await resolver.ask("a.example", "A", soon()) == Found(UNKNOWN, why="nameserver unreachable")
        server.start()
        assert (await resolver.ask("b.example", "A", soon())).status == NXDOMAIN

    go(test, server.nameserver)


def test_one_slow_zone_is_not_taken_for_a_silent_nameserver(server: DnsServer, go: Any) -> None:
    """A hostile zone that never answers must not switch off the blocklists."""
    server.behave("slow.example", silent=True)

    async def test(resolver: Resolver) -> None:
        found = await asyncio.gather(*(resolver.ask(f"{n}.slow.example", "A", soon()) for n in range(50)))
        assert {each.why for each in found} == {"timeout"}
        assert resolver.health()[1].state == "up"
        assert (await resolver.ask("a.example", "A", soon())).status == NXDOMAIN

    go(test, server.nameserver, timeout=SHORT)


def test_a_late_answer_of_the_first_counts_while_the_second_is_asked(server: DnsServer, go: Any) -> None:
    """Asking another does not stop listening to the first."""
    server.add("a.example", "A", "127.0.0.2")
    server.behave("a.example", delay=0.5)

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", soon())).records == ("127.0.0.2",)

    with DnsServer() as second:
        second.behave("a.example", silent=True)
        go(test, server.nameserver, second.nameserver, timeout=1.2)
        assert second.count("a.example")


def test_a_lost_datagram_is_sent_again(server: DnsServer, go: Any) -> None:
    """UDP may lose any; the look-up's time is long enough for a second one."""
    server.behave("a.example", silent=True)

    async def test(resolver: Resolver) -> None:
        asked = asyncio.ensure_future(resolver.ask("a.example", "A", soon()))
        await until(lambda: server.count("a.example") == 1)
        server.behave("a.example")
        assert (await asked).status == NXDOMAIN
        assert server.count("a.example") == 2

    go(test, server.nameserver, timeout=2.0)


def test_nameservers_are_reached_over_ipv6(go: Any) -> None:
    """UDP and TCP alike."""

    async def test(resolver: Resolver) -> None:
        assert (await resolver.ask("a.example", "A", soon())).records == ("127.0.0.2",)
        server.behave(truncate=True)
        assert (await resolver.ask("b.example", "A", soon())).status == NXDOMAIN

    with DnsServer("::1") as server:
        server.add("a.example", "A", "127.0.0.2")
        assert server.nameserver.startswith("[::1]:")
        go(test, server.nameserver)


def test_a_network_that_is_not_there_is_noticed(
    server: DnsServer, go: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing can be sent: "unknown" at once, alarmed with the system's reason, and found again."""

    async def test(resolver: Resolver) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "connect", no_route)
            assert await resolver.ask("a.example", "A", soon()) == Found(
                UNKNOWN, why="nameserver unreachable"
            )
            await until(lambda: resolver.health()[0].state == "down")
            assert f"{server.nameserver} does not answer: Network is unreachable" in caplog.text
        await until(lambda: resolver.health()[0].state == "up")
        assert (await resolver.ask("b.example", "A", soon())).status == NXDOMAIN
        # Silence has no reason of the system's.
        server.behave(silent=True)
        assert (await resolver.ask("c.example", "A", soon())).status == UNKNOWN
        await until(lambda: resolver.health()[0].state == "down")
        assert f"{server.nameserver} does not answer\n" in caplog.text

    def no_route(*arguments: Any) -> None:
        raise OSError(101, "Network is unreachable")

    go(test, server.nameserver, timeout=SHORT)


def test_a_defect_of_ours_is_unknown(
    server: DnsServer, go: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and whoever waits gets an answer."""

    def fail(ttl: int | None) -> int:
        raise RuntimeError("defect")

    monkeypatch.setattr(resolver_module, "clamp", fail)

    async def test(resolver: Resolver) -> None:
        assert await resolver.ask("a.example", "A", soon()) == Found(UNKNOWN, why="defect")
        assert "a look-up of type A failed" in caplog.text

    go(test, server.nameserver)


# --- bounds --------------------------------------------------------------------------------------------------------------


def test_a_burst_loses_nothing(server: DnsServer, go: Any) -> None:
    """A thousand look-ups at once, each answered after 20 ms: all are answered."""
    server.add("*.l.example", "A", "127.0.0.2")
    server.behave(delay=0.02)

    async def test(resolver: Resolver) -> None:
        found = await asyncio.gather(*(resolver.ask(f"{n}.l.example", "A", soon()) for n in range(1000)))
        assert {each.status for each in found} == {FOUND}

    go(test, server.nameserver, timeout=10.0)


def test_what_is_too_much_at_once_waits(server: DnsServer, go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions under way are bounded; the others have their turn, or are unknown when there are too many or no time."""
    monkeypatch.setattr(resolver_module, "MOST_UNDER_WAY", 10)
    monkeypatch.setattr(resolver_module, "MOST_WAITING", 80)
    server.behave("slow.example", delay=0.3)

    async def test(resolver: Resolver) -> None:
        found = await asyncio.gather(*(resolver.ask(f"{n}.example", "A", soon()) for n in range(100)))
        assert [each.status for each in found].count(NXDOMAIN) == 90
        assert {each.why for each in found if each.status == UNKNOWN} == {"too many questions"}
        slow = [asyncio.ensure_future(resolver.ask(f"{n}.slow.example", "A", soon())) for n in range(10)]
        hurried = asyncio.ensure_future(resolver.ask("hurried.example", "A", soon(0.01)))
        assert await hurried == Found(UNKNOWN, why="timeout")
        assert {(await each).status for each in slow} == {NXDOMAIN}
        # Nobody waits for it any more: it is not asked at all.
        assert (await resolver.ask("next.example", "A", soon())).status == NXDOMAIN
        assert server.count("hurried.example") == 0

    go(test, server.nameserver)


@pytest.mark.parametrize(
    ("limit", "most"), [(-1, 1000), (1_000_000, 1000), (4096, 512), (1024, 128), (20, 10)]
)
def test_descriptors_are_left_for_postfix(
    limit: int, most: int, go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of questions must not take what new connections need, where the process may have few."""
    monkeypatch.setattr(resolver_module.resource, "getrlimit", lambda which: (limit, limit))

    async def test(resolver: Resolver) -> None:
        assert resolver.health()[0].figures["most_under_way"] == most

    go(test, "127.0.0.1", "127.0.0.2")


def test_the_memory_is_bounded(server: DnsServer, go: Any) -> None:
    """A flood of random names leaves no more behind than was configured."""
    server.add("*.example", "A", "127.0.0.2")

    async def test(resolver: Resolver) -> None:
        for start in range(0, 1000, 100):
            await asyncio.gather(*(resolver.ask(f"{start + n}.example", "A", soon()) for n in range(100)))
        figures = resolver.health()[0].figures
        assert 0 < figures["remembered_bytes"] <= 100_000
        assert 100 < figures["remembered"] < 250
        # What is newest is still known.
        assert at_once(resolver.ask("999.example", "A", 0.0)).status == FOUND

    go(test, server.nameserver, cache_size=100_000)


def test_no_descriptor_stays_open(server: DnsServer, go: Any) -> None:
    """Whatever ends a question, its sockets end with it."""
    import os

    def sockets() -> int:
        return sum(
            os.path.realpath(f"/proc/self/fd/{fd}").partition("/socket:")[1] != ""
            for fd in os.listdir("/proc/self/fd")
        )

    async def test(resolver: Resolver) -> None:
        before = sockets()
        for behaviour in (
            {},
            {"silent": True},
            {"rcode": "REFUSED"},
            {"truncate": True, "tcp": "silent"},
            {"junk": 3},
        ):
            server.behave("b.example", **behaviour)
            await asyncio.gather(
                *(resolver.ask(f"{n}.{len(str(behaviour))}.b.example", "A", soon()) for n in range(20))
            )
        await until(lambda: sockets() <= before)

    go(test, server.nameserver, timeout=SHORT)


# --- life ----------------------------------------------------------------------------------------------------------------


def test_closing_answers_those_who_wait(server: DnsServer, go: Any) -> None:
    """Nobody is left waiting, and nothing is asked any more."""
    server.behave(silent=True)

    async def test(resolver: Resolver) -> None:
        waiting = [asyncio.ensure_future(resolver.ask(f"{n}.example", "A", soon())) for n in range(20)]
        await until(lambda: server.count() >= 20)
        await resolver.close()
        assert {(await each).why for each in waiting} == {"resolver closed"}
        assert at_once(resolver.ask("late.example", "A", soon())).status == UNKNOWN
        await resolver.close()

    go(test, server.nameserver)


def test_a_reload_keeps_what_is_known_while_the_same_are_asked(server: DnsServer, go: Any) -> None:
    """Other nameservers may say otherwise: then nothing is kept. A bad one changes nothing."""
    server.add("a.example", "A", "127.0.0.2")

    async def test(resolver: Resolver) -> None:
        await resolver.ask("a.example", "A", soon())
        before = resolver.health()[1].figures
        resolver.configure([server.nameserver], PATIENCE, 1_000_000)
        assert resolver.health()[1].figures == before
        resolver.configure([server.nameserver], 5.0, 1_000_000)
        assert at_once(resolver.ask("a.example", "A", 0.0)).status == FOUND
        with pytest.raises(ValueError, match=r"'ns\.example' is no nameserver"):
            resolver.configure(["ns.example"], 5.0, 1_000_000)
        assert at_once(resolver.ask("a.example", "A", 0.0)).status == FOUND
        server.behave("late.example", delay=0.1)
        under_way = asyncio.ensure_future(resolver.ask("late.example", "A", soon()))
        await until(lambda: server.count("late.example") == 1)
        second.add("late.example", "A", "127.0.0.3")
        resolver.configure([second.nameserver], 5.0, 1_000_000)
        assert (await resolver.ask("a.example", "A", soon())).status == NXDOMAIN
        # What is under way ends as it began, but nobody else is told what the former nameserver says.
        assert (await resolver.ask("late.example", "A", soon())).status == FOUND
        assert (await under_way).status == NXDOMAIN
        assert (await resolver.ask("late.example", "A", soon())).status == FOUND
        assert [each.subject for each in resolver.health()] == ["resolver", f"nameserver/{second.nameserver}"]

    with DnsServer() as second:
        go(test, server.nameserver)


def test_figures_are_kept_for_each_nameserver(server: DnsServer, go: Any) -> None:
    """What the admin looks at when mail is slow: questions, answers, failures, silences, latency."""
    server.behave("bad.example", rcode="SERVFAIL")
    server.behave("slow.example", silent=True)

    async def test(resolver: Resolver) -> None:
        for name in ("a.example", "a.example", "bad.example", "slow.example"):
            await resolver.ask(name, "A", soon())
        whole, one = resolver.health()
        assert (whole.subject, whole.state) == ("resolver", "up")
        assert (whole.figures["hits"], whole.figures["misses"], whole.figures["under_way"]) == (1, 3, 0)
        assert (one.subject, one.state, one.since) == (f"nameserver/{server.nameserver}", "up", 1_000_000)
        assert one.figures["failures"] == 1
        assert one.figures["timeouts"] == 1
        assert one.figures["questions"] >= one.figures["answers"] >= 2
        assert one.figures["latency_ms"] > 0

    go(test, server.nameserver, timeout=1.0, wall=Clock())


def test_no_nameserver_named_means_the_systems(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without [dns] those of /etc/resolv.conf are asked."""
    monkeypatch.setattr(resolver_module, "system_nameservers", lambda: ("192.0.2.53:53", "[2001:db8::53]:53"))

    async def test(resolver: Resolver) -> None:
        assert [each.subject for each in resolver.health()[1:]] == [
            "nameserver/192.0.2.53:53",
            "nameserver/[2001:db8::53]:53",
        ]

    go(test)


def test_no_descriptors_left_is_unknown(server: DnsServer, go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process at its limit answers mail without the DNS, and asks again when it can."""

    async def test(resolver: Resolver) -> None:
        def none_left(*args: Any, **more: Any) -> socket.socket:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("policyd.dns.upstream.socket.socket", none_left)
            assert (await resolver.ask("a.example", "A", soon())).status == UNKNOWN
        assert (await resolver.ask("b.example", "A", soon())).status == NXDOMAIN

    go(test, server.nameserver)

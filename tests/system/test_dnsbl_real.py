"""Real lists behind a real resolver: rbldnsd behind unbound, and the check before them.

The lists that listed the world are those of the field's history, with what each answered on its last days.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from policyd.checks import Context, dnsbl
from policyd.dns.resolver import Resolver
from policyd.dns.zones import Zones
from policyd.dnsbl_sites import sites
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.steering import Steering
from tests.dns.loops import LOOPS, run
from tests.fakes import NOW, SITE, rcpt
from tests.system.nameservers import RealServer
from tests.system.rbldnsd import Rbldnsd

# Everything goes to rbldnsd, which knows its own zones alone: no question can leave this machine.
UNBOUND = """\
server:
    interface: 127.0.0.1@{port}
    access-control: 127.0.0.0/8 allow
    do-daemonize: no
    do-not-query-localhost: no
    do-ip6: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: "{directory}/unbound.pid"
    use-syslog: no
    logfile: ""
    num-threads: 1
    module-config: "iterator"
    qname-minimisation: no
    cache-max-ttl: 0
    cache-max-negative-ttl: 0
remote-control:
    control-enable: no
"""
STUB = 'stub-zone:\n    name: "{zone}"\n    stub-addr: 127.0.0.1@{port}\n'

SOUND = "127.0.0.2\n192.0.2.66\n"
SOUND_DOMAINS = ":127.0.0.2:\ntest\nbad.example.net\n"
WORLD = "0.0.0.0/1 :127.0.0.2:\n128.0.0.0/1 :127.0.0.2:\n"
PARKED = "0.0.0.0/1 :192.0.2.80:\n128.0.0.0/1 :192.0.2.80:\n"
DOMAINS_WORLD = ":127.0.0.2:\n" + "".join(
    f"{top}\n.{top}\n" for top in ("test", "invalid", "com", "net", "org")
)
REFUSES = "0.0.0.0/0 :127.255.255.{}:\n"

#: Year, list, and the type and lines of its data on that day.
HISTORY = [
    ("2003", "relays.osirusoft.com", "ip4trie", WORLD),
    ("2008", "relays.ordb.org", "ip4trie", WORLD),
    ("2009", "dead-since-2006.example", "ip4trie", WORLD),
    ("2015", "dnsbl.ahbl.org", "ip4trie", WORLD),
    ("2015, domains", "rhsbl.ahbl.org", "dnset", DOMAINS_WORLD),
    ("2018", "bl.spamcannibal.org", "ip4trie", PARKED),
    ("2017 and 2019", "combined.rbl.msrbl.net", "ip4trie", PARKED),
    ("2019", "bl.emailbasura.org", "ip4trie", WORLD),
    ("2021", "bl.spamcop.net", "ip4trie", PARKED),
]
REFUSING = [f"refuses-{last}.example" for last in (252, 254, 255)]
LISTS: dict[str, list[tuple[str, str]]] = {
    "sound.example": [("ip4trie", SOUND), ("ip6trie", ":127.0.0.3:\n2001:db8:66::/48\n")],
    "domains.example": [("dnset", SOUND_DOMAINS)],
    "turns.example": [("ip4trie", SOUND)],
    **{zone: [(kind, lines)] for _, zone, kind, lines in HISTORY},
    **{
        zone: [
            ("ip4set", SOUND),
            ("acl", REFUSES.format(zone.removeprefix("refuses-").removesuffix(".example"))),
        ]
        for zone in REFUSING
    },
}
LISTED = "192.0.2.66"


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rbldnsd]:
    with Rbldnsd(tmp_path_factory.mktemp("rbldnsd"), LISTS) as server:
        yield server


@pytest.fixture(scope="module")
def nameserver(lists: Rbldnsd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    config = UNBOUND + "".join(STUB.format(zone=zone, port=lists.port) for zone in LISTS)
    with RealServer(tmp_path_factory.mktemp("unbound"), "unbound", config, "-d") as server:
        yield server


class Door:
    """A check with all that stands behind it; its clock can be put forward."""

    def __init__(self, nameserver: RealServer) -> None:
        self.ahead = 0.0
        self.resolver = Resolver([nameserver.nameserver], 5.0)
        self.zones = Zones(self.resolver, clock=lambda: time.monotonic() + self.ahead)
        self.checks: list[dnsbl.Check] = []

    async def hold(self, *texts: str, **options: Any) -> dnsbl.Check:
        check = dnsbl.Check(
            dnsbl.Options(sites(list(texts)), **options), Context("dnsbl", "mx", SITE, blocklists=self.zones)
        )
        self.checks.append(check)
        self.zones.keep([each for check in self.checks for each in check.blocklists])
        return check

    async def ask(self, check: dnsbl.Check, address: str = "", **attributes: str) -> Opinion | None:
        outside = {"sasl_method": "", "sasl_username": "", "sender": "bob@example.net"}
        given = outside | {"client_address": address} | attributes
        request = rcpt("1a.2b.0", "alice@example.org", **given)
        now = NOW + int(self.ahead * 1000)
        return await check.check(request, now, Steering(), Inquiry(time.monotonic() + 10))

    async def refuses(self, check: dnsbl.Check, address: str = "", **attributes: str) -> bool:
        found = await self.ask(check, address, **attributes)
        return found is not None and str(found.answer) != "DUNNO"

    async def test(self, seconds: float) -> None:
        """Time goes by, and what is due is tested."""
        self.ahead += seconds
        # What the resolver remembers has its own clock; it must not be what makes a list well or sick.
        await self.zones.test_due()

    def states(self) -> dict[str, str]:
        return {subject.removeprefix("dnsbl/"): state for subject, state, _, _ in self.zones.report()}


def go(loop: str, nameserver: RealServer, test: Callable[[Door], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        door = Door(nameserver)
        try:
            await test(door)
        finally:
            await door.resolver.close()

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_listed_client_is_refused_and_a_clean_one_is_not(loop: str, nameserver: RealServer) -> None:
    """The plain case, IPv4, IPv6 and domains, before anything is sick."""

    async def test(door: Door) -> None:
        check = await door.hold("sound.example=127.0.0.[2..11]*3", "turns.example*1", threshold=3)
        by_sender = await door.hold("domains.example", lookup="sender")
        await door.test(0)
        assert set(door.states().values()) == {"well"}
        assert await door.refuses(check, LISTED)
        assert await door.refuses(check, "2001:db8:66::25")
        assert not await door.refuses(check, "192.0.2.7")
        assert not await door.refuses(check, "2001:db8:67::25")
        assert await door.refuses(by_sender, "192.0.2.7", sender="x@bad.example.net")
        assert not await door.refuses(by_sender, "192.0.2.7", sender="x@good.example.net")
        found = await door.ask(check, LISTED)
        assert found is not None
        assert found.finding == 4
        # rbldnsd answers a mapped address as the IPv4 address that it is.
        assert door.zones.report()[0][3]["ipv6"] is True

    go(loop, nameserver, test)


@pytest.mark.parametrize("tested", [True, False], ids=["after the first test", "before it"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_historic_world_listings_refuse_nobody(
    loop: str, tested: bool, nameserver: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    """2003 to 2021: not one mail is refused, each list is out of service and told; also when mail comes before any test."""

    async def test(door: Door) -> None:
        by_client = await door.hold(
            *(zone for _, zone, kind, _ in HISTORY if kind == "ip4trie"), "sound.example"
        )
        by_sender = await door.hold("rhsbl.ahbl.org", lookup="sender")
        if tested:
            await door.test(0)
        for number in range(40):
            assert not await door.refuses(by_client, f"198.51.100.{number}")
            assert not await door.refuses(by_sender, "192.0.2.7", sender=f"x@example{number}.com")
        assert await door.refuses(by_client, LISTED)
        states = door.states()
        assert {zone for zone, state in states.items() if state == "sick"} == {
            zone for _, zone, *_ in HISTORY
        }
        assert states["sound.example"] == "well"

    caplog.set_level(logging.WARNING, "policyd")
    go(loop, nameserver, test)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("dnsbl-sick:")]
    assert len(told) == len(HISTORY)


@pytest.mark.parametrize("zone", REFUSING)
def test_a_list_that_refuses_to_answer_refuses_nobody(
    zone: str, nameserver: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    """127.255.255.252, .254 and .255 with a site that has no filter: what stopped all mail of so many servers."""

    async def test(door: Door) -> None:
        check = await door.hold(zone)
        for number in range(20):
            assert not await door.refuses(check, f"198.51.100.{number}")
        assert not await door.refuses(check, LISTED)
        assert door.states() == {zone: "sick"}

    caplog.set_level(logging.WARNING, "policyd")
    go("asyncio", nameserver, test)
    assert f"dnsbl-sick: {zone}: refuses to answer: 127.255.255." in caplog.text


@pytest.mark.parametrize("world", [WORLD, PARKED], ids=["wildcard", "parked"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_world_listing_that_starts_while_running(
    loop: str, world: str, lists: Rbldnsd, nameserver: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    """At most the mail of its first ten seconds; then the list is out, told, and back after its recovery."""

    async def test(door: Door) -> None:
        check = await door.hold("turns.example", "sound.example=127.0.0.9")
        await door.test(0)
        assert await door.refuses(check, LISTED)
        lists.change("turns.example", "ip4trie", world, "1.100.51.198", world.split(":")[1])
        # Its first ten seconds: whoever comes now may be refused.
        early = [await door.refuses(check, f"198.51.100.{number}") for number in range(10)]
        door.ahead += 10
        for number in range(10, 60):
            assert not await door.refuses(check, f"198.51.100.{number}")
        assert door.states()["turns.example"] == "sick"
        # Who was refused is let in, though the score was remembered; and so is the one that is truly listed.
        assert not any([await door.refuses(check, f"198.51.100.{number}") for number in range(10)])
        assert not await door.refuses(check, LISTED)
        await door.test(60)
        assert door.states()["turns.example"] == "sick"
        lists.change("turns.example", "ip4trie", SOUND + "192.0.2.67\n", "1.100.51.198", "")
        await door.test(60)
        assert door.states()["turns.example"] == "well"
        assert await door.refuses(check, "192.0.2.67")
        # The resolver still remembers the world listing of these.
        assert not any([await door.refuses(check, f"198.51.100.{number}") for number in range(10)])
        assert early in ([True] * 10, [False] * 10)

    caplog.set_level(logging.WARNING, "policyd")
    try:
        go(loop, nameserver, test)
    finally:
        lists.change("turns.example", "ip4trie", SOUND, "1.100.51.198", "")
    told = [record.getMessage().partition(": ")[0] for record in caplog.records]
    assert told == ["dnsbl-sick", "dnsbl-well"]


def test_a_list_that_was_emptied_counts_nothing_and_is_told(
    lists: Rbldnsd, nameserver: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The graceful end (2008 to 2024): the test entry is gone; and it is back when the list is."""

    async def test(door: Door) -> None:
        check = await door.hold("turns.example")
        await door.test(0)
        assert await door.refuses(check, LISTED)
        lists.change("turns.example", "ip4trie", "# closed\n", "2.0.0.127", "")
        await door.test(1800)
        assert door.states() == {"turns.example": "sick"}
        lists.change("turns.example", "ip4trie", SOUND, "2.0.0.127", "127.0.0.2")
        await door.test(60)
        assert door.states() == {"turns.example": "well"}

    caplog.set_level(logging.WARNING, "policyd")
    try:
        go("asyncio", nameserver, test)
    finally:
        lists.change("turns.example", "ip4trie", SOUND, "2.0.0.127", "127.0.0.2")
    assert "does not list its test entry 127.0.0.2 (RFC 5782)" in caplog.text

"""The watch over the lists: none that is sick, silent or lists everybody counts, and each is well again by itself.

The lists here are functions from a name to its reply, and the clock is the test's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from policyd.blocklists import Blocklist, Listing, mapped_name, reversed_address
from policyd.desk import _finish
from policyd.dns import health, zones
from policyd.dns.zones import Zones
from policyd.lookup import FOUND, NXDOMAIN, UNKNOWN, Found
from tests.fakes import on_loop

BL = Blocklist("bl.example", "bl.example")
B2 = Blocklist("b2.example", "b2.example")
DBL = Blocklist("dbl.example", "dbl.example", domains=True)
LISTED, CLEAN = reversed_address("192.0.2.66"), reversed_address("192.0.2.7")
SILENT = Found(UNKNOWN, why="timeout")
NOTHING = Found(NXDOMAIN, ttl=300)


def honest(name: str) -> Found:
    """A sound list: its test entries, one client, one domain."""
    listed = {
        "2.0.0.127",
        mapped_name("127.0.0.2"),
        "test",
        LISTED,
        "bad.example",
        reversed_address("2001:db8::66"),
    }
    return Found(FOUND, ("127.0.0.2",), 300) if name in listed else NOTHING


def says(*codes: str) -> Callable[[str], Found]:
    """A list that says the same of everything."""
    return lambda name: Found(FOUND, codes, 300)


class World:
    """The DNS and its clock: what each list says, how often each name was asked; it can be held back."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lists: dict[str, Callable[[str], Found]] = {}
        self.asked: Counter[str] = Counter()
        self.forgotten: set[str] = set()
        self.asked_fresh: set[str] = set()
        self.held: asyncio.Event | None = None
        self.zones = Zones(self, clock=lambda: self.now, wall=lambda: self.now + 1_800_000_000)

    async def ask(self, name: str, rdtype: str, due: float, *, first: bool = False) -> Found:
        self.asked[name] += 1
        if name in self.forgotten:
            self.asked_fresh.add(name)
        await asyncio.sleep(0)
        if self.held is not None:
            await self.held.wait()
        for zone, reply in self.lists.items():
            if name.endswith("." + zone):
                return reply(name.removesuffix("." + zone))
        return NOTHING

    def forget(self, name: str, rdtype: str) -> None:
        self.forgotten.add(name)

    async def with_list(self, *lists: Blocklist) -> Zones:
        """The zones once the first tests are done."""
        self.zones.keep(lists)
        for each in lists:
            self.lists.setdefault(each.zone, honest)
        await self.zones.test_due()
        return self.zones

    async def listing(self, name: str = LISTED, blocklist: Blocklist = BL, due: float = 1e12) -> Listing:
        return (await self.zones.look_up([blocklist], name, due))[0]

    def state(self, at: int = 0) -> tuple[str, str]:
        _, state, _, figures = self.zones.report()[at]
        return state, figures["why"]


@on_loop
async def test_a_sound_list_is_believed() -> None:
    """What is listed is listed, what is not is not, and what both may be remembered for."""
    world = World()
    await world.with_list(BL)
    assert world.state() == ("well", "")
    assert await world.listing() == (("127.0.0.2",), True, "", 10.0)
    assert await world.listing(CLEAN) == ((), True, "", 300)
    assert (await world.listing(reversed_address("2001:db8::66"))).codes == ("127.0.0.2",)


@on_loop
async def test_the_test_entries_are_those_of_rfc_5782() -> None:
    """Section 5: 127.0.0.2 and 127.0.0.1, the same mapped for IPv6, TEST and INVALID; at the start, then half-hourly."""
    world = World()
    await world.with_list(BL, DBL)
    names = [
        f"2.0.0.127.{BL.zone}",
        f"1.0.0.127.{BL.zone}",
        f"{mapped_name('127.0.0.2')}.{BL.zone}",
        f"{mapped_name('127.0.0.1')}.{BL.zone}",
        f"test.{DBL.zone}",
        f"invalid.{DBL.zone}",
    ]
    assert [world.asked[name] for name in names] == [1] * 6
    # What is remembered anywhere is no answer to a test.
    assert set(names) <= world.asked_fresh
    world.now += 1799
    await world.zones.test_due()
    assert [world.asked[name] for name in names] == [1] * 6
    world.now += 1
    await world.zones.test_due()
    assert [world.asked[name] for name in names] == [2] * 6


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (says("127.0.0.2"), "lists 127.0.0.1 as 127.0.0.2, as it would list everybody"),
        (says("192.0.2.80"), "answers 192.0.2.80, which is no reply of a list, for 127.0.0.2"),
        (says("127.255.255.252"), "refuses to answer: 127.255.255.252 (the zone is mistyped)"),
        (says("127.255.255.254"), "refuses to answer: 127.255.255.254 (asked through a public resolver"),
        (says("127.255.255.255"), "refuses to answer: 127.255.255.255 (asked too often)"),
        (says("127.0.0.1"), "refuses to answer: 127.0.0.1 for 127.0.0.2"),
        (lambda name: NOTHING, "does not list its test entry 127.0.0.2 (RFC 5782)"),
        (lambda name: Found("nodata", ttl=60), "does not list its test entry 127.0.0.2"),
    ],
)
@on_loop
async def test_a_list_that_fails_its_test_counts_nothing_until_it_is_well(
    reply: Callable[[str], Found], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once when it falls sick and once when it is well; nobody is refused meanwhile, and nobody asks it."""

    caplog.set_level(logging.WARNING, "policyd")
    world = World()
    world.lists[BL.zone] = reply
    epoch = world.zones.epoch
    await world.with_list(BL)
    state, said = world.state()
    assert state == "sick"
    assert said.startswith(why)
    assert world.zones.epoch > epoch
    before = world.asked.total()
    listing = await world.listing()
    assert (listing.codes, listing.known) == ((), False)
    assert listing.why.startswith("sick: ")
    assert world.asked.total() == before
    for _ in range(3):
        world.now += 60
        await world.zones.test_due()
    assert world.asked.total() > before
    assert world.state()[0] == "sick"
    _, _, since, figures = world.zones.report()[0]
    assert (since, figures["sicknesses"]) == (1_800_001_000_000, 1)
    world.lists[BL.zone] = honest
    epoch = world.zones.epoch
    world.now += 60
    await world.zones.test_due()
    assert world.state() == ("well", "")
    assert world.zones.epoch > epoch
    assert (await world.listing()).codes == ("127.0.0.2",)
    # It is well, and no news any more: not asked before half an hour, and not told again.
    epoch, before = world.zones.epoch, world.asked.total()
    world.now += 1799
    await world.zones.test_due()
    assert world.asked.total() == before
    world.now += 1
    await world.zones.test_due()
    assert world.asked.total() > before
    assert world.zones.epoch == epoch
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in told] == ["dnsbl-sick", "dnsbl-well"]
    assert told[0].startswith(f"dnsbl-sick: bl.example: {why}")


@on_loop
async def test_a_wildcard_that_starts_while_running_is_noticed_before_it_refuses_anyone() -> None:
    """A listing counts only if a random address was asked within the last ten seconds and was not listed."""
    world = World()
    await world.with_list(BL)
    world.now += 600
    world.lists[BL.zone] = says("127.0.0.2")
    assert (await world.listing(CLEAN)).codes == ()
    assert world.state()[0] == "sick"
    assert "lists 127." in world.state()[1]


@on_loop
async def test_a_wildcard_refuses_at_most_those_of_its_first_ten_seconds_and_they_are_not_refused_later() -> (
    None
):
    """What it said then may be remembered by resolvers on the way: it is not believed when the list is well again."""
    world = World()
    await world.with_list(BL)
    assert (await world.listing()).codes
    world.lists[BL.zone] = says("127.0.0.2")
    world.now += 9
    # Still vouched for by the random address of nine seconds before.
    first = await world.listing(CLEAN)
    assert first.codes
    assert first.ttl <= 1.0
    world.now += 1
    assert not (await world.listing(reversed_address("192.0.2.8"))).codes
    world.lists[BL.zone] = lambda name: says("127.0.0.2")(name) if name == CLEAN else honest(name)
    world.now += 60
    await world.zones.test_due()
    assert world.state()[0] == "well"
    stale = await world.listing(CLEAN)
    assert (stale.codes, stale.known) == ((), False)
    assert (await world.listing(reversed_address("2001:db8::66"))).codes
    world.now += 86_400
    assert (await world.listing(CLEAN)).codes


@on_loop
async def test_one_random_question_for_all_who_wait() -> None:
    """A hundred listed clients at once cost one random address; the next ones within ten seconds none."""
    world = World()
    await world.with_list(BL)
    world.asked.clear()
    world.now += 60
    world.lists[BL.zone] = lambda name: (
        honest(name) if name.endswith(".127") else Found(FOUND, ("127.0.0.3",), 60)
    )
    names = [reversed_address(f"198.51.100.{number}") for number in range(100)]
    listings = await asyncio.gather(*(world.listing(name) for name in names))
    assert all(each.codes for each in listings)
    assert world.asked.total() == 101
    world.now += 9
    await world.listing(LISTED)
    assert world.asked.total() == 102
    world.now += 1
    await world.listing(CLEAN)
    assert world.asked.total() == 104


@on_loop
async def test_each_kind_of_name_is_vouched_for_by_its_own() -> None:
    """A wildcard below the IPv6 part of a zone is not seen by asking IPv4."""
    world = World()
    await world.with_list(BL)
    assert (await world.listing()).codes
    world.lists[BL.zone] = lambda name: says("127.0.0.2")(name) if name.count(".") == 31 else honest(name)
    assert not (await world.listing(reversed_address("2001:db8::1"))).codes
    assert world.state()[0] == "sick"


@on_loop
async def test_the_random_names_are_random() -> None:
    """None is ever found in a memory on the way: 127.1.0.0 to 127.254.255.255, and names below .invalid."""
    world = World()
    await world.with_list(BL, DBL)
    world.asked.clear()
    for _ in range(50):
        world.now += 60
        await world.listing(LISTED)
        await world.listing("bad.example", DBL)
    random = [name for name in world.asked if not name.startswith((LISTED, "bad.example"))]
    assert len(random) == 100
    for name in random:
        if name.endswith(DBL.zone):
            assert name.split(".")[1:] == ["invalid", "dbl", "example"]
        else:
            octets = [int(label) for label in name.split(".")[:4]]
            assert octets[3] == 127
            assert 1 <= octets[2] <= 254


@on_loop
async def test_without_a_vouching_answer_nobody_is_listed() -> None:
    """The random address gets no answer: the listing counts nothing, and the list is not blamed for it yet."""
    world = World()
    await world.with_list(BL)
    world.now += 60
    world.lists[BL.zone] = lambda name: honest(name) if name == LISTED else SILENT
    listing = await world.listing()
    assert (listing.codes, listing.known, listing.why) == ((), False, "nobody vouched for it in time")
    assert world.state()[0] == "well"
    world.held = asyncio.Event()
    waiting = asyncio.ensure_future(world.listing(due=0.0))
    world.held.set()
    assert not (await waiting).codes


@on_loop
async def test_a_refusal_for_one_name_is_no_listing_and_no_sickness() -> None:
    """127.0.1.255 to a question that a list does not take: the random name shows that it answers others."""
    world = World()
    await world.with_list(BL)
    world.lists[BL.zone] = lambda name: says("127.255.255.254")(name) if name == CLEAN else honest(name)
    listing = await world.listing(CLEAN)
    assert (listing.codes, listing.known) == ((), False)
    assert listing.why == "answered 127.255.255.254, which is no listing"
    assert world.state()[0] == "well"
    assert world.zones.report()[0][3]["refusals"] == 1


@on_loop
async def test_a_mixture_with_a_refusal_or_another_address_is_no_listing() -> None:
    """One reply out of the range spoils the others: whoever says that is no list."""
    world = World()
    await world.with_list(BL)
    for odd in ("192.0.2.80", "127.255.255.1", "127.0.0.1"):
        world.lists[BL.zone] = lambda name, odd=odd: (  # type: ignore[misc]
            says("127.0.0.2", odd)(name) if name == CLEAN else honest(name)
        )
        assert not (await world.listing(CLEAN)).codes


# --- silence -------------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_silent_list_is_left_out_and_asked_again() -> None:
    """Ten look-ups in a row over five seconds: then nobody waits for it, until a test (every ten seconds) gets its answer."""
    world = World()
    await world.with_list(BL)
    world.lists[BL.zone] = lambda name: SILENT
    for _ in range(8):
        assert (await world.listing(CLEAN)).why == "timeout"
        world.now += 1
    # An answer that was remembered on the way: listed, and no sign of life.
    health = world.zones._health[BL.zone, False][1]
    health.listed(LISTED, world.now)
    assert (await world.listing(CLEAN)).why == "timeout"
    world.now += 1
    assert world.state()[0] == "well"
    await world.listing(CLEAN)
    assert world.state() == ("sick", "left 10 look-ups in a row unanswered")
    before = world.asked.total()
    await world.listing(CLEAN)
    assert world.asked.total() == before
    world.lists[BL.zone] = honest
    world.now += 10
    await world.zones.test_due()
    assert world.state()[0] == "well"
    # A short silence taints nothing.
    assert (await world.listing()).codes


@on_loop
async def test_a_list_that_answers_its_tests_alone_is_not_well_every_ten_seconds() -> None:
    """It is tested half as often each time, half-hourly in the end: else the log and the alarms would go back and forth."""
    world = World()
    await world.with_list(BL)
    world.lists[BL.zone] = lambda name: SILENT if name == CLEAN else honest(name)
    for _ in range(6 * 3600):
        world.now += 1
        await world.zones.test_due()
        if world.state()[0] == "well":
            await world.listing(CLEAN)
    sicknesses = world.zones.report()[0][3]["sicknesses"]
    # Twice as long each time up to 1,280 s, then every 1,800 s.
    assert 16 < sicknesses < 21
    # One answer, and it is as at first.
    world.lists[BL.zone] = honest
    while world.state()[0] == "sick":
        world.now += 1
        await world.zones.test_due()
    await waited(world)
    world.lists[BL.zone] = lambda name: SILENT if name == CLEAN else honest(name)
    for _ in range(40):
        world.now += 1
        await world.zones.test_due()
        if world.state()[0] == "well":
            await world.listing(CLEAN)
    assert world.zones.report()[0][3]["sicknesses"] == sicknesses + 2


async def waited(world: World) -> None:
    """A look-up whose answer was waited for."""
    world.held = asyncio.Event()
    asking = asyncio.ensure_future(world.listing(CLEAN))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0, world.held.set)
    assert (await asking).known
    world.held = None


@on_loop
async def test_a_burst_of_silence_is_no_sickness() -> None:
    """Hundreds at once that time out are one event, whenever; and an answer in between begins the count anew."""
    world = World()
    await world.with_list(BL)
    world.now += 600
    world.lists[BL.zone] = lambda name: SILENT
    await asyncio.gather(*(world.listing(reversed_address(f"198.51.100.{n}")) for n in range(200)))
    assert world.state()[0] == "well"
    world.lists[BL.zone] = honest
    await world.listing(CLEAN)
    world.lists[BL.zone] = lambda name: SILENT
    world.now += 60
    await world.listing(CLEAN)
    assert world.state()[0] == "well"


@on_loop
async def test_no_list_is_blamed_for_the_resolver() -> None:
    """No nameserver answers, or none can be reached: every list would be sick at once, and the DNS has its own alarm. Nor for
    a short deadline."""
    world = World()
    await world.with_list(BL)
    for why in ("no nameserver answers", "nameserver unreachable"):
        world.lists[BL.zone] = lambda name, why=why: Found(UNKNOWN, why=why)  # type: ignore[misc]
        for _ in range(50):
            world.now += 60
            assert (await world.listing(CLEAN)).why == why
            await world.zones.test_due()
    world.lists[BL.zone] = lambda name: SILENT
    for _ in range(50):
        world.now += 1
        await world.listing(CLEAN, due=0.0)
    assert world.state()[0] == "well"
    assert world.zones.report()[0][3]["errors"] == 0
    # As soon as somebody answers, the test that was missed is made up for.
    world.lists[BL.zone] = honest
    world.asked.clear()
    world.now += 10
    await world.zones.test_due()
    assert world.asked[f"2.0.0.127.{BL.zone}"] == 1


@on_loop
async def test_a_silent_list_is_noticed_whatever_the_deadline_of_the_mails() -> None:
    """Where no mail has time to tell slow from silent, the tests tell, which have: else each mail would wait its whole time
    for that list, up to half an hour. A list that is only slow is tested every ten seconds at most, and stays well."""
    world = World()
    await world.with_list(BL)
    world.asked.clear()
    for _ in range(60):
        world.now += 1
        world.lists[BL.zone] = lambda name: SILENT
        await world.listing(CLEAN, due=0.0)
        world.lists[BL.zone] = honest
        await world.zones.test_due()
    assert world.state()[0] == "well"
    assert 1 <= world.asked[f"2.0.0.127.{BL.zone}"] <= 6
    world.lists[BL.zone] = lambda name: SILENT
    for _ in range(30):
        world.now += 1
        await world.listing(CLEAN, due=0.0)
        await world.zones.test_due()
    assert world.state() == ("sick", "left 3 tests unanswered (timeout)")


@on_loop
async def test_tests_without_an_answer_make_a_list_silent_only_after_three() -> None:
    """One lost datagram is no sickness; a list that nobody mails from is noticed all the same."""
    world = World()
    world.lists[BL.zone] = lambda name: SILENT
    await world.with_list(BL)
    for _ in range(2):
        assert world.state()[0] == "well"
        before = world.asked.total()
        await world.zones.test_due()
        assert world.asked.total() == before, "the next one is ten seconds later"
        world.now += 10
        await world.zones.test_due()
    assert world.state() == ("sick", "left 3 tests unanswered (timeout)")


@on_loop
async def test_a_list_that_is_silent_for_long_is_asked_less_and_found_well_within_half_a_minute() -> None:
    """A dead zone must not cost five questions every ten seconds for years; it may have been the nameserver all the time."""
    world = World()
    world.lists[BL.zone] = lambda name: SILENT
    await world.with_list(BL)
    for _ in range(40):
        world.now += 10
        await world.zones.test_due()
    world.asked.clear()
    for _ in range(60):
        world.now += 10
        await world.zones.test_due()
    assert world.asked[f"2.0.0.127.{BL.zone}"] == 20
    world.lists[BL.zone] = honest
    for _ in range(30):
        world.now += 1
        await world.zones.test_due()
    assert world.state()[0] == "well"


# --- domains, lists without entries --------------------------------------------------------------------------------------


@on_loop
async def test_a_list_of_domains_is_watched_alike() -> None:
    """TEST is listed, INVALID and a random name are not."""
    world = World()
    await world.with_list(DBL)
    assert (await world.listing("bad.example", DBL)).codes == ("127.0.0.2",)
    assert (await world.listing("good.example", DBL)).known
    world.now += 60
    world.lists[DBL.zone] = says("127.0.0.2")
    assert not (await world.listing("good.example", DBL)).codes
    assert world.state()[0] == "sick"


@on_loop
async def test_a_list_without_test_entries_is_tested_by_random_names() -> None:
    """`untested`: it need not list anything, but listing everything makes it sick, too."""
    world = World()
    lists_one = lambda name: Found(FOUND, ("127.0.9.2",), 300) if name == LISTED else NOTHING  # noqa: E731
    untested = BL._replace(tested=False)
    world.lists[BL.zone] = lists_one
    await world.with_list(untested)
    assert world.state()[0] == "well"
    assert (await world.listing(LISTED, untested)).codes
    world.lists[BL.zone] = says("127.0.9.2")
    world.now += 1800
    await world.zones.test_due()
    assert world.state()[0] == "sick"
    # Two checks of one list: what one of them knows about it holds.
    world.zones.keep([untested, BL])
    world.lists[BL.zone] = lists_one
    world.now += 60
    await world.zones.test_due()
    assert world.state()[0] == "well"


@on_loop
async def test_a_list_without_ipv6_is_no_sick_list() -> None:
    """Most lists have no IPv6 entries; the figures say so."""
    world = World()
    world.lists[BL.zone] = lambda name: NOTHING if name.count(".") == 31 else honest(name)
    await world.with_list(BL)
    assert world.state()[0] == "well"
    assert world.zones.report()[0][3]["ipv6"] is False
    world.lists[BL.zone] = lambda name: SILENT if name.count(".") == 31 else honest(name)
    world.now += 1800
    await world.zones.test_due()
    assert world.state()[0] == "well"


# --- the breaker ---------------------------------------------------------------------------------------------------------


async def clients(
    world: World, first: int, count: int, *listed: Blocklist, among: tuple[Blocklist, ...] = (BL, B2)
) -> None:
    """So many new clients, listed by ``listed``."""
    for number in range(first, first + count):
        listings = [Listing(("127.0.0.2",), True) if each in listed else Listing((), True) for each in among]
        world.zones.tally(among, reversed_address(f"198.{number >> 8}.{number & 255}.7"), listings)


@on_loop
async def test_a_list_that_suddenly_lists_nearly_everyone_is_taken_out() -> None:
    """46 of the last 50 different clients, whom no other list has; a random address cannot show that."""
    world = World()
    await world.with_list(BL, B2)
    await clients(world, 0, 150)
    await clients(world, 200, 45, BL)
    assert world.state()[0] == "well"
    await clients(world, 300, 1, BL)
    assert world.state() == (
        "sick",
        "lists 46 of the last 50 different clients, as no other operator's list does",
    )
    assert world.state(1)[0] == "well"
    # It passes every test: it is left out for half an hour all the same.
    for _ in range(29):
        world.now += 60
        await world.zones.test_due()
        assert world.state()[0] == "sick"
    world.now += 60
    await world.zones.test_due()
    assert world.state()[0] == "well"


@on_loop
async def test_what_other_lists_list_too_or_what_was_always_so_is_no_sudden_rise() -> None:
    """A server that only spammers know: most of its clients are listed, day after day."""
    world = World()
    await world.with_list(BL, B2)
    await clients(world, 0, 500, BL, B2)
    await clients(world, 1000, 40, BL)
    assert (world.state(), world.state(1)) == (("well", ""), ("well", ""))
    world = World()
    await world.with_list(BL)
    # Nine of ten from the start: rare among the first fifty to be all of them, and usual from then on.
    for tenth in range(100):
        await clients(world, tenth * 10, 1, among=(BL,))
        await clients(world, tenth * 10 + 1, 9, BL, among=(BL,))
    await clients(world, 5000, 500, BL, among=(BL,))
    assert world.state()[0] == "well"


@on_loop
async def test_without_a_past_only_everybody_is_too_many() -> None:
    """The first fifty after a start may well be spammers; all fifty, and no other list has one of them: hardly."""
    world = World()
    await world.with_list(BL, B2)
    await clients(world, 0, 1)
    await clients(world, 1, 49, BL)
    assert world.state()[0] == "well"
    world = World()
    await world.with_list(BL, B2)
    await clients(world, 0, 50, BL)
    assert world.state()[0] == "sick"


@on_loop
async def test_whom_the_list_did_not_answer_is_no_client_of_the_breaker() -> None:
    """Look-ups without an answer say nothing either way: they must not hide that everybody is listed."""
    world = World()
    await world.with_list(BL, B2)
    await clients(world, 0, 49, BL)
    world.zones.tally((BL, B2), "unanswered", [Listing(why="timeout"), Listing((), True)])
    assert world.state()[0] == "well"
    await clients(world, 100, 1, BL)
    assert world.state()[0] == "sick"


def from_v6(network: int, host: int = 1) -> str:
    return reversed_address(f"2001:db8:0:{network:x}::{host:x}")


@on_loop
async def test_a_list_of_all_of_ipv6_is_noticed_though_few_clients_have_it() -> None:
    """Its random addresses are IPv4's in another dress: a list may let these be, and list everybody who has IPv6."""
    world = World()
    await world.with_list(BL, B2)
    await clients(world, 0, 150)
    for number in range(50):
        await clients(world, 1000 + 10 * number, 10)
        assert world.state()[0] == "well"
        world.zones.tally((BL, B2), from_v6(number), [Listing(("127.0.0.2",), True), Listing((), True)])
    assert world.state() == (
        "sick",
        "lists 50 of the last 50 different clients, as no other operator's list does",
    )


@on_loop
async def test_one_client_with_many_ipv6_addresses_cannot_take_a_list_out() -> None:
    """Who is listed with his /64 has 2^64 addresses in it, and would be rid of the list after fifty of them."""
    world = World()
    await world.with_list(BL, B2)
    for number in range(200):
        world.zones.tally((BL, B2), from_v6(1, number), [Listing(("127.0.0.2",), True), Listing((), True)])
    assert world.state()[0] == "well"


@on_loop
async def test_one_network_with_many_addresses_cannot_take_a_list_out() -> None:
    """Who hires a /24 that is listed sends from each address of it."""
    world = World()
    await world.with_list(BL, B2)
    for number in range(256):
        listings = [Listing(("127.0.0.2",), True), Listing((), True)]
        world.zones.tally((BL, B2), reversed_address(f"198.51.100.{number}"), listings)
    assert world.state()[0] == "well"


@on_loop
async def test_none_of_those_who_were_listed_when_everybody_was_is_believed() -> None:
    """The second address of a network, too: it may be remembered as listed on the way, for longer than the list is out."""
    world = World()
    await world.with_list(BL, B2)
    await clients(world, 0, 150)
    names = [reversed_address(f"203.{network}.113.{host}") for network in range(50) for host in (7, 8)]
    for name in names:
        world.zones.tally((BL, B2), name, [Listing(("127.0.0.2",), True), Listing((), True)])
    assert world.state()[0] == "sick"
    world.now += health.BREAKER_REST
    await world.zones.test_due()
    assert world.state()[0] == "well"
    believed = [name for name in names if world.zones._health[BL.zone, False][1].believes(name, world.now)]
    # Those that came after it was sick were not asked.
    assert not set(believed) & set(names[:91])


@on_loop
async def test_a_list_that_is_silent_on_ipv6_is_asked_again_soon() -> None:
    """Its tests are IPv4's, which it passes: it must not be out for half an hour for that."""
    world = World()
    await world.with_list(BL)
    world.lists[BL.zone] = lambda name: SILENT if name.count(".") == 31 else honest(name)
    well = 0
    for _ in range(3600):
        world.now += 1
        await world.zones.test_due()
        if world.state()[0] == "well":
            well += 1
            await world.listing(reversed_address("2001:db8::7"))
    assert well > 1200


@on_loop
async def test_lists_of_one_operator_that_list_everybody_together_are_taken_out() -> None:
    """SORBS, UCEPROTECT and others serve several lists from one place: what befalls one befalls the others."""
    operators = Blocklist("l1.bl.test", "l1.bl.test"), Blocklist("l2.bl.test", "l2.bl.test")
    world = World()
    among = (*operators, BL)
    await world.with_list(*among)
    await clients(world, 0, 150, among=among)
    await clients(world, 200, 46, *operators, among=among)
    assert [world.state(at)[0] for at in range(3)] == ["sick", "sick", "well"]
    # The figures go by lists all the same.
    assert world.zones.report()[0][3]["alone"] == 0


@on_loop
async def test_names_below_one_domain_cannot_take_a_list_out() -> None:
    """Who owns a listed domain makes up names below it, and would be rid of the list after fifty mails from one address."""
    world = World()
    await world.with_list(DBL)
    for number in range(200):
        world.zones.tally((DBL,), f"n{number}.bad.example", [Listing(("127.0.1.2",), True)])
    assert world.state()[0] == "well"
    for number in range(50):
        world.zones.tally((DBL,), f"mail.n{number}.example", [Listing(("127.0.1.2",), True)])
    assert world.state()[0] == "sick"


@on_loop
async def test_one_client_that_comes_again_and_again_is_one() -> None:
    """Different clients are counted: a spammer that retries a thousand times proves nothing."""
    world = World()
    await world.with_list(BL, B2)
    for _ in range(1000):
        await clients(world, 0, 3, BL)
    assert world.state()[0] == "well"


# --- figures, life -------------------------------------------------------------------------------------------------------


@on_loop
async def test_the_figures_tell_which_list_is_worth_its_time() -> None:
    """Hits, those that no other list had, overlap, errors; under the public name; since when, as the wall clock says."""
    world = World()
    secret = Blocklist("abcdef.zen.dq.spamhaus.net", "zen.dq.spamhaus.net")
    await world.with_list(secret, B2)
    await clients(world, 0, 3, secret, B2, among=(secret, B2))
    await clients(world, 10, 2, secret, among=(secret, B2))
    await world.listing(CLEAN, B2)
    subject, state, since, figures = world.zones.report()[0]
    assert (subject, state, since) == ("dnsbl/zen.dq.spamhaus.net", "well", 1_800_001_000_000)
    assert (figures["hits"], figures["alone"], figures["overlap"]) == (5, 2, {"b2.example": 3})
    assert [world.zones.report()[1][3][each] for each in ("hits", "alone")] == [3, 0]
    assert world.zones.report()[1][3]["asked"] == 1
    assert "abcdef" not in f"{world.zones.report()}"
    assert figures["tested_at"] == since


@on_loop
async def test_one_zone_for_addresses_and_for_domains_is_two_lists() -> None:
    """Each is tested by its own entries, and each has its own row."""
    world = World()
    both = (BL, BL._replace(domains=True))
    await world.with_list(*both)
    assert [row[0] for row in world.zones.report()] == ["dnsbl/bl.example", "dnsbl/bl.example (domains)"]


@on_loop
async def test_a_reload_keeps_what_is_known_of_lists_that_stay() -> None:
    """And tests the new ones at once; those that are gone are tested no more."""
    world = World()
    world.lists[BL.zone] = says("127.0.0.2")
    await world.with_list(BL, DBL)
    assert world.state()[0] == "sick"
    world.asked.clear()
    await world.with_list(BL, B2)
    assert [row[0] for row in world.zones.report()] == ["dnsbl/bl.example", "dnsbl/b2.example"]
    assert world.state()[0] == "sick"
    assert {name.split(".", 4)[-1] for name in world.asked if name.startswith("2.0.0.127.")} == {"b2.example"}


@on_loop
async def test_a_list_that_a_reload_took_away_does_not_come_back() -> None:
    """A mail that began before the reload ends as it began; its lists are neither tested nor shown nor alarmed after that."""
    world = World()
    await world.with_list(BL, B2)
    world.held = asyncio.Event()
    begun = asyncio.get_running_loop().create_task(world.zones.look_up([B2], CLEAN, 1e12))
    await asyncio.sleep(0)
    world.zones.keep([BL])
    world.held.set()
    listings = await begun
    assert listings == [((), True, "", 300)]
    world.zones.tally([B2], CLEAN, listings)
    await world.zones.look_up([B2], LISTED, 1e12)
    assert [row[0] for row in world.zones.report()] == ["dnsbl/bl.example"]


@on_loop
async def test_when_others_are_asked_the_lists_are_tested_at_once() -> None:
    """A list that was out because of a public resolver counts again as soon as the admin has named one of their own."""
    world = World()
    world.lists[BL.zone] = says("127.255.255.254")
    await world.with_list(BL)
    assert world.state()[0] == "sick"
    world.lists[BL.zone] = honest
    await world.zones.test_due()
    assert world.state()[0] == "sick"
    before = world.zones.epoch
    world.zones.test_anew()
    assert world.zones.epoch > before
    await world.zones.test_due()
    assert world.state() == ("well", "")
    # What the former nameserver proved is proved anew.
    await world.listing()
    world.zones.test_anew()
    world.lists[BL.zone] = says("127.0.0.2")
    assert (await world.listing()).codes == ()


@on_loop
async def test_the_watch_goes_on_after_a_defect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A test that fails by a defect of policyd is not the last one; the task ends only when it is cancelled."""
    world = World()
    monkeypatch.setattr(zones, "LOOK", 0.0)
    world.zones.keep([BL])
    rounds: list[int] = []
    enough = asyncio.Event()

    async def test_due() -> None:
        rounds.append(1)
        if len(rounds) > 3:
            enough.set()
        raise RuntimeError("defect")

    monkeypatch.setattr(world.zones, "test_due", test_due)
    watch = asyncio.ensure_future(world.zones.watch())
    await enough.wait()
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert "could not be tested" in caplog.text


@on_loop
async def test_a_look_up_that_fails_by_a_defect_is_not_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other lists are not concerned."""
    world = World()
    await world.with_list(BL, B2)

    def broken(name: str) -> Found:
        raise RuntimeError("defect")

    world.lists[BL.zone] = broken
    one, two = await world.zones.look_up([BL, B2], LISTED, 1e12)
    assert (one.known, one.why) == (False, "defect")
    assert two.codes
    assert "look-up in bl.example failed: RuntimeError: defect" in caplog.text


@on_loop
async def test_a_mail_that_gives_up_leaves_the_question_to_the_others() -> None:
    """The deadline of one mail cancels its wait, and not the random address that others wait for."""
    world = World()
    await world.with_list(BL)
    world.now += 60
    real = honest
    gate = asyncio.Event()

    async def ask(name: str, rdtype: str, due: float, *, first: bool = False) -> Found:
        if not name.startswith(LISTED):
            await gate.wait()
        return real(name.removesuffix("." + BL.zone))

    world.ask = ask  # type: ignore[method-assign]
    impatient = asyncio.ensure_future(world.listing())
    patient = asyncio.ensure_future(world.listing())
    for _ in range(10):
        await asyncio.sleep(0)
    impatient.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    assert (await patient).codes == ("127.0.0.2",)
    assert impatient.cancelled()


@on_loop
async def test_a_check_asks_from_outside_of_any_task() -> None:
    """As the chain is driven: first by hand in a callback, then within a task, on what it awaited."""
    world = World()
    await world.with_list(BL)
    loop = asyncio.get_running_loop()
    look_up: Any = world.zones.look_up([BL], LISTED, 1e12)
    begun: asyncio.Future[Any] = loop.create_future()
    loop.call_soon(lambda: begun.set_result(loop.create_task(_finish(look_up, look_up.send(None)))))
    listings: Any = await (await begun)
    assert listings[0].codes == ("127.0.0.2",)


@on_loop
async def test_the_text_of_a_list_is_its_txt_record() -> None:
    """The first one, its key left out; nothing when there is none, or no answer."""
    world = World()
    secret = Blocklist("abcdef.zen.dq.spamhaus.net", "zen.dq.spamhaus.net")
    text: Any = (b"abcdef says: caf\xc3\xa9 \xff", b"other")
    world.lists[secret.zone] = lambda name: Found(FOUND, text, 60)
    assert await world.zones.text(secret, LISTED, 1e12) == "... says: caf\u00e9 \ufffd"
    world.lists[secret.zone] = lambda name: SILENT
    assert await world.zones.text(secret, LISTED, 1e12) == ""


def test_the_breakers_rest_is_not_cut_short() -> None:
    """Whatever has it tested earlier: a test is passed all the same, and says nothing about the sudden rise."""
    one = health.ListHealth(0.0, 0)
    one.fall_sick("lists everybody", 0.0, 0, breaker=True)
    one.fall_sick("left 10 look-ups in a row unanswered", 1.0, 0, silent=True)
    assert one.next_test < 60.0
    assert not one.test_passed(60.0, 0)
    assert one.state == "sick"
    assert one.test_passed(health.BREAKER_REST, 0)


def test_what_was_listed_meanwhile_is_bounded() -> None:
    """A list that listed more than can be noted comes back a day later instead."""
    one = health.ListHealth(0.0, 0)
    for number in range(health.MOST_TAINTED + 500):
        one.listed(str(number), 1.0)
    one.fall_sick("lists everybody", 2.0, 0)
    one.listed("more", 3.0)
    one.fall_sick("lists everybody", 3.0, 0)
    assert not one.test_passed(60.0, 0)
    assert one.next_test > 60.0
    assert one.test_passed(3.0 + health.TAINTED_FOR, 0)

"""The resolver behind a real unbound before a real NSD, as on the admin's machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from policyd.dns.resolver import NO_NAMESERVER, Resolver
from policyd.lookup import FOUND, NODATA, NXDOMAIN, UNKNOWN, Found
from tests.dns.loops import LOOPS, at_once, run
from tests.system.nameservers import RealServer, nsd, unbound

LONG = "v=spf1 " + "ip4:192.0.2.1 " * 250 + "-all"
RECORDS = f"""\
a.example 300 A 127.0.0.2
a.example 90 TXT "v=spf1 " "-all"
mx.example 300 MX 10 Mail.Example.
alias.example 200 CNAME a.example.
long.example 300 TXT {" ".join(f'"{LONG[at : at + 255]}"' for at in range(0, len(LONG), 255))}
*.bl.example 300 A 127.0.0.3
3.2.1.11.in-addr.arpa 300 PTR a.example.
"""
PATIENCE = 30.0


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealServer, RealServer]]:
    directory = tmp_path_factory.mktemp("dns")
    with nsd(directory, RECORDS) as authority, unbound(directory, authority) as resolver:
        yield authority, resolver


@pytest.fixture
def authority(real: tuple[RealServer, RealServer]) -> RealServer:
    return real[0]


@pytest.fixture
def nameserver(real: tuple[RealServer, RealServer]) -> RealServer:
    return real[1]


def go(loop: str, test: Callable[[Resolver], Any], server: RealServer, timeout: float = PATIENCE) -> None:
    async def main() -> None:
        resolver = Resolver([server.nameserver], timeout)
        try:
            await test(resolver)
        finally:
            await resolver.close()

    run(loop, main)


def soon() -> float:
    return time.monotonic() + PATIENCE


async def until(condition: Callable[[], bool]) -> None:
    end = soon()
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_the_zone_holds_is_what_is_found(loop: str, nameserver: RealServer) -> None:
    """Each type, over UDP and where it must over TCP; what is not there; the TTL of the record or of the SOA."""

    async def test(resolver: Resolver) -> None:
        async def ask(name: str, rdtype: str) -> Found:
            return await resolver.ask(name, rdtype, soon())

        assert (await ask("a.example", "A")).records == ("127.0.0.2",)
        assert await ask("a.example", "TXT") == Found(FOUND, (b"v=spf1 -all",), 60)
        assert (await ask("mx.example", "MX")).records == ((10, "mail.example"),)
        assert (await ask("alias.example", "A")).records == ("127.0.0.2",)
        assert (await ask("long.example", "TXT")).records == (LONG.encode(),)
        assert (await ask("3.2.1.11.in-addr.arpa", "PTR")).records == ("a.example",)
        assert (await ask("1.0.0.127.bl.example", "A")).records == ("127.0.0.3",)
        assert (await ask("a.example", "MX")).status == NODATA
        assert (await ask("alias.example", "MX")).status == NODATA
        assert (await ask("nx.example", "A")).status == NXDOMAIN

    go(loop, test, nameserver)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_burst_through_unbound_loses_nothing(loop: str, nameserver: RealServer) -> None:
    """A thousand names that it has to look up first, at once."""

    async def test(resolver: Resolver) -> None:
        found = await asyncio.gather(*(resolver.ask(f"{n}.bl.example", "A", soon()) for n in range(1000)))
        assert {each.records for each in found} == {("127.0.0.3",)}

    go(loop, test, nameserver)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_frozen_unbound_is_noticed_and_found_again(loop: str, nameserver: RealServer) -> None:
    """Silence becomes "unknown" at once, until it speaks."""

    async def test(resolver: Resolver) -> None:
        nameserver.freeze()
        try:
            assert (await resolver.ask("1.nx.example", "A", soon())).status == UNKNOWN
            await until(lambda: resolver.health()[0].state == "down")
            assert at_once(resolver.ask("2.nx.example", "A", soon())) is NO_NAMESERVER
        finally:
            nameserver.thaw()
        await until(lambda: resolver.health()[0].state == "up")
        assert (await resolver.ask("3.nx.example", "A", soon())).status == NXDOMAIN

    go(loop, test, nameserver, timeout=1.0)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_restarted_unbound_is_found_again(loop: str, nameserver: RealServer) -> None:
    """Nobody listens on the port, then somebody does."""

    async def test(resolver: Resolver) -> None:
        nameserver.stop()
        try:
            assert (await resolver.ask("1.nx.example", "A", soon())).status == UNKNOWN
            await until(lambda: resolver.health()[0].state == "down")
        finally:
            nameserver.start()
        await until(lambda: resolver.health()[0].state == "up")
        assert (await resolver.ask("3.nx.example", "A", soon())).status == NXDOMAIN

    go(loop, test, nameserver, timeout=1.0)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_dead_zone_behind_unbound_is_unknown_and_nothing_else(
    loop: str, nameserver: RealServer, authority: RealServer
) -> None:
    """unbound still speaks though the zone's own server does not: the look-up ends, the nameserver is not given up."""

    async def test(resolver: Resolver) -> None:
        authority.freeze()
        try:
            found = await asyncio.gather(*(resolver.ask(f"{n}.dead.example", "A", soon()) for n in range(20)))
            assert {each.status for each in found} == {UNKNOWN}
            assert (await resolver.ask("localhost", "A", soon())).records == ("127.0.0.1",)
            assert resolver.health()[1].state == "up"
        finally:
            authority.thaw()

    go(loop, test, nameserver, timeout=1.0)

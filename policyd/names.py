"""The DNS side of the running daemon: one resolver, the blocklists' watch and SPF, built only if a check asks for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from policyd.blocklists import Blocklist, NoBlocklists
from policyd.checks import Check
from policyd.lookup import NoResolver
from policyd.senderpolicy import NoSpf

if TYPE_CHECKING:
    from policyd.config import Config
    from policyd.dns.resolver import Resolver
    from policyd.dns.spf import Evaluator
    from policyd.dns.zones import Zones

log = logging.getLogger("policyd")

#: Checks of policyd's that ask the DNS; whether one of the admin's own does, nobody knows.
ASKING = frozenset({"dnsbl", "spf"})
#: A part of policyd: its name, how it does, since when (wall clock, ms), figures.
Report = tuple[str, str, int, dict[str, Any]]


class Names:
    """What checks are handed to ask the DNS with; as long as no check asks, nothing is loaded and nobody is asked."""

    def __init__(self) -> None:
        self.resolver: Resolver | NoResolver = NoResolver()
        self.blocklists: Zones | NoBlocklists = NoBlocklists()
        self.spf: Evaluator | NoSpf = NoSpf()
        self._parts: tuple[Resolver, Zones, Evaluator] | None = None
        self._watching: asyncio.Task[None] | None = None

    def prepare(self, config: Config) -> None:
        """Have what the checks of ``config`` need; what is there already stays as it is.

        :raises ValueError: a nameserver is none.
        """
        if self._parts is None and any(
            section.use in ASKING or "." in section.use for section in config.checks
        ):
            # Here, because dnspython takes longer to load than all of policyd.
            from policyd.dns.resolver import Resolver
            from policyd.dns.spf import Evaluator
            from policyd.dns.zones import Zones

            dns = config.dns
            resolver = Resolver(dns.nameservers, dns.timeout / 1000, dns.cache_size)
            self._parts = resolver, Zones(resolver), Evaluator(resolver)
            self.resolver, self.blocklists, self.spf = self._parts

    def take_over(self, config: Config, checks: Iterable[Check]) -> None:
        """Go by ``config`` from now on; answers and the lists' health that still count are kept."""
        if self._parts is None:
            return
        resolver, zones, spf = self._parts
        if resolver.configure(config.dns.nameservers, config.dns.timeout / 1000, config.dns.cache_size):
            zones.test_anew()
            spf.forget()
        lists: list[Blocklist] = []
        for check in checks:
            lists += getattr(check, "blocklists", ())
        zones.keep(lists)

    def watch(self) -> None:
        """See that the lists are watched; called again and again, from the loop."""
        if self._parts is None:
            return
        if self._watching is not None and self._watching.done() and not self._watching.cancelled():
            log.error("the watch over the blocklists ended: %s; it begins anew", self._watching.exception())
            self._watching = None
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._parts[1].watch())

    def report(self) -> list[Report]:
        """How nameservers and lists do."""
        if self._parts is None:
            return []
        resolver, zones, _ = self._parts
        return [(*health,) for health in resolver.health()] + zones.report()

    async def close(self) -> None:
        """Stop asking; who waits is told that it is not known."""
        if self._watching is not None:
            self._watching.cancel()
        if self._parts is not None:
            resolver, _, spf = self._parts
            spf.close()
            await resolver.close()

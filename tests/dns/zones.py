"""The zones of the RFC 7208 test suite, and a resolver that knows a zone by heart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import dns.rdatatype

from policyd.lookup import FOUND, NODATA, NXDOMAIN, UNKNOWN, Found
from tests.dns.server import DnsServer, key_of

TIMEOUT = "TIMEOUT"


class Zone:
    """Records by name and type, and what no nameserver answers."""

    def __init__(self, data: Mapping[str, list[Any]]) -> None:
        """
        :param data: ``zonedata`` of a scenario: ``TIMEOUT`` in place of a record means that no other type is answered,
            in place of a value that this one is not; SPF records are TXT records too unless there are some.
        """
        self.records: dict[tuple[str, str], list[Any]] = {}
        self.silent: set[tuple[str, str]] = set()
        for name, listed in data.items():
            # What cannot be a name cannot be asked for either.
            if all(0 < len(label) < 64 for label in name.split(".")):
                self._take(name.lower(), listed)

    def _take(self, name: str, listed: list[Any]) -> None:
        pairs = [pair for each in listed if isinstance(each, dict) for pair in each.items()]
        if not any(rdtype == "TXT" for rdtype, _ in pairs):
            pairs += [("TXT", value) for rdtype, value in pairs if rdtype == "SPF"]
        if TIMEOUT in listed:
            self.silent.add((name, ""))
        for rdtype, value in pairs:
            if value == TIMEOUT:
                self.silent.add((name, rdtype))
            elif value != "NONE":
                kept: Any = (value[0], value[1] or ".") if rdtype == "MX" else value or [""]
                self.records.setdefault((name, rdtype), []).append(kept)

    def serve(self, server: DnsServer) -> None:
        """Put everything into ``server``."""
        for (name, rdtype), values in self.records.items():
            server.add(name, rdtype, *values)


class Scenario(DnsServer):
    """A server that is silent about single types of a name."""

    def __init__(self, zone: Zone) -> None:
        super().__init__()
        zone.serve(self)
        self._silent = {(key_of(name), rdtype) for name, rdtype in zone.silent}
        self._answered = {(key_of(name), rdtype) for name, rdtype in zone.records}

    def _count(self, query: Any, counter: Any) -> Any:
        behaviour = super()._count(query, counter)
        question = query.question[0]
        name, rdtype = key_of(question.name), dns.rdatatype.to_text(question.rdtype)
        if (name, rdtype) in self._silent:
            return SILENT
        if (name, "") in self._silent and not {(name, rdtype), (name, "CNAME")} & self._answered:
            return SILENT
        return behaviour


class _Silent:
    silent = True
    tcp = "silent"


SILENT = _Silent()


class Heart:
    """Answers from a dictionary at once, and counts; what ``holds`` says is waited for first."""

    def __init__(
        self,
        records: Mapping[tuple[str, str], Any],
        holds: Callable[[str, str], Any] | None = None,
        ttl: int = 300,
    ) -> None:
        """
        :param records: the records of a question as a list, or why there is no answer as a text.
        :param holds: gives something to await before the answer to a question, or ``None``.
        """
        self.records = dict(records)
        self.asked: Counter[tuple[str, str]] = Counter()
        self.most_under_way = self._under_way = 0
        self._holds = holds
        self._ttl = ttl
        self._names = {name for name, _ in self.records}

    @property
    def questions(self) -> int:
        """How many there were."""
        return self.asked.total()

    async def ask(self, name: str, rdtype: str, due: float) -> Found:
        """See policyd.lookup.Resolver."""
        self.asked[name, rdtype] += 1
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            if self._holds is not None and (awaited := self._holds(name, rdtype)) is not None:
                await awaited
        finally:
            self._under_way -= 1
        value = self.records.get((name, rdtype))
        if isinstance(value, str):
            return Found(UNKNOWN, why=value)
        if value:
            return Found(FOUND, tuple(value), self._ttl)
        return Found(NODATA if name in self._names else NXDOMAIN, ttl=self._ttl)

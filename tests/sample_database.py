"""A database as the daemon leaves it, for tests of what policyctl reads: real engine, real settle, real ledger, no server."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from policyd.checks import Context, allow, bans, quota
from policyd.decision import Decision, Operation
from policyd.engine import Engine, Rule
from policyd.match import NetworkSet, parse_network
from policyd.request import Site
from policyd.settle import settle
from policyd.store import clock, partitions
from policyd.store.clock import Base, LedgerClock
from policyd.store.connect import open_for_daemon
from policyd.store.ledger import Ledger
from policyd.units import parse_limit

SITE = Site(
    domains=frozenset({"example.org"}),
    networks=NetworkSet([parse_network("127.0.0.0/8")]),
    default_domain="example.org",
)


T = TypeVar("T")


class Past(LedgerClock):
    """A clock that can be set back while rows are written; what is stored is the true time."""

    def __init__(self) -> None:
        super().__init__()
        self.ago = 0

    def now(self) -> int:
        return clock.wall() - self.ago

    def base(self, now: int) -> Base:
        return Base(clock.boot_id(), clock.boottime(), clock.wall(), clock.wall())


class Sample:
    """Asks like Postfix, and writes what comes of it."""

    def __init__(
        self,
        path: Path,
        limits: Sequence[str] = ("5 recipients per 1h",),
        mode: str = "enforce",
        engine: Engine | None = None,
    ) -> None:
        self.path = str(path)
        self.connection = open_for_daemon(self.path)
        self.clock = Past()
        self.ledger = Ledger(self.connection, self.clock, settle, lambda: 0, _no_report)
        options = quota.Options(limits=tuple(parse_limit(text) for text in limits))
        self.engine = engine or Engine(
            [
                Rule(
                    "allow",
                    "allow",
                    "any",
                    "enforce",
                    "skip",
                    allow.Check(allow.Options(), _context("allow")),
                ),
                Rule("bans", "bans", "any", "enforce", "skip", bans.Check(bans.Options(), _context("bans"))),
                Rule("quota", "quota", "submission", mode, "skip", quota.Check(options, _context("quota"))),
            ],
            "p0",
        )
        self._turn = 0

    def ask(self, ago: int = 0, **attributes: str) -> Decision:
        """The decision on one request, ``ago`` ms in the past; a submission of alice's unless said otherwise."""
        self._turn += 1
        self.clock.ago = ago
        given = {
            "protocol_state": "END-OF-MESSAGE",
            "instance": f"1a2b.65f0c0de.{self._turn:x}.0",
            "queue_id": f"4F3A1B{self._turn:04X}",
            "sender": "alice@example.org",
            "recipient": "bob@example.net",
            "recipient_count": "1",
            "size": "1000",
            "client_address": "192.0.2.7",
            "client_name": "laptop.example.net",
            "sasl_method": "plain",
            "sasl_username": "alice",
        } | attributes
        request = SITE.request(given, "inet:127.0.0.1:10047")
        proposal = _finish(self.engine.consult(request, self.clock.now(), self.ledger.steering))
        batch = self.ledger.run([Operation(request, proposal, 0, lambda _operation, _decision: None)])
        decision = batch.decisions[0]
        assert decision is not None
        return decision

    def next_partition(self, ago: int = 0) -> None:
        """Close the open partition, as the turn of the day does."""
        self.clock.ago = ago
        row = self.connection.execute("SELECT decision_id FROM ledger_state").fetchone()
        partitions.open_next(self.connection, self.clock.now(), row[0] + 1)
        self.ledger.partitions = partitions.catalogue(self.connection)

    def close(self) -> None:
        self.connection.close()


def _context(name: str) -> Context:
    return Context(name, "submission" if name == "quota" else "any", SITE)


def _no_report(operation: Operation, error: Exception) -> None:
    raise AssertionError(f"{operation.request}: {error}") from error


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits; a test may already run in a loop."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    raise AssertionError("the checks of the sample do not wait")

"""What tests put in the place of Postfix and the store: requests, chains, a ledger in memory, a writer asked in turn."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import queue
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from policyd.accounts import Account
from policyd.answer import Answer
from policyd.checks import Context, allow, bans, quota
from policyd.decision import Decision, Earlier, Operation, Settled
from policyd.engine import Engine, Rule
from policyd.inquiry import Inquiry
from policyd.match import NetworkSet, parse_network
from policyd.opinion import CounterKey, Memory, MemoryKey, Opinion, Proposal
from policyd.request import RCPT, Request, Site
from policyd.settle import settle
from policyd.steering import Entry, Grant, Steering, Suspension
from policyd.store.steering_sync import SteeringMirror
from policyd.store.writer import Writer
from policyd.units import HOUR, parse_limit
from policyd.window import Counter

T = TypeVar("T")

#: Time for the writer's thread to come back, s; reached only when it never will.
PATIENCE = 60.0
NOW = 1_800_000_000_000

SITE = Site(
    domains=frozenset({"example.org"}),
    networks=NetworkSet([parse_network("127.0.0.0/8")]),
    default_domain="example.org",
)

_turn = itertools.count(1)


def ask(listener: str = "inet:127.0.0.1:10047", **attributes: str) -> Request:
    """What Postfix asks at END-OF-MESSAGE about a message of alice's to one outsider, unless said otherwise."""
    turn = next(_turn)
    given = {
        "protocol_state": "END-OF-MESSAGE",
        "instance": f"1a2b.65f0c0de.{turn:x}.0",
        "queue_id": f"4F3A1B{turn:04X}",
        "sender": "alice@example.org",
        "recipient": "bob@example.net",
        "recipient_count": "1",
        "size": "1000",
        "client_address": "192.0.2.7",
        "client_name": "laptop.example.net",
        "sasl_method": "plain",
        "sasl_username": "alice",
    }
    return SITE.request(given | attributes, listener)


def from_outside(**attributes: str) -> Request:
    """The same about a message from outside to alice."""
    return ask(
        **{
            "sasl_method": "",
            "sasl_username": "",
            "sender": "bob@example.net",
            "recipient": "alice@example.org",
            **attributes,
        }
    )


def rcpt(instance: str, recipient: str, **attributes: str) -> Request:
    """What Postfix asks at RCPT, where the count is 0 and the size is what the client claims."""
    return ask(
        **{
            "protocol_state": "RCPT",
            "instance": instance,
            "recipient": recipient,
            "recipient_count": "0",
            **attributes,
        }
    )


def end_of(instance: str, count: int, recipient: str = "", **attributes: str) -> Request:
    """What Postfix asks at END-OF-MESSAGE; the recipient is empty with several."""
    return ask(
        **{
            "instance": instance,
            "recipient": recipient,
            "recipient_count": str(count),
            **attributes,
        }
    )


class Says:
    """A check that gives what it is told to."""

    stages: frozenset[str] = frozenset()
    steadfast = False

    def __init__(self, judge: Callable[[Request], Opinion | None]) -> None:
        self.judge = judge

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        return self.judge(request)


def rule(
    name: str, check: Any, mode: str = "enforce", direction: str = "any", on_error: str = "skip"
) -> Rule:
    return Rule(name, name, direction, mode, on_error, check)


def says(judge: Callable[[Request], Opinion | None], name: str = "later", mode: str = "enforce") -> Rule:
    return rule(name, Says(judge), mode)


def ban_rule(**options: Any) -> Rule:
    return rule("bans", bans.Check(bans.Options(**options), Context("bans", "any", SITE)))


def allow_rule(**options: Any) -> Rule:
    return rule("allow", allow.Check(allow.Options(**options), Context("allow", "any", SITE)))


def quota_rule(
    *limits: str, name: str = "quota", mode: str = "enforce", direction: str = "any", **options: Any
) -> Rule:
    given = quota.Options(limits=tuple(parse_limit(limit) for limit in limits), **options)
    return rule(name, quota.Check(given, Context(name, direction, SITE)), mode, direction)


def engine(*rules: Rule) -> Engine:
    return Engine(rules, "p0")


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits; the test may already run in a loop."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]
    raise AssertionError("this chain was not to wait")


def ban(kind: str, value: str, expires_at: int = 0) -> Entry:
    return Entry(kind, value, "spam", "root", 0, expires_at)


def grant(number: int, user: str, unit: str, amount: int, expires_at: int = 0) -> Grant:
    return Grant(number, user, unit, amount, "holiday mail", "root", 0, expires_at)


class FakeLedger:
    """The :class:`policyd.settle.State` in a dictionary, with a clock that the test sets."""

    def __init__(self, chain: Engine) -> None:
        self.chain = chain
        self.steering = Steering()
        self.now = NOW
        self.counters: dict[CounterKey, Counter] = {}
        self.rows: list[tuple[Request, Settled, Earlier]] = []
        #: All that was counted, whatever the time.
        self.total: dict[CounterKey, int] = {}
        self.facts: dict[MemoryKey, Memory] = {}
        self.accounts: dict[str, Account] = {}
        self.met: dict[tuple[str, str], int] = {}
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.history: list[tuple[str, str, str]] = []
        self._refs = 0

    def decide(
        self,
        request: Request,
        forced: Answer | None = None,
        previous: Earlier | None = None,
        proposal: Proposal | None = None,
    ) -> Settled:
        """Consult the chain and settle; the decision is remembered."""
        if proposal is None:
            proposal = self.consult(request)
        settled = settle(request, proposal, self.now, self, str, forced, previous)
        earlier = Earlier(
            len(self.rows) + 1,
            self.now,
            request.listener,
            request.stage,
            request.recipient,
            settled.verdict,
            str(settled.answer),
            settled.by,
            settled.charges,
        )
        self.rows.append((request, settled, earlier))
        return settled

    def consult(self, request: Request) -> Proposal:
        return finish(self.chain.consult(request, self.now, self.steering))

    def used(
        self, unit: str, value: str = "alice@example.org", scope: str = "user", window: int = 24 * HOUR
    ) -> int:
        counter = self.counters.get(CounterKey(scope, value, unit))
        return counter.used(window, self.now) if counter is not None else 0

    def all_used(self) -> dict[CounterKey, int]:
        found = {key: counter.used(24 * HOUR, self.now) for key, counter in self.counters.items()}
        return {key: used for key, used in found.items() if used}

    # --- policyd.settle.State ---

    def remembered(self, keys: Iterable[MemoryKey], now: int) -> dict[MemoryKey, Memory]:
        return {
            key: self.facts[key] for key in keys if key in self.facts and self.facts[key].expires_at > now
        }

    def remember(self, key: MemoryKey, fact: Memory) -> None:
        self.facts[key] = fact

    def counter(self, key: CounterKey) -> Counter:
        return self.counters.setdefault(key, Counter())

    def charge(self, key: CounterKey, widths: tuple[int, ...], amount: int, at: int) -> None:
        self.counter(key).charge(widths, amount, at)
        self.total[key] = self.total.get(key, 0) + amount

    def earlier(self, request: Request) -> Earlier | None:
        for earlier in reversed(self._of_instance(request)):
            if (
                earlier.stage == request.stage
                and (request.stage != RCPT or earlier.recipient == request.recipient)
                and earlier.at > self.now - HOUR
            ):
                return earlier
        return None

    def siblings(self, request: Request) -> Sequence[Earlier]:
        return [earlier for earlier in self._of_instance(request) if earlier.stage == RCPT]

    def _of_instance(self, request: Request) -> list[Earlier]:
        return [
            earlier
            for asked, _, earlier in self.rows
            if asked.instance and asked.instance == request.instance and asked.listener == request.listener
        ]

    def next_ref(self) -> str:
        self._refs += 1
        return f"R{self._refs:04d}"

    def account(self, user: str) -> Account:
        return self.accounts.get(user) or Account(user)

    def change(self, user: str) -> Account:
        return self.accounts.setdefault(user, Account(user))

    def strangers(self, user: str, recipients: Sequence[str]) -> list[str]:
        return [recipient for recipient in recipients if (user, recipient) not in self.met]

    def meet(self, user: str, recipients: Sequence[str], day: int) -> None:
        self.met.update({(user, recipient): day for recipient in recipients})

    def suspend(self, row: Suspension) -> None:
        self.steering.put("suspension", row)

    def tell(self, kind: str, subject: str, facts: Mapping[str, Any], once: int = 0) -> None:
        self.events.append((kind, subject, dict(facts)))

    def record(self, action: str, subject: str, detail: str) -> None:
        self.history.append((action, subject, detail))

    def next_id(self) -> int:
        return len(self.rows) + 1


def charged(rows: Iterable[tuple[Request, Settled]]) -> dict[CounterKey, int]:
    """What counters must hold: the charges in the newest row of each request, if it passed."""
    newest: dict[object, str] = {}
    for number, (request, settled) in enumerate(rows):
        key: object = number
        if request.instance:
            key = (
                request.listener,
                request.instance,
                request.stage,
                request.recipient if request.stage == RCPT else "",
            )
        newest[key] = "" if settled.verdict == "refuse" else settled.charges
    total: dict[CounterKey, int] = {}
    for text in newest.values():
        for scope, value, unit, amount in json.loads(text or "[]"):
            counter = CounterKey(scope, value, unit)
            total[counter] = total.get(counter, 0) + amount
    return total


class Store:
    """A writer on a real file, asked in turn by a test: what is submitted is waited for."""

    def __init__(self, path: Path, chain: Engine, **options: Any) -> None:
        self.path = str(path)
        self.chain = chain
        self.writer = Writer(self.path, settle, **options)
        self.handed: queue.Queue[tuple[Operation, Decision | None]] = queue.Queue()
        self.replaced = 0
        self._mirror: SteeringMirror | None = None
        self._running = False
        self.writer.deliver = self._deliver
        self.writer.replaced = self._replaced

    def __enter__(self) -> Self:
        self.writer.open()
        self.writer.start()
        self._running = True
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the writer; what was queued is settled."""
        if self._mirror is not None:
            self._mirror.connection.close()
            self._mirror = None
        if self._running:
            self._running = False
            self.writer.stop()

    def _deliver(self, handed: Sequence[tuple[Operation, Decision | None]]) -> None:
        for pair in handed:
            self.handed.put(pair)

    def _replaced(self) -> None:
        self.replaced += 1

    def operation(
        self, request: Request, forced: Answer | None = None, previous: Earlier | None = None
    ) -> Operation:
        """The operation for ``request``, its chain consulted with what the loop's thread knows."""
        proposal = finish(self.chain.consult(request, self.writer.clock.now(), self.steering()))
        operation = Operation(request, proposal, 0, lambda operation, decision: None)
        operation.forced, operation.previous = forced, previous
        return operation

    def steering(self) -> Steering:
        """What the loop's thread knows: read from the file, and what was known while it cannot be read."""
        if self._mirror is None:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=True)
            connection.execute("PRAGMA query_only = ON")
            self._mirror = SteeringMirror(connection)
        with contextlib.suppress(sqlite3.Error):
            self._mirror.refresh()
        return self._mirror.steering

    def run(self, *operations: Operation) -> list[Decision | None]:
        """Submit all at once, and wait for each."""
        for operation in operations:
            self.writer.submit(operation)
        decisions: dict[int, Decision | None] = {}
        for _ in operations:
            operation, decision = self.handed.get(timeout=PATIENCE)
            assert id(operation) not in decisions, "handed back twice"
            decisions[id(operation)] = decision
        return [decisions[id(operation)] for operation in operations]

    def decide(self, *requests: Request) -> list[Decision | None]:
        """The decisions on ``requests``, submitted at once."""
        return self.run(*[self.operation(request) for request in requests])

    def settled(self, request: Request) -> Settled:
        """What one request came to; fails when no decision was possible."""
        (decision,) = self.decide(request)
        assert decision is not None
        return decision.settled


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process writes and does not end."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


class Disk:
    """What is on disk, read by a connection of its own."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.path}?mode=rw", uri=True, isolation_level=None, timeout=5)
        try:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def used(
        self, unit: str, value: str = "alice@example.org", scope: str = "user", window: int = 24 * HOUR
    ) -> int:
        """What the counter on disk holds."""
        rows = self.query(
            "SELECT cells FROM counter WHERE scope = ? AND value = ? AND unit = ?", scope, value, unit
        )
        return _newest(Counter.unpack(rows[0][0]), window) if rows else 0

    def all_used(self, window: int = 24 * HOUR) -> dict[CounterKey, int]:
        """What every counter on disk holds."""
        rows = self.query("SELECT scope, value, unit, cells FROM counter")
        found = {CounterKey(*row[:3]): _newest(Counter.unpack(row[3]), window) for row in rows}
        return {key: used for key, used in found.items() if used}

    def sound(self) -> bool:
        """Whether SQLite finds nothing wrong with the file."""
        return self.query("PRAGMA integrity_check") == [("ok",)]

    def verdicts(self) -> list[str]:
        """The verdicts of all decisions, oldest first."""
        if not self.query("SELECT 1 FROM sqlite_master WHERE name = 'decision'"):
            return []
        return [row[0] for row in self.query("SELECT verdict FROM decision ORDER BY id")]


def _newest(counter: Counter, window: int) -> int:
    """All that the counter's finest series hold."""
    newest = max((slot + 1) * series.width for series in counter.all.values() for slot in series.cells)
    return counter.used(window, newest)


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """Run an ``async def`` test on the reactor's asyncio loop, where it may await asyncio's futures."""
    import asyncio

    import pytest_twisted
    from twisted.internet.defer import Deferred

    @pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        await Deferred.fromFuture(asyncio.ensure_future(test(*args, **kwargs)))

    return run

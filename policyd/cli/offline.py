"""Decides a request here, as the daemon would at this moment: its engine, its settle, its ledger; nothing is written."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from policyd.accounts import Account
from policyd.answer import escape
from policyd.checks import allow, bans
from policyd.cli.examples import SMALL, typical
from policyd.decision import Decision, Operation
from policyd.engine import Rule, effective_mode
from policyd.errors import ConfigError, UserError
from policyd.inquiry import Inquiry
from policyd.names import Names
from policyd.opinion import ENFORCE, OFF, CounterKey, Proposal, Quota
from policyd.request import END_OF_MESSAGE, Request
from policyd.settle import NO_REF, settle
from policyd.steering import EVERY_CHECK, Entry, Steering
from policyd.store import known, read
from policyd.store.clock import LedgerClock, stored_base
from policyd.store.ledger import Ledger
from policyd.trial import limits_of
from policyd.units import Limit

if TYPE_CHECKING:
    from policyd.config import Config

T = TypeVar("T")


class Usage(NamedTuple):
    """One limit of one check, and how far it is used."""

    check: str
    mode: str
    scope: str
    value: str
    #: The unit as it is counted: ``recipients/external``.
    counted: str
    limit: Limit
    #: The limit with the grants in force.
    allowed: int
    used: int
    #: Ledger time (ms) when a small message fits: now, if it does; 0: never.
    fits_at: int
    #: When the next part returns, and when all has; 0: nothing is used.
    returns_from: int
    all_back: int

    @property
    def room(self) -> int:
        """What still fits."""
        return max(0, self.allowed - self.used)

    @property
    def full(self) -> bool:
        """Whether a small message does not fit."""
        return self.room < SMALL[self.limit.unit]


class Offline:
    """The policy of the configuration over what the database holds now."""

    def __init__(
        self, config: Config, connection: sqlite3.Connection, warn: Callable[[str], None] | None = None
    ) -> None:
        """
        :param warn: told of checks that cannot be built, and are left out then.
        :raises ConfigError: a check cannot be built, and nobody is to be warned.
        """
        from policyd.service import build_engine

        self.config = _sound(config, warn)
        self.connection = connection
        self.engine = build_engine(self.config)
        #: Whether every check of the configuration takes part.
        self.complete = len(self.engine.rules) == len(config.checks)
        self._failure = ""
        self._ledger = Ledger(
            connection, LedgerClock(stored_base(connection)), settle, time.perf_counter_ns, self._failed
        )
        self.now = self._ledger.clock.now()

    def _failed(self, operation: Operation, error: Exception) -> None:
        self._failure = f"{type(error).__name__}: {error}"

    @property
    def steering(self) -> Steering:
        """The steering data in force."""
        return self._ledger.steering

    def decide(self, request: Request) -> Decision:
        """The decision that the daemon would make now. Its reference is not given out.

        :raises UserError: the decision failed.
        """
        received = time.perf_counter_ns()
        proposal = finished(self._consult(request))
        operation = Operation(request, proposal, received, lambda _operation, _decision: None)
        # Reads and decides, and leaves the writing to the caller, who does not.
        (decision,) = self._ledger.run_in_memory([operation]).decisions
        if decision is None:
            raise UserError(f"the decision failed: {self._failure}")
        settled = decision.settled
        if settled.ref:
            text = settled.answer.text.replace(settled.ref, NO_REF)
            settled = settled._replace(answer=settled.answer._replace(text=text), ref=None)
        return decision._replace(settled=settled._replace(mark=settled.mark.replace("memory", "").strip()))

    async def _consult(self, request: Request) -> Proposal:
        """The chain's opinions, with a resolver of its own: that of the configuration, asked as the daemon asks it."""
        from policyd.service import build_engine

        config = self.config
        names = Names()
        names.prepare(config)
        try:
            engine = build_engine(config, names)
            names.take_over(config, [rule.check for rule in engine.rules])
            due = time.monotonic() + config.server.deadline / 1000
            return await engine.consult(request, self.now, self.steering, due)
        finally:
            await names.close()

    def mode(self, rule: Rule) -> str:
        """The mode in which the rule runs now."""
        return effective_mode(rule, self.steering.mode_of(EVERY_CHECK, self.now), self.steering, self.now)

    def usage(self, request: Request) -> list[Usage]:
        """Every limit that ``request`` would be tested against, in the order of the configuration."""
        found = []
        for rule in self.engine.chain(request.direction, END_OF_MESSAGE):
            mode = self.mode(rule)
            if mode == OFF:
                continue
            opinion = finished(rule.check.check(request, self.now, self.steering, Inquiry()))
            if opinion is not None and opinion.quota is not None:
                quota = opinion.quota
                limits = limits_of(quota, self.steering, self.account(quota.value), self.now)
                found += [self._used(rule.name, mode, quota, limit) for limit in limits]
        return found

    def account(self, user: str) -> Account:
        """What is known of the account; a new one when there is none."""
        accounts = self._ledger.accounts
        accounts.read(self.connection, [user], [])
        return accounts.get(user)

    def _allowed(self, rule: Rule, request: Request) -> str:
        if not isinstance(rule.check, allow.Check):
            return ""
        opinion = rule.check.judge(request, self.now, self.steering)
        return f"{escape(opinion.reason)} (check {rule.name})" if opinion is not None else ""

    def bans(self, request: Request) -> tuple[list[Entry], list[tuple[Entry, str]]]:
        """The bans that hold for ``request``; and those that would, each with the allow before it that lets it pass."""
        hold: list[Entry] = []
        masked: list[tuple[Entry, str]] = []
        allowed = ""
        for rule in self.engine.chain(request.direction, request.stage):
            if self.mode(rule) != ENFORCE:
                continue
            allowed = allowed or self._allowed(rule, request)
            if isinstance(rule.check, bans.Check):
                for ban in rule.check.fitting(request, self.steering.bans, self.now):
                    if allowed:
                        masked.append((ban, allowed))
                    else:
                        hold.append(ban)
        return hold, masked

    def _used(self, check: str, mode: str, quota: Quota, limit: Limit) -> Usage:
        counted = limit.unit if quota.external is None else f"{limit.unit}/external"
        counter = known.counter(self.connection, CounterKey(quota.scope, quota.value, counted))
        used = counter.used(limit.window, self.now)
        small = SMALL[limit.unit]
        allowed = limit.amount + quota.grants.get(limit.unit, 0)

        def room_at(excess: int) -> int:
            return counter.room_at(limit.window, self.now, excess)

        return Usage(
            check,
            mode,
            quota.scope,
            quota.value,
            counted,
            limit,
            allowed,
            used,
            room_at(used + small - allowed) if allowed >= small else 0,
            room_at(1) if used else 0,
            room_at(used) if used else 0,
        )

    def typical(
        self, account: str, stage: str = END_OF_MESSAGE, sender: str = ""
    ) -> tuple[Request, read.Logged | None]:
        """A small message of ``account``, sent as its last one was (but for ``sender``), and the decision on that."""
        return typical(self.config.site, self.connection, account, stage, sender)


def _sound(config: Config, warn: Callable[[str], None] | None) -> Config:
    """``config`` with those checks that can be built, after a warning where one cannot."""
    from policyd.service import build_engine

    try:
        build_engine(config)
        return config
    except ConfigError as error:
        if warn is None:
            raise
        warn(f"{'; '.join(error.problems)}; going on without. 'policyctl config check' tells all")
    sound = []
    for section in config.checks:
        with contextlib.suppress(ConfigError):
            build_engine(replace(config, checks=(section,)))
            sound.append(section)
    return replace(config, checks=tuple(sound))


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, whether or not a loop runs in this thread."""
    import asyncio

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def logged(decision: Decision) -> read.Logged:
    """The decision as the row that it would be."""
    request, settled = decision.request, decision.settled
    return read.Logged(
        decision.id,
        decision.at,
        decision.wall_at,
        request.stage,
        request.direction,
        request.listener,
        request.policy_context,
        request.instance,
        request.queue_id,
        request.account,
        request.client_address,
        request.client_name,
        request.helo_name,
        request.sender,
        request.recipient,
        request.recipient_count,
        request.size,
        str(settled.answer),
        settled.verdict,
        settled.by,
        settled.reason,
        settled.ref,
        settled.would,
        settled.detail,
        settled.charges,
        decision.policy,
        decision.micros,
        settled.mark,
    )

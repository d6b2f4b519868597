"""Decides batches with what is in memory: what settle asks and tells (policyd.state.State), and how that is taken back.

Touches no database. What is not in memory is noticed when settle asks for it; then the batch does not stand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from policyd.accounts import Account
from policyd.alert import Event
from policyd.answer import Answer
from policyd.decision import Decision, Earlier, Operation, Settled
from policyd.opinion import CounterKey, Memory, MemoryKey, Proposal
from policyd.request import RCPT, Request
from policyd.steering import Steering, Suspension
from policyd.store.accounts import Accounts
from policyd.store.batch import Batch, Notes, Stage, reference
from policyd.store.clock import LedgerClock, wall
from policyd.store.counters import Counters
from policyd.store.instances import IDENTITY, Instances, earlier_of
from policyd.store.memory import Memories
from policyd.store.steering_sync import SteeringMirror
from policyd.watch import AUTHOR
from policyd.window import Counter

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: Events of which it is known when they were told last.
TOLD = 10_000


class Settle(Protocol):
    """:func:`policyd.settle.settle`, handed in by the assembly."""

    def __call__(
        self,
        request: Request,
        proposal: Proposal,
        now: int,
        state: Any,
        local_time: Callable[[int], str],
        forced: Answer | None = None,
        previous: Earlier | None = None,
    ) -> Settled: ...


class Decider:
    """The state that settle works on. One thread at a time has it in hand (policyd.store.writer)."""

    def __init__(
        self,
        mirror: SteeringMirror,
        clock: LedgerClock,
        settle: Settle,
        stopwatch: Callable[[], int],
        report: Callable[[Operation, Exception], None],
    ) -> None:
        self.mirror = mirror
        self.clock = clock
        self.counters = Counters()
        self.memories = Memories()
        self.accounts = Accounts()
        self.instances = Instances()
        self._settle = settle
        self._stopwatch = stopwatch
        self._report = report
        self._notes = Notes()
        #: When an event was told last, by kind and what it is about; ledger time.
        self._told: dict[tuple[str, str], int] = {}
        #: What becomes of the batch that is decided with what is in memory alone; ``None``: it was read before.
        self._staging: Stage | None = None
        self._ref_seq = 0
        self._last_id = 0

    @property
    def steering(self) -> Steering:
        """The steering data as of this transaction."""
        return self.mirror.steering

    def decide(self, operations: Sequence[Operation], mark: str = "") -> Batch:
        """Settle each operation in memory, in order; an operation that fails does not fail its neighbours."""
        self._notes = Notes()
        decisions: list[Decision | None] = []
        # One stamp for the batch: what is decided together is decided at the same moment.
        now, wall_now, stopped = self.clock.now(), wall(), self._stopwatch()
        settle, local_time = self._settle, self.clock.local_time
        for operation in operations:
            request, proposal = operation.request, operation.proposal
            try:
                settled = settle(
                    request, proposal, now, self, local_time, operation.forced, operation.previous
                )
            except Exception as error:  # noqa: BLE001, a bug in one operation must not take the batch with it
                self._report(operation, error)
                decisions.append(None)
                continue
            if mark:
                settled = settled._replace(mark=f"{settled.mark} {mark}".strip())
            self._last_id += 1
            micros = (stopped - operation.received) // 1000
            decision = _new(
                Decision, (self._last_id, now, wall_now, request, settled, proposal.policy, micros)
            )
            decisions.append(decision)
            if request.instance:
                self.instances.add(decision)
            if self._staging is not None and self._staging is not Stage.STAGED:
                # All of it will be decided again.
                break
        return Batch(
            decisions,
            self.counters.decided(),
            self.memories.decided(),
            self.accounts.decided(),
            self._notes,
        )

    def take_back(self, batch: Batch) -> None:
        """Undo a batch in memory, the newest one, as if it had never been decided."""
        self.forget_decisions(batch)
        # Nobody has seen these numbers yet.
        self._last_id -= sum(decision is not None for decision in batch.decisions)
        self.counters.undo(batch.charges)

    def forget_decisions(self, batch: Batch) -> None:
        """Undo what was remembered of a batch that will be decided again."""
        for decision in batch.decisions:
            if decision is not None:
                self.instances.forget(decision)
        batch.facts.clear()
        batch.accounts.clear()
        for row in batch.notes.suspensions:
            self.steering.drop("suspension", (row.user,))
        for _, _, kind, subject, _, facts in batch.notes.events:
            self._told.pop(_thing(kind, subject, json.loads(facts)), None)

    # --- what settle asks (policyd.state.State) ----------------------------------------------------------------------

    def _missing(self) -> None:
        """Something has to be read first: what is decided now will not stand."""
        self._staging = Stage.UNREAD

    def _not_in_memory(self, key: CounterKey) -> Counter:
        """A counter that should have been read before."""
        return self.counters.begin(key)

    def counter(self, key: CounterKey) -> Counter:
        """See :class:`policyd.state.State`."""
        counter = self.counters.of(key)
        if counter is None:
            if self._staging is not None:
                self._missing()
                return Counter()
            counter = self._not_in_memory(key)
        return counter

    def charge(self, key: CounterKey, widths: tuple[int, ...], amount: int, at: int) -> None:
        """See :class:`policyd.state.State`."""
        self.counters.charge(key, self.counter(key), widths, amount, at)

    def earlier(self, request: Request) -> Earlier | None:
        """See :class:`policyd.state.State`."""
        held = self.instances.of(request)
        return earlier_of(held, request, self.clock.now() - IDENTITY) if held else None

    def siblings(self, request: Request) -> Sequence[Earlier]:
        """See :class:`policyd.state.State`."""
        return [found for found in self.instances.of(request) if found.stage == RCPT]

    def remembered(self, keys: Iterable[MemoryKey], now: int) -> Mapping[MemoryKey, Memory]:
        """See :class:`policyd.state.State`."""
        if self._staging is not None and self.memories.unread(keys):
            self._missing()
        return self.memories.known(keys, now)

    def remember(self, key: MemoryKey, fact: Memory) -> None:
        """See :class:`policyd.state.State`."""
        self.memories.put(key, fact)

    def next_ref(self) -> str:
        """See :class:`policyd.state.State`."""
        self._ref_seq += 1
        return reference(self._ref_seq)

    def account(self, user: str) -> Account:
        """See :class:`policyd.state.State`."""
        account = self.accounts.held(user)
        if account is None:
            if self._staging is not None:
                self._missing()
            return Account(user)
        return account

    def change(self, user: str) -> Account:
        """See :class:`policyd.state.State`."""
        fresh = self.accounts.fresh(user)
        if fresh is None:
            known = self.accounts.held(user)
            if known is None and self._staging is not None:
                self._missing()
            fresh = self.accounts.change(user, known)
        return fresh

    def strangers(self, user: str, recipients: Sequence[str]) -> list[str]:
        """See :class:`policyd.state.State`."""
        if self._staging is not None and self.accounts.unread(user, recipients):
            self._missing()
        return self.accounts.strangers(user, recipients)

    def meet(self, user: str, recipients: Sequence[str], day: int) -> None:
        """See :class:`policyd.state.State`."""
        self.accounts.meet(user, recipients, day)

    def suspend(self, row: Suspension) -> None:
        """See :class:`policyd.state.State`."""
        if self._staging is not None:
            # It changes the steering data, which is done in a transaction of its own.
            if self._staging is Stage.STAGED:
                self._staging = Stage.ALONE
            return
        self.steering.put("suspension", row)
        self._notes.suspensions.append(row)

    def tell(self, kind: str, subject: str, facts: Mapping[str, Any], once: int = 0) -> None:
        """See :class:`policyd.state.State`."""
        now, key = self.clock.now(), _thing(kind, subject, facts)
        if once:
            if now - self._told.get(key, now - once - 1) <= once:
                return
        if len(self._told) >= TOLD:
            del self._told[next(iter(self._told))]
        self._told[key] = now
        text = json.dumps(facts, ensure_ascii=False)
        self._notes.events.append((now, wall(), kind, subject, 0, text))

    def record(self, action: str, subject: str, detail: str) -> None:
        """See :class:`policyd.state.State`."""
        self._notes.history.append((self.clock.now(), wall(), AUTHOR, action, subject, detail, ""))

    def next_id(self) -> int:
        """See :class:`policyd.state.State`."""
        return self._last_id + 1


def _thing(kind: str, subject: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """What an event tells of: another limit of the same account is another thing."""
    return kind, Event(0, 0, 0, kind, subject, False, facts).thing

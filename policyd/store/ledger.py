"""The ledger: one batch of operations read, decided and written, in one transaction.

As a rule the loop's thread decides with what is in memory (:meth:`Ledger.stage`), and the writer's thread reads what is
missing (:meth:`Ledger.read`) and writes what was decided (:meth:`Ledger.write`): begin; see whether the admin has
changed something; write everything, with one statement each; commit. :meth:`Ledger.run` is all of it in one
transaction, for when that will not do. Statements that take a whole batch let go of the interpreter once instead of
once a row, so the loop goes on.

The counters in memory are a cache of the counter table. When a commit fails, the decisions of the batch stand (they
are about to be answered) and go to the backlog: decisions and charges that are not on disk yet. Transactions that
succeed later write it in parts, each on top of what the table says then: so nothing is lost, nothing is counted twice, and
a backlog for which there is not enough room is written as far as there is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from policyd.accounts import Account
from policyd.alert import Event
from policyd.answer import Answer
from policyd.decision import MEMORY, REFUSED, Decision, Earlier, Operation, Settled
from policyd.opinion import CounterKey, Memory, MemoryKey, Proposal
from policyd.request import END_OF_MESSAGE, RCPT, Request
from policyd.settle import recipients_of
from policyd.steering import Steering, Suspension
from policyd.store import partitions
from policyd.store.accounts import Accounts, Layer, Pair
from policyd.store.backlog import Backlog, some
from policyd.store.batch import (
    REF_SPACE,
    Batch,
    Charge,
    Notes,
    NotWritten,
    Stage,
    Staged,
    Unread,
    reference,
    row_of,
)
from policyd.store.clock import LedgerClock, wall
from policyd.store.instances import IDENTITY, Instances, earlier_of
from policyd.store.memory import Facts, Memories
from policyd.store.statements import chunked, flat, insert_decisions, select_counters, upsert_counters
from policyd.store.steering_sync import SteeringMirror
from policyd.store.suspensions import end_expired
from policyd.trial import counted, limits_of
from policyd.watch import AUTHOR
from policyd.window import Counter

log = logging.getLogger("policyd.store")

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: Counters kept in memory.
CACHED = 8_000
#: Events of which it is known when they were told last.
TOLD = 10_000
#: Once a request's account is read, its limits and recipients are known, and then what they need.
MOST_READS = 4


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


class Ledger:
    """The state that settle works on, over one connection. One thread at a time has it in hand (policyd.store.writer)."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        clock: LedgerClock,
        settle: Settle,
        stopwatch: Callable[[], int],
        report: Callable[[Operation, Exception], None],
    ) -> None:
        self.connection = connection
        self.clock = clock
        self.mirror = SteeringMirror(connection)
        self.memories = Memories()
        self.accounts = Accounts()
        self.backlog = Backlog()
        self._settle = settle
        self._stopwatch = stopwatch
        self._report = report
        self._counters: dict[CounterKey, Counter] = {}
        #: As the table has them, of the parts of the backlog that are written.
        self._healed: dict[CounterKey, Counter] = {}
        self._dirty: set[CounterKey] = set()
        self._charges: list[Charge] = []
        self._notes = Notes()
        #: When an event was told last, by kind and what it is about; ledger time.
        self._told: dict[tuple[str, str], int] = {}
        self.instances = Instances()
        #: Rows of a partition at the most.
        self.partition_rows = partitions.FULL
        self._readable = True
        #: What becomes of the batch that is decided with what is in memory; ``None``: none is.
        self._staging: Stage | None = None
        self._ref_seq = 0
        self._last_id = 0
        self._load()

    def _load(self) -> None:
        row = self.connection.execute("SELECT ref_seq, decision_id FROM ledger_state").fetchone()
        known = partitions.catalogue(self.connection)
        self.mirror.load()
        # Numbers that were given out in memory are not given out again.
        if row is None and not self._ref_seq:
            # A new database begins anywhere: a reference in an old bounce must not find a decision of this one.
            self._ref_seq = secrets.randbelow(REF_SPACE)
        self._ref_seq, self._last_id = (
            max(self._ref_seq, row[0] if row else 0),
            max(self._last_id, row[1] if row else 0),
        )
        self.partitions = known

    def reopened(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection, perhaps to another file; what is in memory and unwritten stays."""
        before, kept = self.connection, self._counters
        self.connection = self.mirror.connection = connection
        self._counters = {}
        self._healed = {}
        try:
            self._load()
            self._renumber()
            self._replay(self.backlog.charges())
            self.memories.reopened()
            self.accounts.reopened()
            for row in self.backlog.suspensions():
                self.steering.put("suspension", row)
        except BaseException:
            self.connection = self.mirror.connection = before
            self._counters = kept
            raise

    def _renumber(self) -> None:
        """Give what is unwritten numbers above those on disk, which a start that could read nothing did not know."""
        row = self.connection.execute("SELECT decision_id FROM ledger_state").fetchone()
        first = self.backlog.first_id()
        shift = row[0] - first + 1 if row and first else 0
        if shift > 0:
            self.backlog.renumber(shift)
            self._last_id += shift

    def begin_anew(self, connection: sqlite3.Connection) -> None:
        """Go on in a new, empty database: what is known in memory, counters too, is written there. The rows of decisions
        and the facts stay in the backlog.

        :raises sqlite3.Error: it stays in memory.
        """
        self.connection = self.mirror.connection = connection
        self._load()
        self.memories.reopened()
        known = self.accounts.known()
        self.begin()
        try:
            self._write(*self._prepare([], self._counters), {}, known, self.backlog.notes())
            self.connection.execute("COMMIT")
        except sqlite3.Error:
            self.rollback()
            self.partitions = []
            raise
        self._healed = dict(self._counters)
        self.accounts.written(known)
        self.accounts.unwritten.clear()
        self.backlog.counted()
        self._dirty.clear()

    @property
    def steering(self) -> Steering:
        """The steering data as of this transaction."""
        return self.mirror.steering

    # --- one batch ---------------------------------------------------------------------------------------------------

    def run(self, operations: Sequence[Operation]) -> Batch:
        """Read, decide and commit.

        :raises sqlite3.Error: nothing of it is on disk and nothing was decided.
        :raises NotWritten: it was decided, and is not on disk.
        """
        self.begin()
        try:
            self._read(operations)
        except BaseException:
            self.rollback()
            raise
        batch = self.decide(operations)
        try:
            with self._undone_if_it_fails(batch):
                self._write(
                    *self._prepare(batch.decisions, self._dirty), batch.facts, batch.accounts, batch.notes
                )
                generation = self.mirror.current_generation() if batch.notes.suspensions else 0
                self.connection.execute("COMMIT")
        except NotWritten:
            raise
        except BaseException:
            self.forget_decisions(batch)
            raise
        if generation:
            # The only ones who wrote were we, and the steering data in memory say it already.
            self.steering.generation = generation
        self._dirty.clear()
        self.memories.written(batch.facts)
        self.accounts.written(batch.accounts)
        self.trim()
        return batch

    def stage(self, operations: Sequence[Operation], staged: Staged) -> Stage:
        """Decide with what is in memory and add it to ``staged``; if that cannot be nothing has happened.

        Touches no database.
        """
        if self.instances.unread(operation.request for operation in operations):
            return Stage.UNREAD
        if not staged.operations:
            staged.generation = self.steering.generation
        # What is missing nearly never is; so it is not looked for before, but noticed when settle asks for it.
        self._staging = Stage.STAGED
        batch = self.decide(operations)
        became, self._staging = self._staging, None
        try:
            if became is not Stage.STAGED:
                self._undo(batch)
                return became
            rows, counters = self._prepare(batch.decisions, self._dirty)
        except BaseException:
            self._undo(batch)
            raise
        finally:
            self._dirty.clear()
        staged.operations += operations
        staged.batch.decisions.extend(batch.decisions)
        staged.batch.charges.extend(batch.charges)
        self.memories.pile(batch.facts, staged.batch.facts)
        self.accounts.pile(batch.accounts, staged.batch.accounts)
        staged.batch.notes.take(batch.notes)
        staged.rows += rows
        for row in counters:
            staged.counters[row[:3]] = row
        self.instances.trim(self.clock.now(), len(staged.operations))
        return Stage.STAGED

    def read(self, operations: Sequence[Operation], staged: Staged) -> bool:
        """Read what :meth:`stage` misses for these; whether there was anything to read.

        :raises sqlite3.Error: nothing was learnt.
        """
        self.trim(staged.counters)
        return self._read(operations)

    def write(self, staged: Staged) -> bool:
        """Write and commit what was staged, unless the admin has changed something since.

        Works on the connection alone, so that meanwhile more can be staged.

        :raises NotWritten: it was decided, and is not on disk.
        :raises sqlite3.Error: not even a transaction could be begun.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        with self._undone_if_it_fails(staged.batch):
            if self.mirror.current_generation() != staged.generation:
                self.rollback()
                return False
            batch = staged.batch
            self._write(staged.rows, list(staged.counters.values()), batch.facts, batch.accounts, batch.notes)
            self.connection.execute("COMMIT")
        self.memories.written(staged.batch.facts)
        self.accounts.written(staged.batch.accounts)
        return True

    def undo(self, staged: Staged) -> None:
        """Take back in memory what was staged, the newest first, as if it had never been decided."""
        self._undo(staged.batch)

    def _undo(self, batch: Batch) -> None:
        self.forget_decisions(batch)
        # Nobody has seen these numbers yet.
        self._last_id -= sum(decision is not None for decision in batch.decisions)
        for key, _, amount, at in reversed(batch.charges):
            counter = self._counters.get(key)
            if counter is not None:
                counter.add(-amount, at)

    @contextlib.contextmanager
    def _undone_if_it_fails(self, batch: Batch) -> Iterator[None]:
        """Trouble of the database's lets the decisions stand: :class:`NotWritten`."""
        before = self.partitions
        try:
            yield
        except BaseException as error:
            self.rollback()
            self.partitions = before
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.ProgrammingError):
                raise NotWritten(batch) from error
            raise

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

    def run_in_memory(self, operations: Sequence[Operation]) -> Batch:
        """Decide without the disk, as far as it can be read; the caller keeps the batch in the backlog."""
        try:
            self._refresh()
            self._read(operations)
        except sqlite3.Error:
            # What cannot be read counts as empty; what is not known cannot refuse.
            self._readable = False
            self.instances.unreadable(operation.request for operation in operations)
            self.accounts.unreadable(self._accounts_of(operations))
        try:
            return self.decide(operations, MEMORY)
        finally:
            self._readable = True
            self._bound()

    def passed_before(self, operation: Operation) -> bool:
        """Whether this is a repetition of what passed, which counts nothing."""
        with contextlib.suppress(sqlite3.Error):
            self._read([operation])
        earlier = self.earlier(operation.request) if operation.request.instance else None
        return earlier is not None and earlier.verdict != REFUSED

    def refusal(self, operation: Operation) -> Decision | None:
        """The decision if a ban refuses the request, else ``None``: nothing is counted, and nothing remembered."""
        heard = tuple(
            each for each in operation.proposal.heard if each.opinion is None or not each.opinion.quota
        )
        asking = Operation(
            operation.request, operation.proposal._replace(heard=heard), operation.received, operation.done
        )
        (decision,) = self.decide([asking], MEMORY).decisions
        if decision is not None and decision.settled.verdict != REFUSED:
            self.instances.forget(decision)
            return None
        return decision

    def keep(self, batch: Batch) -> None:
        """Put a decided batch into the backlog."""
        self.backlog.keep(batch)
        self._dirty.clear()
        self.memories.keep(batch.facts)
        self.accounts.keep(batch.accounts)

    def _bound(self) -> None:
        """Keep memory within its bounds while nothing can be written."""
        self.instances.trim(self.clock.now(), len(self.backlog))
        if len(self._counters) > 2 * CACHED:
            unwritten = {charge.key for charge in self.backlog.charges()}
            self._counters = {key: counter for key, counter in self._counters.items() if key in unwritten}

    def write_part(self, most: int) -> bool:
        """Write some of what is in the backlog, counted on top of what the counter table says now; whether there is more.

        :param most: decisions of it at the most, unless a single batch had more; and as many facts, accounts, recipients.
        :raises sqlite3.Error: it stays in the backlog.
        """
        pieces, facts = self.backlog.first(most), some(self.memories.unwritten, most)
        accounts, unwritten = Layer(), self.accounts.unwritten
        accounts.accounts, accounts.met = some(unwritten.accounts, most), some(unwritten.met, most)
        charges = [charge for piece in pieces for charge in piece.charges]
        decisions = [decision for piece in pieces for decision in piece.decisions]
        notes = Notes()
        for piece in pieces:
            notes.take(piece.notes)
        before = self.partitions
        self.begin()
        # What is in memory has counted all of the backlog.
        whole, self._counters = self._counters, {}
        try:
            self._replay(charges)
            rows = self._prepare(decisions, {charge.key for charge in charges})
            self._write(*rows, facts, accounts, notes)
            self.connection.execute("COMMIT")
            self._healed.update(self._counters)
        except sqlite3.Error:
            self.rollback()
            self.partitions = before
            raise
        finally:
            self._counters = whole
        self.backlog.written(pieces)
        for key in facts:
            del self.memories.unwritten[key]
        self.memories.written(facts)
        for user in accounts.accounts:
            del unwritten.accounts[user]
        for pair in accounts.met:
            del unwritten.met[pair]
        self.accounts.written(accounts)
        self._dirty.clear()
        if self.backlog or self.memories.unwritten or unwritten:
            return True
        # Now the table alone says what was counted; what it says is kept, should it soon be out of reach again.
        self._counters, self._healed = self._healed, {}
        self.trim()
        return False

    def _replay(self, charges: Iterable[Charge]) -> None:
        charges = list(charges)
        self._read_counters({charge.key for charge in charges})
        for charge in charges:
            counter = self._counters[charge.key]
            counter.charge(charge.widths, charge.amount, charge.at)

    def begin(self) -> None:
        """Begin the transaction and take in what policyctl changed; from here on nobody else can."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self._refresh()
        except BaseException:
            self.rollback()
            raise

    def _refresh(self) -> None:
        generation = self.steering.generation
        if reset := set(self.mirror.refresh()):
            self._forget(reset)
            self._replay(charge for charge in self.backlog.charges() if charge.key in reset)
        if self.steering.generation != generation:
            self.memories.changed()
            self.accounts.forget(self.mirror.changed_accounts)

    def rollback(self) -> None:
        """End a transaction that failed; SQLite may have ended it already."""
        if self.connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")

    def recover(self) -> None:
        """After a failure: no transaction stays open, and what is cached is what the table says."""
        self.rollback()
        self.memories.recover()
        self.accounts.recover()
        with contextlib.suppress(sqlite3.Error):
            self.forget_counters()

    def forget_counters(self) -> None:
        """Drop the cache, when it may say something else than the table."""
        self._counters.clear()
        self._dirty.clear()
        self._replay(self.backlog.charges())

    def decide(self, operations: Sequence[Operation], mark: str = "") -> Batch:
        """Settle each operation in memory, in order; an operation that fails does not fail its neighbours."""
        self._charges, self._notes = [], Notes()
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
        return Batch(decisions, self._charges, self.memories.decided(), self.accounts.decided(), self._notes)

    def trim(self, but: Container[tuple[str, ...]] = ()) -> None:
        """Bring the caches within their bounds.

        :param but: counters that the table does not know yet.
        """
        self.instances.trim(self.clock.now(), len(self.backlog))
        self.memories.trim()
        self.accounts.trim()
        excess = len(self._counters) - CACHED
        if excess > 0:
            for key in list(self._counters)[: excess + CACHED // 8]:
                if key not in but:
                    del self._counters[key]

    # --- what settle asks (policyd.state.State) ---------------------------------------------------------------------

    def _missing(self) -> None:
        """Something has to be read first: what is decided now will not stand."""
        self._staging = Stage.UNREAD

    def counter(self, key: CounterKey) -> Counter:
        """See :class:`policyd.state.State`."""
        counter = self._counters.get(key)
        if counter is None:
            if self._staging is not None:
                self._missing()
                return Counter()
            if self._readable:
                self._read_counters((key,))
            counter = self._counters.setdefault(key, Counter())
        return counter

    def charge(self, key: CounterKey, widths: tuple[int, ...], amount: int, at: int) -> None:
        """See :class:`policyd.state.State`."""
        self.counter(key).charge(widths, amount, at)
        self._dirty.add(key)
        self._charges.append(_new(Charge, (key, widths, amount, at)))

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

    # --- reading and writing in bulk ---------------------------------------------------------------------------------

    def _forget(self, counters: Iterable[CounterKey]) -> None:
        for key in counters:
            self._counters.pop(key, None)
            self._healed.pop(key, None)

    def _read(self, operations: Sequence[Operation]) -> bool:
        """Read what is missing for these; whether anything was. What is read may show that more is missing."""
        was_missing = False
        for _ in range(MOST_READS):
            unread = self._unread(operations)
            if not any(unread):
                break
            was_missing = True
            self._read_these(unread)
        return was_missing

    def _read_these(self, unread: Unread) -> None:
        if unread.counters:
            self._read_counters(unread.counters)
        if unread.instances:
            since = self.clock.now() - IDENTITY
            self.instances.read(self.connection, self.partitions, unread.instances, since)
        if unread.facts:
            self.memories.read(self.connection, unread.facts)
        if unread.accounts or unread.pairs:
            self.accounts.read(self.connection, unread.accounts, unread.pairs)

    def _unread(self, operations: Sequence[Operation]) -> Unread:
        keys: set[CounterKey] = set()
        facts: list[MemoryKey] = []
        users: set[str] = set()
        pairs: set[Pair] = set()
        counters, accounts = self._counters, self.accounts
        steering, now = self.steering, self.clock.now()
        instances = self.instances.unread(operation.request for operation in operations)
        for operation in operations:
            request, proposal = operation.request, operation.proposal
            for heard in proposal.heard:
                opinion = heard.opinion
                if opinion is None:
                    continue
                quota = opinion.quota
                if quota is None:
                    if opinion.recall is not None:
                        facts += opinion.recall.keys
                    continue
                limits = quota.limits
                if quota.tiers is not None:
                    account = accounts.held(quota.value)
                    if account is None:
                        users.add(quota.value)
                        continue
                    limits = limits_of(quota, steering, account, now)
                for _, name, _, _ in counted(limits, quota.external is not None):
                    # A plain tuple finds what a CounterKey does.
                    if (quota.scope, quota.value, name) not in counters:
                        keys.add(CounterKey(quota.scope, quota.value, name))
            watch = proposal.watch
            if watch is None or not (user := request.login):
                continue
            account = accounts.held(user)
            if account is None:
                users.add(user)
                continue
            sent = account.sent
            if sent is None:
                for unit in watch.units:
                    if ("user", user, unit) not in counters:
                        keys.add(CounterKey("user", user, unit))
            if watch.remembers and request.stage == END_OF_MESSAGE and not instances:
                recipients = recipients_of(request, self)
                if sent is None or sent.key != (watch, recipients):
                    pairs.update(accounts.unread(user, recipients))
        return Unread(keys, instances, self.memories.unread(facts), users, pairs)

    def _accounts_of(self, operations: Sequence[Operation]) -> set[str]:
        return {operation.request.account for operation in operations if operation.request.account}

    def _read_counters(self, keys: Iterable[CounterKey]) -> None:
        missing = sorted(key for key in keys if key not in self._counters)
        read = {key: Counter() for key in missing}
        for chunk in chunked(missing):
            sql = select_counters(len(chunk))
            for scope, value, unit, cells in self.connection.execute(sql, flat(chunk)).fetchall():
                try:
                    read[CounterKey(scope, value, unit)] = Counter.unpack(cells)
                except ValueError as error:
                    log.error(
                        "store-damaged: the counter of %s %r cannot be read, it begins anew: %s",
                        scope,
                        value,
                        error,
                    )
        self._counters.update(read)

    def _prepare(
        self, decisions: Iterable[Decision | None], dirty: Iterable[CounterKey]
    ) -> tuple[list[tuple[str | int | None, ...]], list[tuple[str, str, str, bytes, int]]]:
        """The rows to write: decisions, and the counters that changed."""
        now = self.clock.now()
        counters = []
        for key in sorted(dirty):
            counter = self._counters[key]
            counters.append((*key, counter.pack(), counter.expires(now)))
        return [row_of(decision) for decision in decisions if decision is not None], counters

    def _write(
        self,
        rows: Sequence[tuple[Any, ...]],
        counters: Sequence[tuple[Any, ...]],
        facts: Facts,
        accounts: Layer,
        notes: Notes,
    ) -> None:
        connection, now = self.connection, self.clock.now()
        if rows:
            newest = next(iter(self.partitions), None)
            if newest is None or partitions.is_due(newest, now, rows[0][0], self.partition_rows):
                partitions.open_next(connection, now, rows[0][0])
                self.partitions = partitions.catalogue(connection)
        for chunk in chunked(rows):
            connection.execute(insert_decisions(self.partitions[0].table, len(chunk)), flat(chunk))
        for chunk in chunked(counters):
            connection.execute(upsert_counters(len(chunk)), flat(chunk))
        self.memories.write(connection, facts)
        if accounts:
            self.accounts.write(connection, accounts, now)
        if notes:
            self._write_notes(notes)
        self.save_time(rows[-1][0] if rows else None)

    def _write_notes(self, notes: Notes) -> None:
        connection = self.connection
        for row in notes.suspensions:
            # Of one before it, whose time was over, too: what began is told to have ended first.
            end_expired(connection, row.created_at, row.user)
            connection.execute("INSERT OR REPLACE INTO suspension VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.executemany(
            "INSERT INTO event (at, wall_at, kind, subject, resolved, facts) VALUES (?, ?, ?, ?, ?, ?)",
            notes.events,
        )
        connection.executemany(
            "INSERT INTO history (at, wall_at, author, action, subject, detail, reason) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            notes.history,
        )

    def save_time(self, last_id: int | None = None) -> None:
        """Write down where ledger time and the numbers given out stand.

        :param last_id: the highest number of a decision whose row is there; unless said, all have one but the backlog's.
        :raises sqlite3.Error: the database is in trouble.
        """
        if last_id is None:
            first = self.backlog.first_id()
            last_id = first - 1 if first else self._last_id
        self.connection.execute(
            "INSERT OR REPLACE INTO ledger_state VALUES (1, ?, ?, ?, ?, ?, ?)",
            (*self.clock.base(self.clock.now()), self._ref_seq, last_id),
        )


def _thing(kind: str, subject: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """What an event tells of: another limit of the same account is another thing."""
    return kind, Event(0, 0, 0, kind, subject, False, facts).thing

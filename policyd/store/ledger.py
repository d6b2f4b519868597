"""The ledger: one batch of operations read, decided and written, in one transaction.

As a rule the loop's thread decides with what is in memory (:meth:`Ledger.stage`, by policyd.store.decider), and the
writer's thread reads what is missing (:meth:`Ledger.read`) and writes what was decided (:meth:`Ledger.write`): begin; see
whether the admin has changed something; write everything, with one statement each; commit. :meth:`Ledger.run` is all of it
in one transaction, for when that will not do. Statements that take a whole batch let go of the interpreter once instead
of once a row, so the loop goes on.

The counters in memory are a cache of the counter table. When a commit fails, the decisions of the batch stand (they
are about to be answered) and go to the backlog: decisions and charges that are not on disk yet. Transactions that
succeed later write it in parts, each on top of what the table says then: so nothing is lost, nothing is counted twice, and
a backlog for which there is not enough room is written as far as there is.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from policyd.decision import MEMORY, REFUSED, Decision, Operation
from policyd.opinion import CounterKey
from policyd.store import partitions
from policyd.store.accounts import Layer
from policyd.store.backlog import Backlog, some
from policyd.store.batch import REF_SPACE, Batch, Notes, NotWritten, Stage, Staged, row_of
from policyd.store.clock import LedgerClock
from policyd.store.counters import Row
from policyd.store.decider import Decider, Settle
from policyd.store.instances import IDENTITY
from policyd.store.memory import Facts
from policyd.store.statements import chunked, flat, insert_decisions
from policyd.store.steering_sync import SteeringMirror
from policyd.store.suspensions import end_expired
from policyd.store.unread import Unread, unread_of
from policyd.window import Counter

log = logging.getLogger("policyd.store")

#: Once a request's account is read, its limits and recipients are known, and then what they need.
MOST_READS = 4


class Ledger(Decider):
    """The state that settle works on, over one connection. One thread at a time has it in hand (policyd.store.writer)."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        clock: LedgerClock,
        settle: Settle,
        stopwatch: Callable[[], int],
        report: Callable[[Operation, Exception], None],
    ) -> None:
        super().__init__(SteeringMirror(connection), clock, settle, stopwatch, report)
        self.connection = connection
        self.backlog = Backlog()
        #: Rows of a partition at the most.
        self.partition_rows = partitions.FULL
        self._readable = True
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
        before, kept = self.connection, self.counters.set_aside()
        self.connection = self.mirror.connection = connection
        self.counters.reopened()
        try:
            self._load()
            self._renumber()
            self.counters.replay(connection, list(self.backlog.charges()))
            self.memories.reopened()
            self.accounts.reopened()
            for row in self.backlog.suspensions():
                self.steering.put("suspension", row)
        except BaseException:
            self.connection = self.mirror.connection = before
            self.counters.put_back(kept)
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
            rows = self.counters.all_rows(self.clock.now())
            self._write([], rows, {}, known, self.backlog.notes())
            self.connection.execute("COMMIT")
        except sqlite3.Error:
            self.rollback()
            self.partitions = []
            raise
        self.counters.written_anew()
        self.accounts.written(known)
        self.accounts.unwritten.clear()
        self.backlog.counted()

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
                rows = self._prepare(batch.decisions, self.counters.changed())
                self._write(*rows, batch.facts, batch.accounts, batch.notes)
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
        changed = self.counters.changed()
        if became is not Stage.STAGED:
            self.take_back(batch)
            return became
        try:
            rows, counters = self._prepare(batch.decisions, changed)
        except BaseException:
            self.take_back(batch)
            raise
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
        self.take_back(staged.batch)

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
        self.counters.changed()
        self.memories.keep(batch.facts)
        self.accounts.keep(batch.accounts)

    def _bound(self) -> None:
        """Keep memory within its bounds while nothing can be written."""
        self.instances.trim(self.clock.now(), len(self.backlog))
        if self.counters.crowded():
            self.counters.keep_only({charge.key for charge in self.backlog.charges()})

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
        whole = self.counters.set_aside()
        try:
            self.counters.replay(self.connection, charges)
            rows = self._prepare(decisions, {charge.key for charge in charges})
            self._write(*rows, facts, accounts, notes)
            self.connection.execute("COMMIT")
            self.counters.part_written()
        except sqlite3.Error:
            self.rollback()
            self.partitions = before
            raise
        finally:
            self.counters.put_back(whole)
        self.backlog.written(pieces)
        for key in facts:
            del self.memories.unwritten[key]
        self.memories.written(facts)
        for user in accounts.accounts:
            del unwritten.accounts[user]
        for pair in accounts.met:
            del unwritten.met[pair]
        self.accounts.written(accounts)
        if self.backlog or self.memories.unwritten or unwritten:
            return True
        self.counters.all_written()
        self.trim()
        return False

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
            self.counters.forget(reset)
            again = [charge for charge in self.backlog.charges() if charge.key in reset]
            self.counters.replay(self.connection, again)
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
        self.counters.clear()
        self.counters.replay(self.connection, list(self.backlog.charges()))

    def trim(self, but: Container[tuple[str, ...]] = ()) -> None:
        """Bring the caches within their bounds.

        :param but: counters that the table does not know yet.
        """
        self.instances.trim(self.clock.now(), len(self.backlog))
        self.memories.trim()
        self.accounts.trim()
        self.counters.trim(but)

    def _not_in_memory(self, key: CounterKey) -> Counter:
        if self._readable:
            self.counters.read(self.connection, (key,))
        return self.counters.begin(key)

    # --- reading and writing in bulk ---------------------------------------------------------------------------------

    def _read(self, operations: Sequence[Operation]) -> bool:
        """Read what is missing for these; whether anything was. What is read may show that more is missing."""
        was_missing = False
        for _ in range(MOST_READS):
            unread = unread_of(operations, self)
            if not any(unread):
                break
            was_missing = True
            self._read_these(unread)
        return was_missing

    def _read_these(self, unread: Unread) -> None:
        if unread.counters:
            self.counters.read(self.connection, unread.counters)
        if unread.instances:
            since = self.clock.now() - IDENTITY
            self.instances.read(self.connection, self.partitions, unread.instances, since)
        if unread.facts:
            self.memories.read(self.connection, unread.facts)
        if unread.accounts or unread.pairs:
            self.accounts.read(self.connection, unread.accounts, unread.pairs)

    def _accounts_of(self, operations: Sequence[Operation]) -> set[str]:
        return {operation.request.account for operation in operations if operation.request.account}

    def _prepare(
        self, decisions: Iterable[Decision | None], changed: Iterable[CounterKey]
    ) -> tuple[list[tuple[str | int | None, ...]], list[Row]]:
        """The rows to write: decisions, and the counters that changed."""
        counters = self.counters.rows(changed, self.clock.now())
        return [row_of(decision) for decision in decisions if decision is not None], counters

    def _write(
        self,
        rows: Sequence[tuple[Any, ...]],
        counters: Sequence[Row],
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
        self.counters.write(connection, counters)
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

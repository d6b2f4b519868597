"""Group commit: the loop decides, the thread reads and writes.

The loop decides what waits with what is in memory, and puts it on the pile that the thread takes when the commit before
is done. Two threads that run Python at the same time hinder each other, so as much as can be is done where the requests
are, and the thread does what waits for something else: the disk, and other programs that write. If something has to be
read first, it reads it, and the loop decides then. In trouble, and when the admin has changed something just now, the
thread does it all.

A lock guards what both know in memory. The loop never waits for it: who has it looks, when done, whether the loop wanted it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from policyd.decision import Decision, Operation
from policyd.errors import StoreError
from policyd.steering import Steering
from policyd.store.batch import Stage, Staged
from policyd.store.clock import LedgerClock
from policyd.store.decider import Settle
from policyd.store.sturdy import UPKEEP, Handed, SturdyLedger
from policyd.store.upkeep import Keep

#: Operations that are decided at once at the most.
BATCH = 256
#: Operations on the pile at the most, and waiting for it: beyond that the disk hangs, and memory must not fill up.
MOST_STAGED = 1_024
MOST_WAITING = 20_000

log = logging.getLogger("policyd.store")

T = TypeVar("T")


class Writer:
    """Owns the database from :meth:`open` to :meth:`stop`."""

    def __init__(
        self,
        path: str,
        settle: Settle,
        *,
        durability: str = "full",
        backlog: int = 10_000,
        keep: Keep | None = None,
        stopwatch: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """
        :param backlog: decisions kept in memory at the most while the database is in trouble.
        """
        self.ledger = SturdyLedger(
            path, settle, durability=durability, backlog=backlog, keep=keep, stopwatch=stopwatch
        )
        self.ledger.replaced = self._tell_replaced
        #: Called on the loop with what a batch came to; set before :meth:`start`.
        self.deliver: Callable[[Handed], None] = lambda handed: None
        #: Called on the loop when the file was replaced, so that readers open the new one.
        self.replaced: Callable[[], None] = lambda: None
        #: Runs a call on the loop, from any thread; set before :meth:`start`.
        self.on_loop: Callable[..., object] = lambda call, *args: call(*args)
        #: Runs a call later in this turn of the loop or in the next, from the loop; set before :meth:`start`.
        self.soon: Callable[[Callable[[], None]], object] = lambda call: call()
        self._queue: deque[Operation] = deque()
        self._wake = threading.Event()
        #: Held by who reads or changes what the ledger has in memory, and what stands below.
        self._memory = threading.Lock()
        #: The pile: decided, not yet taken to be written.
        self._staged = Staged()
        #: For these something has to be read first.
        self._cold: list[Operation] = []
        #: These need a transaction of their own.
        self._alone: list[Operation] = []
        #: Small jobs of others on the connection, each with whom to tell what it came to.
        self._jobs: deque[tuple[Callable[[sqlite3.Connection], Any], Callable[[Any], None]]] = deque()
        self._stage_soon = False
        self._working = False
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="policyd-writer", daemon=True)

    # --- on the loop's thread ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the database, upgrading or replacing it where that is needed.

        :raises StoreError: it cannot be opened at all.
        """
        self.ledger.open()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def clock(self) -> LedgerClock:
        """Ledger time."""
        return self.ledger.clock

    @property
    def sick(self) -> str:
        """What is wrong with the database; empty when nothing is."""
        return self.ledger.sick

    def steering(self) -> Steering:
        """The steering data as of the last batch."""
        return self.ledger.steering()

    def submit(self, operation: Operation) -> None:
        """Queue an operation; its decision comes by ``deliver``, ``None`` at once when too many wait."""
        if len(self._queue) >= MOST_WAITING:
            self.soon(partial(self.deliver, [(operation, None)]))
            return
        self._queue.append(operation)
        if not self._stage_soon:
            # Not at once: what else comes in this turn of the loop belongs to the same batch.
            self._stage_soon = True
            self.soon(self._stage)

    def idle(self) -> bool:
        """Whether nothing waits and nothing is being decided."""
        return not (self._queue or self._cold or self._alone or self._staged.operations or self._working)

    def alive(self) -> bool:
        """Whether the thread runs, as it should from :meth:`start` to :meth:`stop`."""
        return self._thread.is_alive()

    def waiting(self) -> int:
        """Operations that no transaction has taken yet."""
        return len(self._queue)

    def stop(self) -> None:
        """Settle what is queued, write the backlog if that can be, checkpoint, close. Called from any thread."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is None:
            self.ledger.close()
        else:
            self._thread.join()

    def configure(self, keep: Keep, backlog: int) -> None:
        """Take over changed settings."""
        self.ledger.keep, self.ledger.most_in_memory = keep, backlog

    def tell(self, parts: list[tuple[str, str, int, dict[str, Any]]]) -> None:
        """Have written down how the daemon's parts do: name, state, since when (wall clock, ms), figures."""
        self.ledger.told = parts

    def do(self, job: Callable[[sqlite3.Connection], T], done: Callable[[T | None], None]) -> None:
        """Run a small job on the connection, between two batches; ``done`` is called on the loop with what it returned, or
        with ``None`` when it could not be done, as while the database is in trouble."""
        if self._thread.is_alive():
            self._jobs.append((job, done))
            self._wake.set()
        else:
            self.soon(partial(done, None))

    def _stage(self) -> None:
        """Decide what waits."""
        self._stage_soon = False
        if not self._memory.acquire(blocking=False):
            return
        try:
            # In trouble, and at the end, the thread takes it from the queue.
            ready = not self.ledger.sick and not self._stopping
            aside = len(self._cold) + len(self._alone)
            if ready and len(self._staged.operations) + aside < MOST_STAGED and (operations := self._take()):
                became = self.ledger.stage(operations, self._staged)
                if became is Stage.UNREAD:
                    self._cold += operations
                elif became is Stage.ALONE:
                    self._alone += operations
        finally:
            self._memory.release()
        self._wake.set()

    def _take(self) -> list[Operation]:
        operations: list[Operation] = []
        queue = self._queue
        while queue and len(operations) < BATCH:
            operations.append(queue.popleft())
        return operations

    # --- on the writer's thread --------------------------------------------------------------------------------------

    def _main(self) -> None:
        pause = UPKEEP
        while not self._done():
            self._wake.wait(pause)
            self._wake.clear()
            more = False
            try:
                self._write()
                self._do_jobs()
                more = self._attend()
            except Exception:  # the thread is the only one that writes: it must not end
                log.exception("the writer failed; it goes on")
                with self._memory:
                    # What is in memory holds no longer: what was decided with it, and not written, is decided again.
                    staged = self._pile()
                    self._queue.extendleft(reversed(staged.operations))
                    self.ledger.recover(staged)
                self._nudge()
            self._working = False
            pause = self.ledger.pause(more)
        self._do_jobs()
        self.ledger.close()

    def _done(self) -> bool:
        if not self._stopping:
            return False
        with self._memory:
            return not (self._queue or self._cold or self._alone or self._staged.operations)

    def _write(self) -> None:
        """Write the pile."""
        with self._memory:
            staged = self._pile()
        self._nudge()
        if staged.operations:
            trouble = self.ledger.write(staged)
            if trouble is None:
                self._hand_back(zip(staged.operations, staged.batch.decisions, strict=True))
                return
            with self._memory:
                handed = self.ledger.run_again(trouble, staged, self._pile())
            self._hand_back(handed)
            self._nudge()

    def _do_jobs(self) -> None:
        """Do what others want of the database; the loop need not wait for it."""
        while self._jobs:
            job, done = self._jobs.popleft()
            try:
                result = self.ledger.do(job)
            except (sqlite3.Error, StoreError) as error:
                result = None
                with self._memory:
                    self.ledger.fall_sick(error)
                self._nudge()
            except Exception:  # a defect in the job is not the writer's end
                log.exception("a job on the database failed")
                result = None
            self.on_loop(done, result)

    def _attend(self) -> bool:
        """What cannot be done beside the loop: reading, trouble, the end, upkeep. Whether there is more upkeep to do."""
        if self._cold and not self.ledger.sick:
            with self._memory:
                cold, self._cold = self._cold, []
                if self.ledger.read(cold, self._staged):
                    self._queue.extendleft(reversed(cold))
                else:
                    # Nothing is missing that could be read: it is decided here.
                    self._alone += cold
            self._nudge()
        if not (self._cold or self._alone or self._stopping or self.ledger.needs_attention()):
            return True
        with self._memory:
            # What is done now must find nothing half done.
            staged = self._pile()
            trouble = self.ledger.write(staged) if staged.operations else None
            if trouble is None:
                self._hand_back(zip(staged.operations, staged.batch.decisions, strict=True))
            else:
                self._hand_back(self.ledger.run_again(trouble, staged, Staged()))
            aside, self._cold, self._alone = self._cold + self._alone, [], []
            self._run(aside)
            while self._queue and (self.ledger.sick or self._stopping):
                self._run(self._take())
                self.ledger.upkeep(idle=False)
            if self.ledger.sick:
                self.ledger.try_to_heal()
            more = self.ledger.upkeep(idle=not self._queue)
        self._nudge()
        return more

    def _run(self, operations: list[Operation]) -> None:
        if operations:
            self._hand_back(zip(operations, self.ledger.run(operations), strict=True))

    def _pile(self) -> Staged:
        """Take the pile; another is begun."""
        staged, self._staged = self._staged, Staged()
        self._working = bool(staged.operations)
        return staged

    def _hand_back(self, handed: Iterable[tuple[Operation, Decision | None]]) -> None:
        decided = list(handed)
        if decided:
            self.on_loop(self.deliver, decided)

    def _nudge(self) -> None:
        """The lock is free again: what the loop wanted to decide meanwhile would wait for ever."""
        if self._queue:
            self.on_loop(self._stage)

    def _tell_replaced(self) -> None:
        self.on_loop(self.replaced)

"""Group commit: who works on the ledger when, the loop or the writer's thread, one at a time.

The loop decides a batch with what is in memory and hands it to the thread, which writes and commits it: the thread waits
for the disk, and for other programs that write. Meanwhile the loop takes up new requests, and those are the next batch.
A batch for which something has to be read first, and everything while the database is in trouble, the thread does alone.
Two threads that run Python at the same time only hinder each other, so as much as can be is done where the requests are.

A lock says whose turn it is. The loop never waits for it. When it stages a batch it hands the lock over with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from policyd.decision import Decision, Operation
from policyd.steering import Steering
from policyd.store.clock import LedgerClock
from policyd.store.ledger import Settle, Staged
from policyd.store.sturdy import UPKEEP, SturdyLedger
from policyd.store.upkeep import Keep

#: Operations in one transaction at the most.
BATCH = 256

log = logging.getLogger("policyd.store")
Handed = list[tuple[Operation, Decision | None]]


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
        #: Held by who works on the ledger.
        self._turn = threading.Lock()
        #: What the loop handed over, with the lock: a batch, and what was decided if it could be staged.
        self._handed_over: tuple[list[Operation], Staged | None] | None = None
        self._stage_soon = False
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
        """Queue an operation; its decision comes by ``deliver``."""
        self._queue.append(operation)
        if not self._stage_soon:
            # Not at once: what else comes in this turn of the loop belongs to the same batch.
            self._stage_soon = True
            self.soon(self._stage)

    def idle(self) -> bool:
        """Whether nothing waits and nothing is being decided."""
        return not self._queue and not self._turn.locked()

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

    def _stage(self) -> None:
        """Take what waits, if it is the loop's turn, and hand it over to be committed."""
        self._stage_soon = False
        if not self._queue:
            return
        if self._stopping or self.ledger.sick:
            # At the end, and in trouble, everything is the thread's.
            self._wake.set()
            return
        if not self._turn.acquire(blocking=False):
            # Who has the turn looks at the queue when it ends.
            return
        operations = self._take()
        if not operations:
            self._turn.release()
            return
        self._handed_over = operations, self.ledger.stage(operations)
        self._wake.set()

    def _take(self) -> list[Operation]:
        operations: list[Operation] = []
        queue = self._queue
        while queue and len(operations) < BATCH:
            operations.append(queue.popleft())
        return operations

    def _deliver_and_stage(self, handed: Handed) -> None:
        try:
            self.deliver(handed)
        finally:
            self._stage()

    # --- on the writer's thread --------------------------------------------------------------------------------------

    def _main(self) -> None:
        pause = UPKEEP
        while not self._stopping or self._queue or self._turn.locked():
            self._wake.wait(pause)
            self._wake.clear()
            handed_over, self._handed_over = self._handed_over, None
            if handed_over is None and not self._turn.acquire(blocking=False):
                # The loop is staging a batch, and will hand it over.
                continue
            more, handed = False, None
            try:
                if handed_over is not None:
                    handed = self._finish(*handed_over)
                    if self.ledger.needs_attention():
                        # Answers first: what comes now may take its time.
                        self.on_loop(self.deliver, handed)
                        handed = None
                more = self._attend() if handed is None else True
            except Exception:  # the thread is the only one that commits: it must not end
                log.exception("the writer failed; it goes on")
                self.ledger.recover()
            finally:
                self._turn.release()
            # Only now that the turn has ended: what came in since the last look would wait for ever.
            if handed is not None:
                self.on_loop(self._deliver_and_stage, handed)
            elif self._queue:
                self.on_loop(self._stage)
            pause = self.ledger.pause(more)
        self.ledger.close()

    def _finish(self, operations: list[Operation], staged: Staged | None) -> Handed:
        """Commit what was staged; what could not be is decided here."""
        ledger = self.ledger
        decisions = ledger.run(operations) if staged is None else ledger.commit(operations, staged)
        return list(zip(operations, decisions, strict=True))

    def _tell_replaced(self) -> None:
        self.on_loop(self.replaced)

    def _attend(self) -> bool:
        """What waits, in trouble and at the end; then a step of upkeep. Whether there is more of that to do at once."""
        while self._queue and (self.ledger.sick or self._stopping):
            operations = self._take()
            self.on_loop(self.deliver, self._finish(operations, None))
            self.ledger.upkeep(idle=False)
        if self.ledger.sick:
            self.ledger.try_to_heal()
        return self.ledger.upkeep(idle=not self._queue)

"""The ledger that goes on when the database is in trouble: locked, full, gone, damaged.

It goes on in memory: bans that are known hold, what counts is counted and kept in the backlog, up to a bound; beyond it
an operation that must count gets no decision, and the server answers what ``fail`` says. About twice a second it tries
the disk again, and writes the backlog in parts, as far as there is room. A damaged file is moved aside, never
overwritten, and a new one is begun with the steering data that are known. One thread at a time: whose turn it is, the
writer says (:mod:`policyd.store.writer`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from policyd.decision import Decision, Operation
from policyd.errors import StoreBusy, StoreDamaged, StoreError
from policyd.steering import Steering
from policyd.store import aside, connect, locks
from policyd.store.batch import NotWritten, Stage, Staged
from policyd.store.clock import LedgerClock, stored_base, wall
from policyd.store.decider import Settle
from policyd.store.health import write_health
from policyd.store.ledger import Ledger
from policyd.store.upkeep import Keep, Upkeep

#: Between two attempts to reach a sick database, s.
RETRY = 0.5
#: Decisions of the backlog that are written at once, and for how long at a time, s: answers wait meanwhile.
PART = 1_000
HEALING = 0.1
#: Between two steps of upkeep, s.
UPKEEP = 1.0
#: Between two looks at whether the file is still there, s.
LOOK = 1.0

log = logging.getLogger("policyd.store")


Handed = list[tuple[Operation, Decision | None]]
T = TypeVar("T")


class Changed(Exception):
    """The admin has changed something since it was decided."""


class SturdyLedger:
    """Decides every batch that it is given, on disk or in memory; never raises on trouble with the database."""

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
        self.path = path
        self.durability = durability
        self.most_in_memory = backlog
        self.keep = keep or Keep()
        #: Called when the file was replaced, so that readers open the new one.
        self.replaced: Callable[[], None] = lambda: None
        self.sick = ""
        #: Decisions that no row will tell of, since the trouble began.
        self.untold = 0
        #: Decisions of the backlog that are on disk by now, and whether the last part of it found its place.
        self._told = 0
        self._healing = False
        #: How the daemon's parts do, to be written down at the next occasion.
        self.told: list[tuple[str, str, int, dict[str, Any]]] | None = None
        self._settle = settle
        self._stopwatch = stopwatch
        self._next_retry = 0.0
        self._next_look = 0.0
        #: When the last step of upkeep ended, and what it took, s.
        self._upkept = self._upkeep_took = 0.0
        self._inode: tuple[int, int] | None = None
        #: The same of its write-ahead log.
        self._log: tuple[int, int] | None = None
        self._log_gone = False
        #: The name of the damaged file that was moved aside last.
        self._kept = ""
        #: Why no new file could be begun, as told last.
        self._not_begun = ""
        self._ledger: Ledger
        self._upkeep: Upkeep
        self.clock: LedgerClock

    def open(self) -> None:
        """Open the database, upgrading or replacing it where that is needed.

        :raises StoreError: it cannot be opened at all.
        """
        # What a daemon before this one had open says nothing.
        self._has_open(None)
        try:
            self._open(connect.open_for_daemon(self.path, self.durability))
            self._has_open(_inode(self.path))
        except StoreDamaged as error:
            try:
                self._begin_anew(str(error), None).close()
                self._open(connect.open_for_daemon(self.path, self.durability))
                self._has_open(_inode(self.path))
            except (sqlite3.Error, StoreBusy) as trouble:
                self._start_sick(
                    connect.translate(trouble, self.path) if isinstance(trouble, sqlite3.Error) else trouble
                )
                self._open_nowhere(self._kept)
        except StoreBusy as error:
            # Locked, full, read-only: what comes after the start does not stop mail either.
            self._start_sick(error)
            try:
                self._open(connect.open_as_it_is(self.path))
            except (sqlite3.Error, StoreError) as trouble:
                log.error("store-sick: it cannot be used as it is either: %s", trouble)
                self._open_nowhere(self.path)
        self._upkeep = Upkeep(self._ledger, self.path, self.keep)

    def _has_open(self, file: tuple[int, int] | None) -> None:
        self._inode, self._log = file, None
        locks.tell_open(self.path, file)

    def _start_sick(self, trouble: StoreError) -> None:
        self.sick = str(trouble)
        log.error("store-sick: %s; starting in memory, up to %d decisions", trouble, self.most_in_memory)

    def _open_nowhere(self, readable: str) -> None:
        """Begin in memory, with what of the steering data can be read in that file."""
        connection = connect.open_nowhere()
        known = aside.restore_steering(connection, readable, None)
        log.error(
            "store-sick: %d bans, allows, limits, grants and modes could be read from %s; no others hold until it is well",
            known,
            readable,
        )
        self._open(connection)

    def _open(self, connection: sqlite3.Connection) -> None:
        try:
            self.clock = LedgerClock(stored_base(connection))
            self._ledger = Ledger(connection, self.clock, self._settle, self._stopwatch, _report)
            # From the first moment on, policyctl finds the ledger time that this daemon goes by; the next batch
            # writes it too, so it can wait when somebody else is writing now.
            if not self.sick:
                with contextlib.suppress(sqlite3.OperationalError):
                    self._ledger.save_time()
        except sqlite3.Error as error:
            connection.close()
            raise connect.translate(error, self.path) from error

    def steering(self) -> Steering:
        """The steering data as of the last batch."""
        return self._ledger.steering

    def stage(self, operations: Sequence[Operation], staged: Staged) -> Stage:
        """Decide with what is in memory and add it to ``staged``; if that cannot be nothing has happened."""
        try:
            return self._ledger.stage(operations, staged)
        except Exception as error:  # noqa: BLE001, one operation's trouble: it is found when each is run alone
            log.debug("a batch could not be staged: %s", error)
            return Stage.ALONE

    def read(self, operations: Sequence[Operation], staged: Staged) -> bool:
        """Read what :meth:`stage` misses for these; ``False``: nothing is missing, or it cannot be read."""
        try:
            return self._ledger.read(operations, staged)
        except sqlite3.Error as error:
            self._fall_sick(error)
            return False

    def write(self, staged: Staged) -> Exception | None:
        """Write and commit what was staged; what hindered it goes to :meth:`run_again`."""
        try:
            return None if self._ledger.write(staged) else Changed()
        except Exception as error:  # noqa: BLE001, the writer must not end, whatever one operation does
            return error

    def run_again(self, trouble: Exception, staged: Staged, later: Staged) -> Handed:
        """Bring to an end what could not be written, and what was staged on top of it."""
        self._ledger.undo(later)
        if isinstance(trouble, NotWritten):
            decisions = self._not_written(trouble)
        else:
            self._ledger.undo(staged)
            if isinstance(trouble, sqlite3.Error):
                self._fall_sick(trouble)
            decisions = self.run(staged.operations)
        handed = list(zip(staged.operations, decisions, strict=True))
        if later.operations:
            handed += zip(later.operations, self.run(later.operations), strict=True)
        return handed

    def run(self, operations: Sequence[Operation]) -> list[Decision | None]:
        """Run a batch; if that fails for no reason of the database's, one operation at a time."""
        try:
            return self._run(operations)
        except Exception as error:  # noqa: BLE001, the writer must not end, whatever one operation does
            self._ledger.recover()
            if len(operations) == 1:
                _report(operations[0], error)
                return [None]
        return [decision for operation in operations for decision in self.run([operation])]

    def _run(self, operations: Sequence[Operation]) -> list[Decision | None]:
        """Decide a batch on disk or, if that cannot be, in memory."""
        if self.sick:
            self.try_to_heal()
        if not self.sick:
            try:
                return self._ledger.run(operations).decisions
            except NotWritten as failure:
                return self._not_written(failure)
            except sqlite3.Error as error:
                self._fall_sick(error)
            except StoreError as error:
                self._fall_sick(error)
        room = self.most_in_memory - len(self._ledger.backlog)
        if room < len(operations):
            return self._overflow(operations, room)
        batch = self._ledger.run_in_memory(operations)
        self._ledger.keep(batch)
        return batch.decisions

    def _overflow(self, operations: Sequence[Operation], room: int) -> list[Decision | None]:
        """With no room in memory for all: what must count gets no decision, the rest is decided and not told of."""
        decisions: list[Decision | None] = []
        for operation in operations:
            if _counts(operation) and room <= 0 and not self._ledger.passed_before(operation):
                decisions.append(self._ledger.refusal(operation))
                self.untold += 1
                continue
            batch = self._ledger.run_in_memory([operation])
            if room > 0:
                self._ledger.keep(batch)
                room -= 1
            else:
                # Nothing was counted, so nothing has to be known again.
                self._ledger.forget_decisions(batch)
                self.untold += 1
            decisions += batch.decisions
        return decisions

    def _not_written(self, failure: NotWritten) -> list[Decision | None]:
        error = failure.__cause__
        assert isinstance(error, sqlite3.Error)
        # Kept first: what happens to a damaged file has to know what was not written.
        self._ledger.keep(failure.batch)
        self._fall_sick(error)
        return failure.batch.decisions

    def _fall_sick(self, error: sqlite3.Error | StoreError) -> None:
        trouble = error if isinstance(error, StoreError) else connect.translate(error, self.path)
        self.sick = str(trouble)
        self._next_retry = time.monotonic() + RETRY
        log.error("store-sick: %s; deciding in memory, up to %d decisions", trouble, self.most_in_memory)
        if isinstance(trouble, StoreDamaged):
            self._replace(str(trouble))

    def try_to_heal(self, patience: float = HEALING) -> None:
        """Try the disk again, when it is time for that; for ``patience``, s, at the most, and a part more."""
        if time.monotonic() < self._next_retry:
            return
        try:
            if not self._healing or _inode(self.path) != self._inode:
                self._healing = False
                self._reopen()
            more = self._write_backlog(time.monotonic() + patience)
        except (sqlite3.Error, StoreError, ValueError, OSError) as error:
            self._healing = False
            trouble = connect.translate(error, self.path) if isinstance(error, sqlite3.Error) else error
            if str(trouble) != self.sick:
                log.error("store-sick: %s", trouble)
                self.sick = str(trouble)
            if isinstance(trouble, StoreDamaged):
                self._replace(str(trouble))
            self._next_retry = time.monotonic() + RETRY
            return
        self._healing = more
        if more:
            return
        log.warning(
            "store-well: %s is written again; %d decisions were kept in memory and are on disk now, %d left no row",
            self.path,
            self._told,
            self.untold,
        )
        self.sick = ""
        self._told = self.untold = 0

    def _write_backlog(self, until: float) -> bool:
        """Write the backlog part by part, smaller ones where there is little room; whether there is more when time is up.

        :raises sqlite3.Error: what is left of it stays in the backlog.
        """
        most, more = PART, True
        while more:
            before = len(self._ledger.backlog)
            try:
                more = self._ledger.write_part(most)
            except sqlite3.Error as error:
                if most == 1 or not _no_room(error):
                    raise
                most = max(1, most // 10)
                self._make_room()
            else:
                self._told += before - len(self._ledger.backlog)
                most = min(PART, 2 * most)
                # If that finds no room, the next part may, or says so.
                with contextlib.suppress(sqlite3.Error):
                    self._upkeep.checkpoints.spare_room(self._ledger.connection)
            if time.monotonic() >= until:
                break
        return more

    def _make_room(self) -> None:
        """Nobody checkpoints in trouble, and what is in the write-ahead log takes room twice."""
        # If there is no room for that either, or somebody writes, the next part may still find a place.
        with contextlib.suppress(StoreBusy, sqlite3.Error), locks.write_lock(self.path, 0.0):
            self._ledger.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _reopen(self) -> None:
        """Open the file again: it may have been replaced, or the file system mounted anew."""
        found = _inode(self.path)
        if found is None or (found != self._inode and not os.path.getsize(self.path)):
            # A new file knows no bans: it is begun with those that are known.
            raise StoreDamaged(f"{self.path} is gone" if self._inode else f"{self.path} is not there yet")
        if self._inode is not None and found != self._inode:
            kept = aside.move_log(self.path)
            log.error(
                "store-replaced: another file is at %s; what it says holds from here on. What was written to the former one"
                " since its last checkpoint stays in %s-wal",
                self.path,
                kept,
            )
            self._inode = None
        connection = connect.open_for_daemon(self.path, self.durability)
        old = self._ledger.connection
        try:
            self._ledger.reopened(connection)
        except BaseException:
            connection.close()
            raise
        old.close()
        if found != self._inode:
            self._has_open(found)
            self.replaced()

    def _replace(self, why: str) -> None:
        """Move the damaged file aside and begin a new one."""
        try:
            self._ledger.connection.close()
            self._begin_anew(why, self._ledger)
            self._has_open(_inode(self.path))
            self._not_begun = ""
            self.replaced()
            self._next_retry = 0.0
        except (sqlite3.Error, StoreError, OSError) as error:
            if str(error) != self._not_begun:
                log.error("store-sick: %s cannot be begun anew: %s", self.path, error)
                self._not_begun = str(error)
            self._next_retry = time.monotonic() + RETRY

    def _begin_anew(self, why: str, ledger: Ledger | None) -> sqlite3.Connection:
        if kept := aside.move(self.path):
            self._kept = kept
            log.error("store-damaged: %s; kept aside as %s, beginning a new database", why, kept)
        connection = connect.open_for_daemon(self.path, self.durability)
        try:
            saved = aside.restore_steering(
                connection, self._kept, ledger.steering if ledger is not None else None
            )
            if ledger is not None:
                ledger.begin_anew(connection)
        except BaseException:
            # Half of a new file would be taken for all that is known.
            connection.close()
            aside.remove(self.path)
            raise
        if self._kept:
            log.error(
                "store-damaged: %d bans, allows, limits, grants and modes were taken over; the counts and decisions stay in %s"
                " ('policyctl db restore BACKUP' brings back a backup)",
                saved,
                Path(self._kept).name,
            )
        return connection

    def upkeep(self, idle: bool) -> bool:
        """A step of upkeep, if it is time for one; whether there is more of it to do at once."""
        if self.sick:
            return False
        begun = time.monotonic()
        if begun < self._next_upkeep():
            return True
        try:
            self._look_at_file()
            parts, self.told = self.told, None
            if parts is not None:
                write_health(self._ledger.connection, parts, wall())
            return self._upkeep.step(idle=idle, keep=self.keep)
        except (sqlite3.Error, StoreError) as error:
            self._ledger.rollback()
            self._fall_sick(error)
            return False
        finally:
            self._upkept = time.monotonic()
            self._upkeep_took = self._upkept - begun

    def _next_upkeep(self) -> float:
        """When the next step is due: however much there is to do after a start with a large database, answers come first."""
        try:
            share = self._upkeep.share()
        except sqlite3.Error:
            # The step will say what is wrong.
            share = 0
        return self._upkept + share * self._upkeep_took

    def _look_at_file(self) -> None:
        """
        :raises StoreError: the file that is open is not the one at the path any more: what is written into it is lost.
        """
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK
            if _inode(self.path) != self._inode:
                raise StoreError(f"{self.path} was removed or replaced while policyd runs")
            found = _inode(f"{self.path}-wal")
            if self._log is None:
                self._log = found
            elif found != self._log:
                self._renew_log()

    def _renew_log(self) -> None:
        """The write-ahead log was removed under our hands: what is in it is ours to save, while we have it open."""
        if not self._log_gone:
            self._log_gone = True
            log.error(
                "store-log: %s-wal was removed or replaced while policyd runs; saving what is in it",
                self.path,
            )
        ledger = self._ledger
        with contextlib.suppress(StoreBusy), locks.write_lock(self.path, 0.0):
            busy, *_ = ledger.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                # Somebody reads; at the next look perhaps nobody does.
                return
            old, connection = ledger.connection, connect.open_for_daemon(self.path, self.durability)
            try:
                ledger.reopened(connection)
            except BaseException:
                connection.close()
                raise
            old.close()
            self._log, self._log_gone = None, False
            self.replaced()
            log.warning("store-well: what was in %s-wal is in the database, and nothing is lost", self.path)

    def do(self, job: Callable[[sqlite3.Connection], T]) -> T | None:
        """What a small job on the connection returns; ``None`` while the database is in trouble.

        :raises sqlite3.Error: the database fell into trouble with it; :meth:`fall_sick` then.
        """
        if self.sick:
            return None
        try:
            return job(self._ledger.connection)
        except sqlite3.Error as error:
            if isinstance(connect.translate(error, self.path), StoreBusy | StoreDamaged):
                raise
            # Nothing is wrong with the file, but with the job: no decision may suffer from that.
            raise ValueError(f"{type(error).__name__}: {error}") from error
        finally:
            self._ledger.rollback()

    def fall_sick(self, error: sqlite3.Error | StoreError) -> None:
        """A job met trouble; with what is in memory in hand."""
        self._fall_sick(error)

    def needs_attention(self) -> bool:
        """Whether it is in trouble, or a step of upkeep is due."""
        return bool(self.sick) or time.monotonic() >= self._next_upkeep()

    def pause(self, more: bool) -> float:
        """How long, in s, nothing has to be done if nothing comes in."""
        if self.sick:
            return max(0.0, self._next_retry - time.monotonic())
        return max(0.0, self._next_upkeep() - time.monotonic()) if more else UPKEEP

    def recover(self, staged: Staged) -> None:
        """After a failure that nobody foresaw: no transaction stays open, and ``staged`` was never decided."""
        self._ledger.undo(staged)
        self._ledger.recover()

    def close(self) -> None:
        """Write the backlog if that can be, checkpoint, close."""
        if self.sick:
            self._next_retry = 0.0
            self.try_to_heal(math.inf)
        if self.sick:
            log.error(
                "store-sick: %s; %d decisions could not be written and are lost",
                self.sick,
                len(self._ledger.backlog),
            )
        try:
            if not self.sick:
                ledger = self._ledger
                while ledger.accounts.save(ledger.begin, ledger.connection, self.clock.now(), 0):
                    pass
                self._upkeep.checkpoints.copy(self._ledger.connection, wait=True)
            self._ledger.connection.close()
        except (sqlite3.Error, StoreError) as error:
            log.error("%s could not be closed in order: %s", self.path, error)


def _inode(path: str) -> tuple[int, int] | None:
    """What tells one file from another of the same name; ``None`` when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _no_room(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_FULL", "SQLITE_IOERR"))


def _counts(operation: Operation) -> bool:
    """Whether the operation would count something if it passed."""
    return any(
        heard.opinion is not None and heard.opinion.quota is not None and heard.opinion.quota.counts
        for heard in operation.proposal.heard
    )


def _report(operation: Operation, error: Exception) -> None:
    log.error(
        "decision failed on instance %r: %s: %s", operation.request.instance, type(error).__name__, error
    )

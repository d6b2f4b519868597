"""Knows again what was asked before: the decisions of each mail transaction (``instance``) of the last hour.

Three layers, so that a new request costs no look into the database and memory stays bounded. The latest transactions
are held in memory, each whole. One that is let go leaves two bits, by its hash: "no" is certain, "perhaps" has to be read.
Two fields of bits take turns, so each is remembered for an hour or more. Until the fields have been filled from the
database after a start, everything is "perhaps".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from policyd.decision import Decision, Earlier
from policyd.request import RCPT, Request
from policyd.store.partitions import Partition
from policyd.store.statements import chunked, values
from policyd.units import HOUR

#: How long a request is known again, ms.
IDENTITY = HOUR
#: Bits of one field. With five million transactions in an hour or two one new one in fifteen is looked up for nothing.
BITS = 1 << 25
#: Transactions held in memory, and decisions of them all.
TRANSACTIONS = 2_000
DECISIONS = 8_000
#: Partitions in which a transaction is looked for at the most; they hold two million decisions.
LOOKED_AT = 40
#: Rows that are taken in by one step of filling.
STEP_ROWS = 10_000


class Instances:
    """The decisions of each transaction, as far as they matter to a later request."""

    def __init__(self) -> None:
        self._held: dict[str, list[Decision | Earlier]] = {}
        #: Held ones of which the database may tell more: it could not be read when they came.
        self._partial: set[str] = set()
        self._decisions = 0
        self._turned = 0
        self._new = bytearray(BITS // 8)
        self._old = bytearray(BITS // 8)
        #: The decision down to which the database was read.
        self._below: int | None = None
        #: Whether the fields of bits tell of everything in the database.
        self.complete = False

    def of(self, request: Request) -> list[Earlier]:
        """The decisions of the request's transaction on its listener, oldest first."""
        held = self._held.get(request.instance)
        if not held:
            return []
        known = [_earlier(each) if isinstance(each, Decision) else each for each in held]
        held[:] = known
        return [earlier for earlier in known if earlier.listener == request.listener]

    def unread(self, requests: Iterable[Request]) -> list[str]:
        """The transactions of ``requests`` that have to be read; the others are known, or certainly new."""
        wanted: dict[str, None] = {}
        held, new, old, complete = self._held, self._new, self._old, self.complete
        for request in requests:
            instance = request.instance
            if instance and (instance not in held or instance in self._partial):
                for bit in _bits(instance) if complete else ():
                    if not (new[bit >> 3] | old[bit >> 3]) & (1 << (bit & 7)):
                        break
                else:
                    wanted[instance] = None
        return list(wanted)

    def read(
        self,
        connection: sqlite3.Connection,
        partitions: Sequence[Partition],
        instances: list[str],
        since: int,
    ) -> None:
        """Read what was decided since ledger time ``since``.

        :raises sqlite3.Error: nothing was learnt.
        """
        found: dict[str, list[Earlier]] = {instance: [] for instance in instances}
        for chunk in chunked(instances):
            wanted = values(1, len(chunk))
            for partition in partitions[:LOOKED_AT]:
                if partition.closed_at and partition.closed_at < since:
                    break
                rows = connection.execute(
                    f"WITH w (instance) AS (VALUES {wanted}) "
                    "SELECT d.instance, d.id, d.at, d.listener, d.stage, d.recipient, d.verdict, d.action, d.by, d.charges "
                    f"FROM w CROSS JOIN {partition.table} AS d ON d.instance = w.instance AND d.instance <> ''",
                    chunk,
                ).fetchall()
                for instance, *row in rows:
                    found[instance].append(Earlier(*row))
        for instance, earlier in found.items():
            read = {each.id for each in earlier}
            held = [each for each in self._held.get(instance, ()) if each.id not in read]
            self._decisions += len(earlier) + len(held) - len(self._held.get(instance, ()))
            self._held[instance] = [*sorted(earlier), *held]
            self._partial.discard(instance)

    def unreadable(self, requests: Iterable[Request]) -> None:
        """What the database knows of these could not be read; it has to be read later."""
        self._partial.update(self.unread(requests))

    def add(self, decision: Decision) -> None:
        """A request was decided."""
        instance = decision.request.instance
        self._decisions += 1
        held = self._held.get(instance)
        if held is None:
            self._held[instance] = [decision]
        else:
            held.append(decision)

    def forget(self, decision: Decision) -> None:
        """A decision did not come about: its batch is decided again."""
        held = self._held.get(decision.request.instance, [])
        kept = [earlier for earlier in held if earlier.id != decision.id]
        self._decisions -= len(held) - len(kept)
        held[:] = kept
        if not kept:
            self._held.pop(decision.request.instance, None)

    def _mark(self, instance: str) -> None:
        for bit in _bits(instance):
            self._new[bit >> 3] |= 1 << (bit & 7)

    def trim(self, now: int, unwritten: int) -> None:
        """Let go of the oldest.

        :param unwritten: the decisions, the newest ones, that no table tells of yet.
        """
        if len(self._held) > TRANSACTIONS + unwritten or self._decisions > DECISIONS + unwritten:
            for instance in list(self._held)[: max(1, (len(self._held) - unwritten) // 4)]:
                # Only now: what was decided and taken back, because something had to be read first, is as new as before.
                self._mark(instance)
                self._decisions -= len(self._held.pop(instance))
                self._partial.discard(instance)
            if len(self._partial) > TRANSACTIONS + unwritten:
                self._partial.clear()
        if now - self._turned > IDENTITY:
            if self._turned:
                self._old, self._new = self._new, bytearray(BITS // 8)
            self._turned = now

    def fill(self, connection: sqlite3.Connection, partitions: Sequence[Partition], since: int) -> bool:
        """Take in some of what was decided before the start, newest first; whether there is more to take."""
        if self.complete:
            return False
        for partition in partitions:
            if partition.closed_at and partition.closed_at < since:
                break
            if self._below is not None and partition.first_id >= self._below:
                continue
            rows = connection.execute(
                f"SELECT id, at, instance FROM {partition.table} WHERE id < ? ORDER BY id DESC LIMIT ?",
                (self._below if self._below is not None else 1 << 62, STEP_ROWS),
            ).fetchall()
            for _, _, instance in rows:
                self._mark(instance)
            self._below = rows[-1][0] if len(rows) == STEP_ROWS else partition.first_id
            if rows and rows[-1][1] < since:
                break
            return True
        self.complete = True
        return False


def _bits(instance: str) -> tuple[int, int]:
    mark = hash(instance)
    return mark & (BITS - 1), mark >> 32 & (BITS - 1)


def _earlier(decision: Decision) -> Earlier:
    request, settled = decision.request, decision.settled
    return Earlier(
        decision.id,
        decision.at,
        request.listener,
        request.stage,
        request.recipient,
        settled.verdict,
        str(settled.answer),
        settled.by,
        settled.charges,
    )


def earlier_of(held: Sequence[Earlier], request: Request, since: int) -> Earlier | None:
    """The newest decision on the same request: same stage, and at RCPT the same recipient."""
    for earlier in reversed(held):
        if earlier.stage == request.stage and (
            request.stage != RCPT or earlier.recipient == request.recipient
        ):
            return earlier if earlier.at > since else None
    return None

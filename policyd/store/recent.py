"""Remembers which requests were decided of late, so that most new ones need not be looked for in the database.

A bit per remembered request, by its hash: "no" is certain, "perhaps" has to be looked up. Two fields of bits take turns,
so that each request is remembered for at least :data:`~policyd.store.ledger.IDENTITY` and memory does not grow. Until the
field has been filled from the database after a start, everything is "perhaps".
"""

from __future__ import annotations

import sqlite3

from policyd.request import RCPT
from policyd.store.partitions import Partition

#: Bits of one field; with a million requests an hour one in seventeen new ones is looked up for nothing.
BITS = 1 << 24
#: Rows that are taken in by one step.
STEP_ROWS = 10_000


def key_of(instance: str, stage: str, recipient: str) -> int:
    """What a request is remembered by: at RCPT its recipient belongs to it."""
    return hash((instance, stage, recipient) if stage == RCPT else (instance, stage)) & (BITS - 1)


def any_recipient(instance: str) -> int:
    """What is remembered when any recipient of ``instance`` was asked about."""
    return hash((instance, RCPT)) & (BITS - 1)


class Recent:
    """The two fields of bits."""

    def __init__(self, span: int) -> None:
        """
        :param span: how long a request has to be remembered, ms.
        """
        self._span = span
        self._turned = 0
        self._new = bytearray(BITS // 8)
        self._old = bytearray(BITS // 8)
        #: The decision down to which the database was read; 0: all that matters is remembered.
        self._below: int | None = None
        self.complete = False

    def remember(self, instance: str, stage: str, recipient: str) -> None:
        """A request was decided."""
        bit = key_of(instance, stage, recipient)
        self._new[bit >> 3] |= 1 << (bit & 7)
        if stage == RCPT:
            bit = any_recipient(instance)
            self._new[bit >> 3] |= 1 << (bit & 7)

    def perhaps(self, bit: int) -> bool:
        """Whether a request with this key may have been decided."""
        at, mask = bit >> 3, 1 << (bit & 7)
        return not self.complete or bool((self._new[at] | self._old[at]) & mask)

    def turn(self, now: int) -> None:
        """Let the older field go when both have been in use for long enough."""
        if now - self._turned > self._span:
            if self._turned:
                self._old, self._new = self._new, bytearray(BITS // 8)
            self._turned = now

    def fill(self, connection: sqlite3.Connection, partitions: list[Partition], since: int) -> bool:
        """Take in some of what was decided before the start, newest first; whether there is more to take."""
        if self.complete:
            return False
        for partition in partitions:
            if partition.closed_at and partition.closed_at < since:
                break
            if self._below is not None and partition.first_id >= self._below:
                continue
            rows = connection.execute(
                f"SELECT id, at, instance, stage, recipient FROM {partition.table} WHERE id < ? ORDER BY id DESC LIMIT ?",
                (self._below if self._below is not None else 1 << 62, STEP_ROWS),
            ).fetchall()
            for _, _, instance, stage, recipient in rows:
                if instance:
                    self.remember(instance, stage, recipient)
            self._below = rows[-1][0] if len(rows) == STEP_ROWS else partition.first_id
            if rows and rows[-1][1] < since:
                break
            return True
        self.complete = True
        return False

"""What a batch of operations comes to, as it goes through the ledger: decisions, charges, rows; staged, written or taken back."""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from policyd.decision import Decision, Operation
from policyd.opinion import CounterKey
from policyd.request import WRITTEN
from policyd.steering import Suspension
from policyd.store.accounts import Layer
from policyd.store.memory import Facts

log = logging.getLogger("policyd.store")

_REF_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
REF_SPACE = 32**5


class Charge(NamedTuple):
    """One step of counting, so that it can be done again on another copy of the counter."""

    key: CounterKey
    widths: tuple[int, ...]
    amount: int
    at: int


class Notes:
    """Rows that are only added: suspensions, events, history."""

    __slots__ = ("events", "history", "suspensions")

    def __init__(self) -> None:
        self.suspensions: list[Suspension] = []
        self.events: list[tuple[Any, ...]] = []
        self.history: list[tuple[Any, ...]] = []

    def __bool__(self) -> bool:
        return bool(self.events or self.history or self.suspensions)

    def take(self, other: Notes) -> None:
        """Add what ``other`` has."""
        self.suspensions += other.suspensions
        self.events += other.events
        self.history += other.history


class Batch(NamedTuple):
    """What a batch of operations came to: a decision each (``None``: it failed), what was counted and is remembered."""

    decisions: list[Decision | None]
    charges: list[Charge]
    facts: Facts
    accounts: Layer
    notes: Notes


class Stage(enum.Enum):
    """What became of operations that were to be staged."""

    STAGED = enum.auto()
    #: Something has to be read first.
    UNREAD = enum.auto()
    #: They need a transaction of their own.
    ALONE = enum.auto()


class Staged:
    """What is decided and not yet written; grows until it is its turn."""

    __slots__ = ("batch", "counters", "generation", "operations", "rows")

    def __init__(self) -> None:
        #: Of the steering data that it was decided with.
        self.generation = 0
        self.operations: list[Operation] = []
        self.batch = Batch([], [], {}, Layer(), Notes())
        self.rows: list[tuple[str | int | None, ...]] = []
        #: The row of each counter that changed, by its key.
        self.counters: dict[tuple[str, ...], tuple[Any, ...]] = {}


def reference(sequence: int) -> str:
    """The reference with this number: five characters, not in a row, unique for the first 33 million."""
    turn, number = divmod(sequence, REF_SPACE)
    # An odd multiplier permutes the numbers below 2^25.
    number = (number * 0x13C6EF3 + 0x155_5555) % REF_SPACE
    digits = []
    for _ in range(5):
        number, digit = divmod(number, 32)
        digits.append(_REF_DIGITS[digit])
    while turn:
        turn, digit = divmod(turn, 32)
        digits.append(_REF_DIGITS[digit])
    return "".join(reversed(digits))


class NotWritten(Exception):
    """A batch was decided, and could not be committed."""

    def __init__(self, batch: Batch) -> None:
        super().__init__("not committed")
        self.batch = batch


def row_of(decision: Decision) -> tuple[str | int | None, ...]:
    """The columns of schema/decision.sql."""
    identifier, at, wall_at, request, settled, policy, micros = decision
    answer = settled.answer
    return (
        (identifier, at, wall_at)
        + request[:WRITTEN]
        + (answer.verb if not answer.text else str(answer),)
        + settled[1:8]
        + (policy, micros, settled.mark)
    )


def bindable(values: Iterable[object]) -> bool:
    """Whether SQLite can take the values; it always should, and one that it cannot must not hold up all others."""
    try:
        for value in values:
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError as error:
        log.error("a decision cannot be written and is left out: %s", error)
        return False
    return True

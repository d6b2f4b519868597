"""Statements that take many rows at once: they let go of the interpreter once, not once a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeVar

T = TypeVar("T")

#: Rows of one statement at the most. Each length below is a statement of its own, prepared once: a statement more in a
#: transaction costs more, in waiting for the interpreter, than the rows in it.
MOST = 64
#: Columns of schema/decision.sql.
DECISION_COLUMNS = 28


def chunked(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """``items`` in pieces of at most :data:`MOST`."""
    for at in range(0, len(items), MOST):
        yield items[at : at + MOST]


def flat(rows: Iterable[Iterable[object]]) -> list[object]:
    """All values of all rows, for one statement."""
    return list(chain.from_iterable(rows))


@lru_cache(maxsize=512)
def values(columns: int, rows: int) -> str:
    """The placeholders of ``rows`` rows: ``(?, ?), (?, ?)``."""
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


@lru_cache(maxsize=256)
def insert_decisions(table: str, rows: int) -> str:
    """Insert so many rows into a partition."""
    return f"INSERT INTO {table} VALUES {values(DECISION_COLUMNS, rows)}"


@lru_cache(maxsize=MOST)
def select_counters(rows: int) -> str:
    """Read so many counters."""
    return (
        f"WITH w (scope, value, unit) AS (VALUES {values(3, rows)}) "
        "SELECT c.scope, c.value, c.unit, c.cells FROM w CROSS JOIN counter AS c "
        "ON c.scope = w.scope AND c.value = w.value AND c.unit = w.unit"
    )


@lru_cache(maxsize=MOST)
def upsert_counters(rows: int) -> str:
    """Write so many counters."""
    return (
        f"INSERT INTO counter (scope, value, unit, cells, expires_at) VALUES {values(5, rows)} "
        "ON CONFLICT (scope, value, unit) DO UPDATE SET cells = excluded.cells, expires_at = excluded.expires_at"
    )

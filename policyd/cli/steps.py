"""Much that is written while the daemon runs: in transactions so short that it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from policyd.cli.common import Session, Terms
from policyd.store import admin

T = TypeVar("T")
#: What a step of writing may take, s: the daemon waits for it.
STEP = 0.04
#: Rows of the first step, and of any.
FIRST_STEP, MOST_IN_STEP = 200, 20_000


def in_steps(
    session: Session, terms: Terms, rows: Iterator[T], write: Callable[[admin.Change, Sequence[T]], None]
) -> None:
    """Write in short transactions; the daemon gets as much time between them.

    :raises StoreError: the steps before are written.
    """
    size = FIRST_STEP
    while piece := list(islice(rows, size)):
        with session.changing() as connection:
            began = time.monotonic()
            with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
                write(change, piece)
            took = time.monotonic() - began
        time.sleep(min(took, STEP))
        size = max(FIRST_STEP // 4, min(MOST_IN_STEP, int(size * min(2.0, STEP / max(took, 0.001)))))

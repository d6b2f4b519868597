"""What was decided in trouble and is on no disk yet, in pieces: what was decided together is written together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from policyd.decision import Decision
from policyd.steering import Suspension
from policyd.store.batch import Batch, Charge, Notes, bindable, row_of

K = TypeVar("K")
V = TypeVar("V")


class Piece(NamedTuple):
    """What one batch left: its rows, and what they counted."""

    decisions: list[Decision]
    charges: list[Charge]
    notes: Notes


class Backlog:
    """The pieces, oldest first. Facts and accounts, of which only the last state matters, wait where they are kept."""

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self._decisions = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def __len__(self) -> int:
        """Decisions that no table tells of."""
        return self._decisions

    def keep(self, batch: Batch) -> None:
        """Add what a batch came to; what the database could never take is left out."""
        decisions = [each for each in batch.decisions if each is not None and bindable(row_of(each))]
        charges = [charge for charge in batch.charges if bindable(charge.key)]
        notes = Notes()
        notes.take(batch.notes)
        if decisions or charges or notes:
            self._pieces.append(Piece(decisions, charges, notes))
            self._decisions += len(decisions)

    def first(self, most: int) -> list[Piece]:
        """The oldest pieces, one at least, more while they have no more than ``most`` decisions."""
        pieces: list[Piece] = []
        decisions = 0
        for piece in self._pieces:
            decisions += len(piece.decisions)
            if pieces and decisions > most:
                break
            pieces.append(piece)
        return pieces

    def written(self, pieces: list[Piece]) -> None:
        """The oldest, these, are on disk."""
        for piece in pieces:
            self._pieces.popleft()
            self._decisions -= len(piece.decisions)

    def counted(self) -> None:
        """All that was counted is on disk, and what was noted; the rows are not."""
        self._pieces = deque(Piece(each.decisions, [], Notes()) for each in self._pieces if each.decisions)

    def first_id(self) -> int:
        """The lowest number of a decision; 0: there is none."""
        return next((piece.decisions[0].id for piece in self._pieces if piece.decisions), 0)

    def renumber(self, shift: int) -> None:
        """Make each number larger by ``shift``."""
        for piece in self._pieces:
            piece.decisions[:] = [each._replace(id=each.id + shift) for each in piece.decisions]

    def charges(self) -> Iterator[Charge]:
        """All that was counted, in order."""
        return (charge for piece in self._pieces for charge in piece.charges)

    def suspensions(self) -> Iterator[Suspension]:
        """All that were made, in order."""
        return (row for piece in self._pieces for row in piece.notes.suspensions)

    def notes(self) -> Notes:
        """All that was noted, in order."""
        notes = Notes()
        for piece in self._pieces:
            notes.take(piece.notes)
        return notes


def some(of: dict[K, V], most: int) -> dict[K, V]:
    """The first entries of a dictionary."""
    return dict(islice(of.items(), most))

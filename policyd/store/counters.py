"""Counters as batches work on them: a cache of the counter table, charged in memory, packed to be written, bounded."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Container, Iterable, Sequence

from policyd.opinion import CounterKey
from policyd.store.batch import Charge
from policyd.store.statements import chunked, flat, select_counters, upsert_counters
from policyd.window import Counter

log = logging.getLogger("policyd.store")

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: Counters kept in memory.
CACHED = 8_000
Row = tuple[str, str, str, bytes, int]


class Counters:
    """What was counted, as far as it is in memory; what is not has to be read first (:meth:`read`)."""

    def __init__(self) -> None:
        self._cache: dict[CounterKey, Counter] = {}
        #: As the table has them, of the parts of the backlog that are written.
        self._healed: dict[CounterKey, Counter] = {}
        #: Those that changed since the rows of such were taken last.
        self._changed: set[CounterKey] = set()
        #: What the batch that is being decided has counted.
        self._charges: list[Charge] = []

    def __contains__(self, key: object) -> bool:
        """Whether it is in memory. A plain tuple finds what a CounterKey does."""
        return key in self._cache

    # --- on the loop too ---------------------------------------------------------------------------------------------

    def of(self, key: CounterKey) -> Counter | None:
        """The counter as the operations before left it; ``None``: the table has to be asked."""
        return self._cache.get(key)

    def begin(self, key: CounterKey) -> Counter:
        """The same; an empty one where nothing is known."""
        return self._cache.setdefault(key, Counter())

    def charge(
        self, key: CounterKey, counter: Counter, widths: tuple[int, ...], amount: int, at: int
    ) -> None:
        """Count ``amount`` in ``counter``, which is the one of ``key``."""
        counter.charge(widths, amount, at)
        self._changed.add(key)
        self._charges.append(_new(Charge, (key, widths, amount, at)))

    def decided(self) -> list[Charge]:
        """What the batch has counted, which is decided now; another one begins."""
        charges, self._charges = self._charges, []
        return charges

    def undo(self, charges: list[Charge]) -> None:
        """Take back what a batch has counted, the newest first."""
        for key, _, amount, at in reversed(charges):
            counter = self._cache.get(key)
            if counter is not None:
                counter.add(-amount, at)

    def changed(self) -> set[CounterKey]:
        """Those that changed since this was asked last."""
        changed, self._changed = self._changed, set()
        return changed

    def rows(self, keys: Iterable[CounterKey], now: int) -> list[Row]:
        """The rows of ``keys`` at ledger time ``now``, in the table's order."""
        rows = []
        for key in sorted(keys):
            counter = self._cache[key]
            rows.append((*key, counter.pack(), counter.expires(now)))
        return rows

    # --- on the writer's thread --------------------------------------------------------------------------------------

    def read(self, connection: sqlite3.Connection, keys: Iterable[CounterKey]) -> None:
        """Read those of ``keys`` that are not in memory.

        :raises sqlite3.Error: nothing was learnt.
        """
        missing = sorted(key for key in keys if key not in self._cache)
        found = {key: Counter() for key in missing}
        for chunk in chunked(missing):
            sql = select_counters(len(chunk))
            for scope, value, unit, cells in connection.execute(sql, flat(chunk)).fetchall():
                try:
                    found[CounterKey(scope, value, unit)] = Counter.unpack(cells)
                except ValueError as error:
                    log.error(
                        "store-damaged: the counter of %s %r cannot be read, it begins anew: %s",
                        scope,
                        value,
                        error,
                    )
        self._cache.update(found)

    def write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Write rows, within the caller's transaction.

        :raises sqlite3.Error: the caller rolls back.
        """
        for chunk in chunked(rows):
            connection.execute(upsert_counters(len(chunk)), flat(chunk))

    def replay(self, connection: sqlite3.Connection, charges: Collection[Charge]) -> None:
        """Count once more, on top of what is in memory or the table says.

        :raises sqlite3.Error: nothing was counted.
        """
        self.read(connection, {charge.key for charge in charges})
        for charge in charges:
            self._cache[charge.key].charge(charge.widths, charge.amount, charge.at)

    def trim(self, but: Container[tuple[str, ...]] = ()) -> None:
        """Let go of what was read first.

        :param but: those that the table does not know yet.
        """
        excess = len(self._cache) - CACHED
        if excess > 0:
            for key in list(self._cache)[: excess + CACHED // 8]:
                if key not in but:
                    del self._cache[key]

    def crowded(self) -> bool:
        """Whether there are far more than are kept as a rule, because no row can be written."""
        return len(self._cache) > 2 * CACHED

    def keep_only(self, keys: Container[CounterKey]) -> None:
        """Let go of all but ``keys``."""
        self._cache = {key: counter for key, counter in self._cache.items() if key in keys}

    def forget(self, keys: Iterable[CounterKey]) -> None:
        """Somebody else has changed these: what was read holds no more."""
        for key in keys:
            self._cache.pop(key, None)
            self._healed.pop(key, None)

    def clear(self) -> None:
        """Forget all, when memory may say something else than the table."""
        self._cache.clear()
        self._changed.clear()

    # --- trouble -----------------------------------------------------------------------------------------------------

    def set_aside(self) -> dict[CounterKey, Counter]:
        """Begin with none, to count parts of a backlog on top of the table; what there was, for :meth:`put_back`."""
        whole, self._cache = self._cache, {}
        return whole

    def put_back(self, whole: dict[CounterKey, Counter]) -> None:
        """What was :meth:`set_aside` is what holds."""
        self._cache = whole
        self._changed.clear()

    def part_written(self) -> None:
        """What is in memory now is in the table, of all that is to be written."""
        self._healed.update(self._cache)

    def all_written(self) -> None:
        """The table alone says what was counted; what it says is kept, should it soon be out of reach again."""
        self._cache, self._healed = self._healed, {}

    def reopened(self) -> None:
        """The table may be another one: what parts of a backlog wrote into the former one does not hold."""
        self._healed = {}

    def all_rows(self, now: int) -> list[Row]:
        """The rows of all that is in memory, for a new database."""
        return self.rows(self._cache, now)

    def written_anew(self) -> None:
        """A new table has :meth:`all_rows`, and nothing else; what was written into the former one does not hold."""
        self._healed = dict(self._cache)
        self._changed.clear()

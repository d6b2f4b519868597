"""Sliding windows: how much was counted in the last W milliseconds, in at most 61 slots.

The theory. Time is ledger time in integer milliseconds. A *series* counts one thing in slots of one width;
slot ``i`` covers the milliseconds ``[i * width, (i + 1) * width)``. A window ``(now - W, now]`` uses the
smallest width of :data:`LADDER` that is at least ``W / 60``, so windows of similar length share a series. Every slot
that touches the window counts in full. So the error is only ever strict: no true window of length W holds more than
its limit, and room returns at most one slot late.

A *counter* is all the series of one (scope, value, unit), packed into one blob, so that a request reads and writes one
row however many limits look at it. A series is kept for as long as its own longest span after a limit last asked
for it; a width that is new is filled from the series that exist (:func:`Counter.series`), so a changed window
keeps its history.

Pure arithmetic: no clock, no store. Times that go backwards are the ledger's business; a time older than the newest
slot is still counted where it belongs.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain

from policyd.units import DAY, HOUR, MAX_AMOUNT, MINUTE, SECOND

#: Slot widths in ms; each divides the next (from one day on they double).
LADDER = (
    20,
    100,
    500,
    1 * SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    1 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    30 * MINUTE,
    1 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    1 * DAY,
    2 * DAY,
    4 * DAY,
    8 * DAY,
)
#: Slots that can touch a window of 60 widths.
SLOTS = 61

_FORMAT = 1
_HEAD = struct.Struct("<BB")
#: Per series: width, asked, number of cells; then the cells, each the index of a slot and its amount.
_SERIES = struct.Struct("<QQB")


@lru_cache(maxsize=SLOTS + 1)
def _packer(cells: int) -> struct.Struct:
    return struct.Struct(f"<QQB{2 * cells}Q")


def slot_width(window: int) -> int:
    """The width of the slots that a window of ``window`` ms is counted in."""
    at = bisect_left(LADDER, -(-window // 60))
    if at == len(LADDER):
        raise ValueError(f"a window of {window} ms is longer than the ladder reaches")
    return LADDER[at]


class Series:
    """Amounts per slot of one width: ``cells`` maps a slot's index to what was counted in it."""

    __slots__ = ("asked", "cells", "width")

    def __init__(self, width: int, asked: int = 0, cells: dict[int, int] | None = None) -> None:
        self.width = width
        #: Ledger time at which a limit last asked for this width.
        self.asked = asked
        self.cells: dict[int, int] = {} if cells is None else cells

    @property
    def span(self) -> int:
        """How far back the series can be asked, in ms."""
        return self.width * SLOTS

    def used(self, window: int, now: int) -> int:
        """What was counted in every slot that touches ``(now - window, now]``; slots after ``now`` count too.

        A slot after ``now`` exists only if a count was taken at a later time than ``now``; leaving it out would be
        the lenient error.
        """
        oldest = (now - window + 1) // self.width
        total = 0
        for slot, amount in self.cells.items():
            if slot >= oldest:
                total += amount
        return total

    def room_at(self, window: int, now: int, excess: int) -> int:
        """The first ledger time, from ``now`` on, at which ``excess`` or more of what counts now has left the window."""
        if excess <= 0:
            return now
        oldest = (now - window + 1) // self.width
        for slot in sorted(slot for slot in self.cells if slot >= oldest):
            excess -= self.cells[slot]
            if excess <= 0:
                return max(now, (slot + 1) * self.width + window - 1)
        return now

    def add(self, amount: int, at: int) -> None:
        """Count ``amount`` (negative: take back) at ledger time ``at``; a slot stays within 0 and 2^53."""
        slot = at // self.width
        cells = self.cells
        total = cells.get(slot, 0) + amount
        cells[slot] = total if 0 <= total <= MAX_AMOUNT else 0 if total < 0 else MAX_AMOUNT
        if len(cells) > SLOTS:
            # What lies before the span of the newest slot can never be asked for again.
            oldest = max(cells) - SLOTS + 1
            for old in [slot for slot in cells if slot < oldest]:
                del cells[old]

    def copy(self) -> Series:
        """A series of its own with the same cells."""
        return Series(self.width, self.asked, dict(self.cells))


class Counter:
    """All series of one (scope, value, unit)."""

    __slots__ = ("all",)

    def __init__(self, series: dict[int, Series] | None = None) -> None:
        self.all: dict[int, Series] = {} if series is None else series

    def copy(self) -> Counter:
        """A counter of its own with the same contents."""
        return Counter({width: series.copy() for width, series in self.all.items()})

    def used(self, window: int, now: int) -> int:
        """What counts against a limit with this window, whether or not its width was asked for before."""
        return self.peek(slot_width(window), now).used(window, now)

    def room_at(self, window: int, now: int, excess: int) -> int:
        """See :meth:`Series.room_at`."""
        return self.peek(slot_width(window), now).room_at(window, now, excess)

    def peek(self, width: int, now: int) -> Series:
        """The series of ``width``: the one that exists, else one filled from the others; changes nothing.

        Filled again at a later ``now`` it may place an amount later, as long as the slot it comes from lasts. Only
        :meth:`ask` settles where it stands, so a limit that refuses should ask too.
        """
        series = self.all.get(width)
        return self._derived(width, now) if series is None else series

    def ask(self, width: int, now: int) -> None:
        """Keep a series of ``width`` from now on, filled from the others when it is new."""
        series = self.all.get(width)
        if series is None:
            self.all[width] = self._derived(width, now)
        else:
            series.asked = now

    def add(self, amount: int, at: int) -> None:
        """Count in every series, so that each stays complete, and drop those nobody asked for in their whole span."""
        stale = False
        for series in self.all.values():
            if at != series.asked and at - series.asked > series.width * SLOTS:
                stale = True
            series.add(amount, at)
        if stale:
            self.all = {
                width: series for width, series in self.all.items() if at - series.asked <= series.span
            }

    def charge(self, widths: Iterable[int], amount: int, at: int) -> None:
        """Count, in series of ``widths`` among others: :meth:`ask` for each, then :meth:`add`."""
        every = self.all
        for width in widths:
            series = every.get(width)
            if series is None:
                every[width] = self._derived(width, at)
            else:
                series.asked = at
        self.add(amount, at)

    def expires(self, now: int) -> int:
        """The ledger time from which on nothing counted up to ``now`` can be asked for."""
        return now + max(self.all, default=0) * (SLOTS + 1)

    def _derived(self, width: int, now: int) -> Series:
        """A series of ``width`` filled from the finest history there is, strictly: no count gets older by it.

        Working from the finest series to the coarsest, each contributes what lies before the part already covered.
        A coarse slot that reaches into the covered part contributes what the finer ones did not see of it. Its
        amount is put as late as the slot allows, before the covered part and never after ``now``: a cell of the
        future would push real ones out of the span. Because each width divides the next, what was put late stays
        inside the same coarser slot.
        """
        placed: list[tuple[int, int]] = []
        covered_from = (
            max([now] + [(slot + 1) * s.width - 1 for s in self.all.values() for slot in s.cells]) + 1
        )
        for source in sorted(self.all.values(), key=lambda series: series.width):
            if not source.cells:
                continue
            seen: dict[int, int] = {}
            for at, amount in placed:
                seen[at // source.width] = seen.get(at // source.width, 0) + amount
            oldest = max(*source.cells, now // source.width) - SLOTS + 1
            for slot, amount in source.cells.items():
                start, end = slot * source.width, (slot + 1) * source.width
                left = amount if end <= covered_from else amount - seen.get(slot, 0)
                if slot >= oldest and start < covered_from and left > 0:
                    latest = min(end, covered_from) - 1
                    # A slot that begins after now was counted at a later time than now.
                    placed.append((latest if start > now else min(latest, now), left))
            covered_from = min(covered_from, oldest * source.width)
        fresh = Series(width, now)
        for at, amount in placed:
            fresh.cells[at // width] = min(MAX_AMOUNT, fresh.cells.get(at // width, 0) + amount)
        if fresh.cells:
            oldest = max(fresh.cells) - SLOTS + 1
            fresh.cells = {slot: amount for slot, amount in fresh.cells.items() if slot >= oldest}
        return fresh

    def pack(self) -> bytes:
        """The counter as bytes; cells that no window can ask for any more are left out."""
        out = [_HEAD.pack(_FORMAT, len(self.all))]
        for series in self.all.values():
            cells = series.cells
            if len(cells) > 1:
                oldest = max(cells) - SLOTS + 1
                if min(cells) < oldest:
                    cells = {slot: amount for slot, amount in cells.items() if slot >= oldest}
            count = len(cells)
            out.append(
                _packer(count).pack(series.width, series.asked, count, *chain.from_iterable(cells.items()))
            )
        return b"".join(out)

    @classmethod
    def unpack(cls, blob: bytes) -> Counter:
        """Read what :meth:`pack` wrote; :class:`ValueError` when it is something else."""
        try:
            form, count = _HEAD.unpack_from(blob)
            if form != _FORMAT:
                raise ValueError(f"a counter of format {form}, this policyd reads format {_FORMAT}")
            at, all_series = _HEAD.size, {}
            for _ in range(count):
                width, asked, cells = _SERIES.unpack_from(blob, at)
                at += _SERIES.size
                flat = struct.unpack_from(f"<{2 * cells}Q", blob, at)
                at += 16 * cells
                slots = flat[::2]
                if (
                    width not in LADDER
                    or cells > SLOTS
                    or max(slots, default=0) - min(slots, default=0) >= SLOTS
                    or max(slots, default=0) * width > MAX_AMOUNT
                ):
                    raise ValueError("a damaged counter: no such series")
                all_series[width] = Series(width, asked, dict(zip(slots, flat[1::2], strict=True)))
        except struct.error as error:
            raise ValueError(f"a damaged counter: {error}") from None
        if at != len(blob):
            raise ValueError("a damaged counter: more than its series")
        return cls(all_series)

"""The busiest windows of what was sent, and what limits they suggest. Pure: amounts with their times in, numbers out.

A window is counted in slots as :mod:`policyd.window` counts it, so a peak is what a limit would have had to allow.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from policyd.units import DAY, UNITS, Limit
from policyd.window import slot_width

#: A limit that is suggested leaves the account that sends most, of all but one in a hundred, half as much again.
ORDINARY = 99
ROOM = 1.5
#: Digits of an amount that are told apart, of octets for example.
_DIGITS = 3


class Peak:
    """The busiest window of one length. Times come in order."""

    __slots__ = ("_sum", "_width", "_window", "highest", "slots")

    def __init__(self, window: int, width: int = 0) -> None:
        """
        :param width: of a slot, ms; 0: as limits count.
        """
        self._window = window
        self._width = width or slot_width(window)
        self._sum = 0
        self.slots: deque[list[int]] = deque()
        self.highest = 0

    def add(self, at: int, amount: int) -> int:
        """Count ``amount`` at ``at`` (ms); what the window that ends there holds."""
        slots, slot = self.slots, at // self._width
        oldest = (at - self._window + 1) // self._width
        while slots and slots[0][0] < oldest:
            self._sum -= slots.popleft()[1]
        if slots and slots[-1][0] >= slot:
            slots[-1][1] += amount
        else:
            slots.append([slot, amount])
        self._sum += amount
        self.highest = max(self.highest, self._sum)
        return self._sum


class Days:
    """The busiest window of each day, for the newest days on which something was sent."""

    def __init__(self, window: int, width: int, keep: int) -> None:
        self._peak = Peak(window, width)
        self._keep = keep
        #: ``[day, amount]``, the newest last.
        self.days: list[list[int]] = []

    def add(self, at: int, amount: int) -> None:
        """Count ``amount`` at ``at`` (ms)."""
        after, day = self._peak.add(at, amount), at // DAY
        if self.days and self.days[-1][0] == day:
            self.days[-1][1] = max(self.days[-1][1], after)
        else:
            self.days.append([day, after])
            del self.days[: -self._keep]


def merged(known: Sequence[Sequence[int]], learned: Sequence[Sequence[int]], keep: int) -> list[list[int]]:
    """Both lists of ``[day, amount]`` as one: of each day the larger amount, the newest ``keep`` days."""
    days = {entry[0]: entry[1] for entry in known}
    for day, amount in learned:
        days[day] = max(amount, days.get(day, 0))
    return [[day, days[day]] for day in sorted(days)][-keep:]


class Spread:
    """How amounts are spread over accounts: how many have which. Large ones are told apart by three digits, rounded up."""

    def __init__(self) -> None:
        self._count: dict[int, int] = {}
        self._ordered: list[int] = []
        self.accounts = 0
        self.highest = 0

    def add(self, amount: int) -> None:
        """Take in one account's."""
        self.accounts += 1
        self.highest = max(self.highest, amount)
        amount = rounded_up(amount, _DIGITS)
        if amount not in self._count:
            insort(self._ordered, amount)
            self._count[amount] = 0
        self._count[amount] += 1

    def share(self, percent: int) -> int:
        """The smallest amount that so many per cent of the accounts do not exceed."""
        left = -(-self.accounts * percent // 100)
        for amount in self._ordered:
            left -= self._count[amount]
            if left <= 0:
                return min(amount, self.highest)
        return self.highest

    @property
    def suggested(self) -> int:
        """What leaves ordinary accounts room: two digits, rounded up."""
        return rounded_up(math.ceil(self.share(ORDINARY) * ROOM), 2)


def rounded_up(amount: int, digits: int) -> int:
    """``amount`` with so many digits that are not 0."""
    step = int(10 ** max(0, len(str(amount)) - digits))
    return -(-amount // step) * step


class Sent(NamedTuple):
    """What one mail amounts to."""

    at: int
    recipients: int
    #: Those outside the site's own domains.
    external: int
    size: int


class Measured:
    """The busiest windows of one account."""

    def __init__(self, limits: Mapping[tuple[str, int], None], external: bool) -> None:
        """
        :param limits: the units and windows that matter.
        :param external: whether mail among the site's own domains is left out.
        """
        self.peaks = {(unit, window): Peak(window) for unit, window in limits}
        self._external = external

    def add(self, sent: Sent) -> None:
        """Count one mail; later ones are not earlier."""
        recipients = sent.external if self._external else sent.recipients
        if not recipients:
            return
        amounts = {"messages": 1, "recipients": recipients, "bytes": sent.size}
        for (unit, _), peak in self.peaks.items():
            peak.add(sent.at, amounts[unit])


def windows_of(limits: list[Limit], more: list[tuple[str, int]]) -> dict[tuple[str, int], None]:
    """The units and windows of ``limits``, and ``more``, in the order of units and windows."""
    pairs = {*((limit.unit, limit.window) for limit in limits), *more}
    return dict.fromkeys(sorted(pairs, key=lambda pair: (UNITS.index(pair[0]), pair[1])))

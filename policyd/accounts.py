"""What is remembered of one account: its tier, its strikes, what the detectors have seen of it, how much it used to send.

All of it is the row of the table ``account`` (policyd/store/schema/0004_accounts.sql). Times are ledger time in ms.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from policyd.tiers import Tiers
from policyd.units import DAY

#: Who put an account into its tier.
BY_HAND, LEARNED, PROMOTED = "hand", "learned", "promoted"
#: Days of which the busiest windows are kept, the newest ones on which something was sent.
DAYS_KEPT = 60
#: How long a recipient stays known after the last mail to it.
KNOWN_FOR = 400 * DAY
#: For so long after the recipients began to be remembered, without learning from logs, what needs that memory only alerts.
APPRENTICE = 30 * DAY
#: Names of milestones (table ``milestone``).
MEMORY_BEGAN, LOGS_LEARNED = MILESTONES = "memory", "learned"

#: The columns of the table ``account`` that the daemon writes, in the order of :meth:`Account.row`.
COLUMNS = (
    "user",
    "tier",
    "tier_by",
    "tier_since",
    "probation_until",
    "first_at",
    "last_at",
    "messages",
    "incident_at",
    "strikes",
    "marks",
    "past",
)

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def digest(text: str) -> int:
    """A number below 2^63 that stands for a folded address or another value; two values share one by chance never."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


Marks = Mapping[str, Mapping[str, Sequence[int]]]


class Repeated(NamedTuple):
    """What a request brought that the next one like it brings again: the values that it left in the marks, by detector."""

    #: What makes the next one alike.
    key: tuple[Any, ...]
    values: tuple[tuple[str, tuple[str, ...]], ...]
    #: When it came last, and the decision on it.
    at: int
    decision: int


class Flow(NamedTuple):
    """What is added up in the present part of a window."""

    slot: int
    #: In the parts before that are in the window.
    earlier: int
    #: In this one.
    amount: int
    decision: int
    #: Its name in ``past``, the day, and the busiest window of that day since this part began.
    kept: str
    day: int
    peak: int


class Account:
    """One row of the table, as it is worked on.

    ``marks`` holds for each detector what it has seen: ``{value: [at, decision]}``, the newest last. ``past`` holds for each
    ``"unit/window"`` the busiest window of past days: a list of ``[day, amount]``, the newest last. Copies share both, with all
    that is in them: they are replaced, never changed.

    Most requests of an account are like the one before: same client, same sender, same recipients. All that such a one changes in
    the marks is when their values were seen last; so it is only noted in ``asked`` and ``sent``, and :meth:`seen` gives the marks
    with it.
    """

    __slots__ = (
        "_tier",
        "asked",
        "first_at",
        "flows",
        "incident_at",
        "last_at",
        "marks",
        "messages",
        "over",
        "past",
        "probation_until",
        "saved_at",
        "sent",
        "strikes",
        "tier",
        "tier_by",
        "tier_since",
        "urgent",
        "user",
    )

    def __init__(self, user: str) -> None:
        self.user = user
        self.tier = ""
        self.tier_by = ""
        self.tier_since = 0
        self.probation_until = 0
        self.first_at = 0
        self.last_at = 0
        self.messages = 0
        self.incident_at = 0
        self.strikes: tuple[int, ...] = ()
        self.marks: Marks = {}
        self.past: Mapping[str, Sequence[Sequence[int]]] = {}
        #: Of the last request, whatever was answered, and of the last mail that passed.
        self.asked: Repeated | None = None
        self.sent: Repeated | None = None
        #: What is not in the marks and the past yet of what detectors add up, by their name.
        self.flows: Mapping[str, Flow] = {}
        #: Whether a detector held more than its line when it looked last.
        self.over = False
        #: Something is new, and has to be written with the decision; else it is written now and then.
        self.urgent = True
        #: When it was written last, ledger time.
        self.saved_at = 0
        #: The tier as it was found last, for which tiers, and from when on it may be another one.
        self._tier: tuple[Tiers, str, int] | None = None

    def copy(self) -> Account:
        """One of its own with the same contents."""
        other = Account.__new__(Account)
        other.user, other.tier, other.tier_by, other._tier = self.user, self.tier, self.tier_by, self._tier
        other.tier_since, other.probation_until = self.tier_since, self.probation_until
        other.first_at, other.last_at, other.messages = self.first_at, self.last_at, self.messages
        other.incident_at, other.strikes = self.incident_at, self.strikes
        other.marks, other.past = self.marks, self.past
        other.asked, other.sent, other.flows, other.over = self.asked, self.sent, self.flows, self.over
        other.urgent, other.saved_at = self.urgent, self.saved_at
        return other

    def put_into(self, tier: str, by: str, now: int) -> None:
        """From ``now`` on it is in ``tier``; empty: in the one that the configuration says."""
        self.tier, self.tier_by, self.tier_since, self.messages = tier, by, now, 0
        self._tier, self.urgent = None, True

    def on_probation(self, until: int) -> None:
        """In the default tier until then; 0: not at all."""
        self.probation_until, self._tier = until, None

    def tier_of(self, tiers: Tiers, now: int) -> str:
        """The name of the tier that it is in.

        On probation the default tier; else the one it was put into by hand; else as a member by the configuration; else the
        one that it was learned or promoted into; else the default tier. A tier that the configuration has no longer does not
        count.
        """
        found = self._tier
        if found is not None and found[0] is tiers and (not found[2] or now < found[2]):
            return found[1]
        if now < self.probation_until:
            name, until = tiers.default, self.probation_until
        else:
            known, until = self.tier if self.tier in tiers.all else "", 0
            name = known if known and self.tier_by == BY_HAND else ""
            name = name or tiers.member_of(self.user) or known or tiers.default
        self._tier = tiers, name, until
        return name

    def seen(self) -> dict[str, Mapping[str, Sequence[int]]]:
        """The marks, with what repeated requests have brought again; to be changed at the outermost."""
        marks = dict(self.marks)
        for repeated in sorted((each for each in (self.asked, self.sent) if each is not None), key=_when):
            for name, values in repeated.values:
                entry = (repeated.at, repeated.decision)
                marks[name] = {**_without(marks.get(name, {}), values), **dict.fromkeys(values, entry)}
        for name, flow in self.flows.items():
            marks[name] = {**marks.get(name, {}), str(flow.slot): (flow.amount, flow.decision)}
        return marks

    def busiest(self) -> Mapping[str, Sequence[Sequence[int]]]:
        """``past``, with what the present parts of windows have added to it."""
        past = self.past
        for flow in self.flows.values():
            peaks = past.get(flow.kept, ())
            if not peaks or peaks[-1][0] != flow.day:
                past = {**past, flow.kept: (*peaks[-DAYS_KEPT + 1 :], (flow.day, flow.peak))}
            elif flow.peak > peaks[-1][1]:
                past = {**past, flow.kept: (*peaks[:-1], (flow.day, flow.peak))}
        return past

    def row(self) -> tuple[Any, ...]:
        """The values of :data:`COLUMNS`."""
        return (
            self.user,
            self.tier,
            self.tier_by,
            self.tier_since,
            self.probation_until,
            self.first_at,
            self.last_at,
            self.messages,
            self.incident_at,
            _compact(self.strikes) if self.strikes else "[]",
            _compact(self.seen()) if self.marks or self.flows else "{}",
            _compact(self.busiest()) if self.past or self.flows else "{}",
        )

    @classmethod
    def of_row(cls, row: Iterable[Any]) -> Account:
        """Read what :meth:`row` wrote; :class:`ValueError` when it is something else."""
        account, damaged = cls.as_readable(row)
        if damaged:
            raise ValueError(f"account {account.user!r}: {', '.join(damaged)}: damaged")
        return account

    @classmethod
    def as_readable(cls, row: Iterable[Any]) -> tuple[Account, list[str]]:
        """What can be read of what :meth:`row` wrote, and the columns that cannot: they begin anew."""
        user, tier, tier_by, *numbers, strikes, marks, past = row
        account = cls(user)
        account.tier, account.tier_by = tier, tier_by
        account.tier_since, account.probation_until, account.first_at = numbers[:3]
        account.last_at, account.messages, account.incident_at = numbers[3:]
        account.urgent = False
        damaged = []
        for name, text, sound in (
            ("strikes", strikes, _are_numbers),
            ("marks", marks, _are_marks),
            ("past", past, _are_days),
        ):
            try:
                value = json.loads(text)
            except (ValueError, TypeError, RecursionError):
                value = None
            if not sound(value):
                damaged.append(name)
            elif value:
                setattr(account, name, tuple(value) if name == "strikes" else value)
        return account, damaged


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)


def _are_marks(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(marks, dict) and all(_are_numbers(entry) and len(entry) == 2 for entry in marks.values())
        for marks in value.values()
    )


def _are_days(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(days, list) and all(_are_numbers(entry) and len(entry) == 2 for entry in days)
        for days in value.values()
    )


def _when(repeated: Repeated) -> int:
    return repeated.at


def _without(marks: Mapping[str, Sequence[int]], values: Container[str]) -> dict[str, Sequence[int]]:
    return {value: entry for value, entry in marks.items() if value not in values}

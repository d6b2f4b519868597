"""What is remembered of one account: its tier, its strikes, what the detectors have seen of it, how much it used to send.

All of it is the row of the table ``account`` (policyd/store/schema/0004_accounts.sql). Times are ledger time in ms.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

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


class Account:
    """One row of the table, as it is worked on.

    ``marks`` holds for each detector what it has seen: ``{value: [at, decision]}``, the newest last. ``past`` holds for each
    ``"unit/window"`` the busiest window of past days: a list of ``[day, amount]``, the newest last. The innermost lists are
    shared by copies: they are replaced, never changed.
    """

    __slots__ = (
        "first_at",
        "incident_at",
        "last_at",
        "marks",
        "messages",
        "past",
        "probation_until",
        "strikes",
        "tier",
        "tier_by",
        "tier_since",
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
        self.strikes: list[int] = []
        self.marks: dict[str, dict[str, list[int]]] = {}
        self.past: dict[str, list[list[int]]] = {}

    def tier_of(self, tiers: Tiers, now: int) -> str:
        """The name of the tier that it is in.

        On probation the default tier; else the one it was put into by hand; else as a member by the configuration; else the
        one that it was learned or promoted into; else the default tier. A tier that the configuration has no longer does not
        count.
        """
        if now < self.probation_until:
            return tiers.default
        known = self.tier if self.tier in tiers.all else ""
        if known and self.tier_by == BY_HAND:
            return known
        return tiers.member_of(self.user) or known or tiers.default

    def copy(self) -> Account:
        """One of its own with the same contents."""
        other = Account.__new__(Account)
        other.user, other.tier, other.tier_by = self.user, self.tier, self.tier_by
        other.tier_since, other.probation_until = self.tier_since, self.probation_until
        other.first_at, other.last_at, other.messages = self.first_at, self.last_at, self.messages
        other.incident_at, other.strikes = self.incident_at, list(self.strikes)
        other.marks = {name: marks.copy() for name, marks in self.marks.items()}
        other.past = {name: list(days) for name, days in self.past.items()}
        return other

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
            _compact(self.marks) if self.marks else "{}",
            _compact(self.past) if self.past else "{}",
        )

    @classmethod
    def of_row(cls, row: Iterable[Any]) -> Account:
        """Read what :meth:`row` wrote; :class:`ValueError` when it is something else."""
        user, tier, tier_by, *numbers, strikes, marks, past = row
        account = cls(user)
        account.tier, account.tier_by = tier, tier_by
        account.tier_since, account.probation_until, account.first_at = numbers[:3]
        account.last_at, account.messages, account.incident_at = numbers[3:]
        account.strikes = _read(user, strikes, list)
        account.marks = _read(user, marks, dict)
        account.past = _read(user, past, dict)
        return account


def _read(user: str, text: str, kind: type[Any]) -> Any:
    value = json.loads(text)
    if not isinstance(value, kind):
        raise ValueError(f"the row of account {user!r} is damaged")
    return value

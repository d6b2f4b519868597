"""What checks and detectors did, or would have done in shadow: how often, to which accounts, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from policyd.opinion import SHADOW

#: What is done to a mail or an account.
REFUSE, HOLD, SUSPEND, ALERT, HEADER = "refuse", "hold", "suspend", "alert", "header"
#: Accounts of which it is known by name what was found; beyond that they are only counted by the case.
ACCOUNTS = 20_000


class Case(NamedTuple):
    """One thing that was done, or would have been."""

    #: The check or detector.
    name: str
    #: One of the words above.
    what: str
    shadow: bool
    #: The account, or the client of mail from outside.
    user: str
    #: ms.
    at: int
    reason: str


def cases_of_would(would: str, user: str, at: int) -> Iterator[Case]:
    """The cases that the column ``would`` of a decision holds: ``name: 450 4.7.1 text | name: suspend: reason``."""
    for part in would.split(" | "):
        name, colon, rest = part.partition(": ")
        word, _, reason = rest.partition(" ")
        if not (colon and word) or " " in name:
            continue
        if word in ("suspend:", "alert:"):
            yield Case(name, word[:-1], True, user, at, reason)
        elif word[:1] in ("4", "5"):
            yield Case(name, REFUSE, True, user, at, reason.partition(" ")[2])
        else:
            yield Case(name, HOLD if word == "HOLD" else HEADER, True, user, at, reason)


class One:
    """What was found of one account."""

    __slots__ = ("count", "first_at", "last_at", "reason", "user")

    def __init__(self, case: Case) -> None:
        self.user = case.user
        self.count = 0
        self.first_at = self.last_at = case.at
        #: Of the first case.
        self.reason = case.reason

    def add(self, case: Case) -> None:
        """Take in a case."""
        self.count += 1
        if case.at < self.first_at:
            self.first_at, self.reason = case.at, case.reason
        self.last_at = max(self.last_at, case.at)


class Group:
    """What one check or detector did, of one kind."""

    def __init__(self, name: str, what: str, mode: str) -> None:
        self.name = name
        self.what = what
        self.mode = mode
        self.count = 0
        self.accounts: dict[str, One] = {}
        #: Cases of accounts that are not known by name.
        self.others = 0

    def add(self, case: Case) -> None:
        """Take in a case."""
        self.count += 1
        one = self.accounts.get(case.user)
        if one is None:
            if len(self.accounts) >= ACCOUNTS:
                self.others += 1
                return
            one = self.accounts[case.user] = One(case)
        one.add(case)

    @property
    def most(self) -> list[One]:
        """The accounts, those with the most cases first."""
        return sorted(self.accounts.values(), key=lambda one: (-one.count, one.first_at, one.user))


class Findings:
    """All cases, by check or detector and what it does."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, bool], Group] = {}

    def add(self, case: Case) -> None:
        """Take in a case."""
        key = (case.name, case.what, case.shadow)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(case.name, case.what, SHADOW if case.shadow else "enforce")
        group.add(case)

    def groups(self, names: list[str] | None = None) -> list[Group]:
        """Those of ``names``, in that order; ``None``: all, by name."""
        order = {name: at for at, name in enumerate(names or ())}
        found = [group for group in self._groups.values() if names is None or group.name in order]
        return sorted(found, key=lambda group: (order.get(group.name, 0), group.name, group.what))

"""What can be taken over from another daemon, in policyd's words: tiers, checks, own limits, and what was used."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from policyd.units import Limit

#: An own limit of this amount means: none.
UNLIMITED = -1


class Used(NamedTuple):
    """Something that was sent: by whom, when (wall time, ms), how much."""

    user: str
    at: int
    amount: int


@dataclass
class Imported:
    """The policy of another daemon."""

    source: str
    #: Limits and members of tiers, by name; the default one is first.
    tiers: dict[str, tuple[list[Limit], list[str]]] = field(default_factory=dict)
    #: Further [[check]] sections, as TOML.
    checks: list[str] = field(default_factory=list)
    #: Keys of the check that counts per user, as TOML.
    keys: list[str] = field(default_factory=list)
    #: Limits of single accounts; an amount of UNLIMITED takes one away.
    own: dict[str, list[Limit]] = field(default_factory=dict)
    #: The unit that ``used`` is in.
    unit: str = "recipients"
    used: list[Used] = field(default_factory=list)
    #: What is not taken over, one line each, with what to do instead.
    notes: list[str] = field(default_factory=list)

    def base(self, user: str) -> list[Limit]:
        """The limits that an account has by its tier."""
        domain = "@" + user.rpartition("@")[2]
        for limits, members in self.tiers.values():
            if domain in members:
                return limits
        return next(iter(self.tiers.values()), ([], []))[0]

    def give(self, user: str, limits: list[Limit], units: set[str]) -> None:
        """The account has these limits, and of these units no others."""
        windows = {(limit.unit, limit.window) for limit in limits}
        without = [
            Limit(UNLIMITED, limit.unit, limit.window)
            for limit in self.base(user)
            if limit.unit in units and (limit.unit, limit.window) not in windows
        ]
        self.own[user] = [*limits, *without]

    def toml(self) -> str:
        """The part of the configuration."""
        lines = [
            f"# Taken over from {self.source} by 'policyctl import'. Begin in shadow; 'policyctl check enforce' comes later."
        ]
        if self.tiers:
            lines += ["", "[tiers]", f"default = {json.dumps(next(iter(self.tiers)))}"]
        for name, (limits, members) in self.tiers.items():
            lines += ["", f"[tier.{name}]", f"limits = {json.dumps([str(limit) for limit in limits])}"]
            if members:
                lines.append(f"members = {json.dumps(members)}")
        if self.tiers or self.own:
            lines += ["", "[[check]]", 'use = "quota"', 'for = "submission"', 'mode = "shadow"', *self.keys]
        for check in self.checks:
            lines += ["", check]
        return "\n".join(lines) + "\n"


def merged(limits: list[Limit]) -> list[Limit]:
    """One limit for each unit and window, the narrowest."""
    found: dict[tuple[str, int], Limit] = {}
    for limit in limits:
        key = (limit.unit, limit.window)
        if key not in found or limit.amount < found[key].amount:
            found[key] = limit
    return list(found.values())

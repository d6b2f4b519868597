"""Tiers: named sets of limits, and which of them an account is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from policyd.match import domain_of
from policyd.units import Limit


@dataclass(frozen=True)
class Promote:
    """``promote`` of a tier: after a time of clean sending an account goes to another one."""

    to: str
    #: ms.
    after: int
    #: Messages that passed since it is in its tier.
    min_messages: int = 10


@dataclass(frozen=True)
class Tier:
    """One ``[tier.NAME]``. ``members`` are folded logins, or ``@domain`` for all of a domain."""

    name: str
    limits: tuple[Limit, ...] = ()
    members: frozenset[str] = frozenset()
    promote: Promote | None = None
    #: Detectors that look at how much is sent find nothing.
    quiet: bool = False


@dataclass(frozen=True)
class Tiers:
    """All tiers, and the name of the one that accounts are in when nothing else puts them elsewhere."""

    default: str = ""
    all: Mapping[str, Tier] = field(default_factory=dict)
    #: The tier of accounts that ``policyctl learn`` found in the logs; empty: the default one.
    learned: str = ""

    def name_of(self, account: str) -> str:
        """The tier that the configuration puts ``account`` into: as a member itself, else by its domain, else the default."""
        return self.member_of(account) or self.default

    def member_of(self, account: str) -> str:
        """The tier that names ``account`` as a member, itself or else by its domain; empty when none does."""
        if not self._have_members:
            return ""
        by_domain = ""
        domain = "@" + domain_of(account)
        for tier in self.all.values():
            if account in tier.members:
                return tier.name
            if domain in tier.members and not by_domain:
                by_domain = tier.name
        return by_domain

    @cached_property
    def _have_members(self) -> bool:
        return any(tier.members for tier in self.all.values())

    def limits_of(self, account: str) -> tuple[Limit, ...]:
        """The limits of the tier that the configuration puts ``account`` into; none when there are no tiers."""
        return self.limits_in(self.name_of(account))

    def limits_in(self, name: str) -> tuple[Limit, ...]:
        """The limits of the tier ``name``; none when there is none."""
        tier = self.all.get(name)
        return tier.limits if tier is not None else ()

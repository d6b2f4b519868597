"""What the admin has said with ``policyctl``, in memory: bans, allows, own limits, grants, sender rights, modes of checks;
and the suspensions.

A :class:`Steering` mirrors the steering tables row by row; whoever owns one applies the changes that the change table names
(:mod:`policyd.store`). Expiries are ledger time in ms, 0 means "until taken back"; an expired row is simply not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from policyd.match import Network, NetworkSet, address_key, domain_key, fold, parse_network
from policyd.units import Limit

#: What can be banned and what can be allowed; the order of ``BAN_KINDS`` is the order in which they are asked.
BAN_KINDS = ("user", "sender", "domain", "client")
ALLOW_KINDS = ("client", "sender", "domain", "recipient")
#: The name of the check that stands for all of them in the mode table (``policyctl pause``).
EVERY_CHECK = "*"

#: Steering tables and their key columns.
TABLES: dict[str, tuple[str, ...]] = {
    "ban": ("kind", "value"),
    "allow": ("kind", "value"),
    "user_limit": ("user", "unit", "window"),
    "user_grant": ("id",),
    "check_mode": ("name",),
    "sender_right": ("user", "sender"),
    "greylist_allow": ("kind", "value"),
    "suspension": ("user",),
    "milestone": ("name",),
}


#: A host name as Postfix gives it in ``client_name``, with a leading dot for all below; the last label is no number.
_HOST_NAME = re.compile(r"\.?([a-z0-9_-]{1,63}\.)*(?![0-9]+\.?$)[a-z0-9_-]{1,63}\.?", re.ASCII)


class Entry(NamedTuple):
    """A ban, an allow, or who is not greylisted. ``value`` is folded; a client is a network in its shortest form or a name."""

    kind: str
    value: str
    reason: str
    author: str
    created_at: int
    expires_at: int

    def holds(self, now: int) -> bool:
        """Whether the entry is in force at ledger time ``now``."""
        return not self.expires_at or now < self.expires_at


class UserLimit(NamedTuple):
    """An account's own limit; ``amount`` -1 means "no limit for this unit and window"."""

    user: str
    unit: str
    window: int
    amount: int
    reason: str
    author: str
    created_at: int
    expires_at: int


class Grant(NamedTuple):
    """A one-off widening of every window of ``unit`` by ``amount``, until ``expires_at``."""

    id: int
    user: str
    unit: str
    amount: int
    reason: str
    author: str
    created_at: int
    expires_at: int


class CheckMode(NamedTuple):
    """A mode set by ``policyctl check shadow|enforce|off`` or ``pause``, over the configured one."""

    name: str
    mode: str
    reason: str
    author: str
    created_at: int
    expires_at: int


class SenderRight(NamedTuple):
    """An account may send as ``sender``: an address, ``@domain`` for all of exactly this domain, ``""`` the null sender."""

    user: str
    sender: str
    reason: str
    author: str
    created_at: int
    expires_at: int


class Suspension(NamedTuple):
    """A login that may not send for now; ``expires_at`` 0: until it is released."""

    user: str
    #: The ``[[detect]]`` that found it; empty: the admin.
    detector: str
    #: What was found, with its numbers.
    reason: str
    #: JSON: ``{"values": [...], "decisions": [ids]}``.
    evidence: str
    #: Of ``[suspend] ladder``, from 1.
    step: int
    #: The reference of the refusal that began it; empty when an admin began it.
    ref: str
    author: str
    created_at: int
    expires_at: int


class Milestone(NamedTuple):
    """Something that happened once and matters from ``created_at`` on: see :mod:`policyd.accounts`."""

    name: str
    reason: str
    author: str
    created_at: int
    expires_at: int


Row = Entry | UserLimit | Grant | CheckMode | SenderRight | Suspension | Milestone
#: The class of each table's rows, fields in the order of the columns.
ROWS: dict[str, type[Row]] = {
    "ban": Entry,
    "allow": Entry,
    "user_limit": UserLimit,
    "user_grant": Grant,
    "check_mode": CheckMode,
    "sender_right": SenderRight,
    "greylist_allow": Entry,
    "suspension": Suspension,
    "milestone": Milestone,
}


class Listing:
    """Bans or allows, found by exact value, by parent domain or by network."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        self._networks = NetworkSet()

    def put(self, entry: Entry) -> None:
        """Take in or replace an entry."""
        self.entries[entry.kind, entry.value] = entry
        if entry.kind == "client":
            network = client_network(entry.value)
            if network is not None:
                self._networks.add(network)

    def drop(self, kind: str, value: str) -> None:
        """Forget an entry, if it is here."""
        if self.entries.pop((kind, value), None) is not None and kind == "client":
            network = client_network(value)
            if network is not None:
                self._networks.discard(network)

    def exact(self, kind: str, value: str, now: int) -> Entry | None:
        """The entry in force for exactly this value."""
        entry = self.entries.get((kind, value))
        return entry if entry is not None and entry.holds(now) else None

    def domain(self, domain: str, now: int, kind: str = "domain") -> Entry | None:
        """The entry for ``domain`` or the nearest parent; ``.example.org`` covers what is below, not itself."""
        if not self.entries:
            return None
        found = self.exact(kind, domain, now)
        while found is None and (dot := domain.find(".")) != -1:
            domain = domain[dot + 1 :]
            found = self.exact(kind, "." + domain, now) or self.exact(kind, domain, now)
        return found

    def client(self, address: str, now: int) -> Entry | None:
        """The entry for the most specific network that holds the client's address."""
        for network in self._networks.holding(address):
            found = self.exact("client", network_value(network), now)
            if found is not None:
                return found
        return None

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())


def client_network(value: str) -> Network | None:
    """The network that a client's value means; ``None`` when it is a host name."""
    try:
        return parse_network(value)
    except ValueError:
        return None


def network_value(network: Network) -> str:
    """The canonical text of a network: a single address without its prefix length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def canonical_value(kind: str, value: str) -> str:
    """The form in which a ban or allow of ``kind`` is kept; :class:`ValueError` says what is wrong with ``value``."""
    value = fold(value.strip())
    if not value or not value.isprintable() or " " in value or len(value) > 320:
        raise ValueError(f"{value[:60]!r} is no {kind}")
    if kind == "client":
        # A host name may begin with a digit, but it has a letter in its last label (RFC 3696 section 2).
        if not _HOST_NAME.fullmatch(value):
            return network_value(parse_network(value))
        return value.rstrip(".")
    if kind in ("sender", "recipient"):
        if value == "<>":
            return ""
        if "@" not in value.strip("@"):
            raise ValueError(f"{value!r} is no address; for a whole domain use 'domain {value.strip('@')}'")
    if kind == "domain":
        value = value.removeprefix("@").rstrip(".")
        if value.startswith("*."):
            raise ValueError(
                f"{value!r} is no domain; write {value[1:]} for what is below it, {value[2:]} for itself, too"
            )
        if "@" in value or "/" in value or "*" in value or not value.strip("."):
            raise ValueError(f"{value or '.'!r} is no domain")
        return domain_key(value)
    return address_key(value)


def canonical_sender(value: str) -> str:
    """The form in which a sender right is kept: an address, ``@domain``, ``""`` for ``<>``; :class:`ValueError` otherwise."""
    bare = value.strip()
    if bare.startswith("@") and bare.strip("@."):
        domain = canonical_value("domain", bare)
        if domain.startswith("."):
            raise ValueError(f"{value!r} is no domain; each domain is named itself, as @example.org")
        return "@" + domain
    try:
        return canonical_value("sender", bare)
    except ValueError:
        raise ValueError(f"{value!r} is no sender; write alice@example.org, @example.org or <>") from None


class Steering:
    """The steering tables in memory, as of ``generation``."""

    def __init__(self) -> None:
        self.generation = 0
        self.bans = Listing()
        self.allows = Listing()
        self.greylist_allows = Listing()
        self._listings = {"ban": self.bans, "allow": self.allows, "greylist_allow": self.greylist_allows}
        self.sender_rights: dict[str, dict[str, SenderRight]] = {}
        self.user_limits: dict[str, dict[tuple[str, int], UserLimit]] = {}
        self.grants: dict[int, Grant] = {}
        self.grants_of: dict[str, dict[int, Grant]] = {}
        self.modes: dict[str, CheckMode] = {}
        self.suspensions: dict[str, Suspension] = {}
        self.milestones: dict[str, Milestone] = {}

    def put(self, table: str, row: Row) -> None:
        """Take in or replace one row."""
        if isinstance(row, Entry):
            self._listings[table].put(row)
        elif isinstance(row, UserLimit):
            self.user_limits.setdefault(row.user, {})[row.unit, row.window] = row
        elif isinstance(row, Grant):
            self.drop(table, (str(row.id),))
            self.grants[row.id] = row
            self.grants_of.setdefault(row.user, {})[row.id] = row
        elif isinstance(row, SenderRight):
            self.sender_rights.setdefault(row.user, {})[row.sender] = row
        elif isinstance(row, Suspension):
            self.suspensions[row.user] = row
        elif isinstance(row, Milestone):
            self.milestones[row.name] = row
        else:
            self.modes[row.name] = row

    def drop(self, table: str, key: tuple[str, ...]) -> None:
        """Forget the row with this key, if it is here."""
        if table in self._listings:
            self._listings[table].drop(key[0], key[1])
        elif table == "sender_right":
            rights = self.sender_rights.get(key[0], {})
            rights.pop(key[1], None)
            if not rights:
                self.sender_rights.pop(key[0], None)
        elif table == "user_limit":
            limits = self.user_limits.get(key[0], {})
            limits.pop((key[1], int(key[2])), None)
            if not limits:
                self.user_limits.pop(key[0], None)
        elif table == "user_grant":
            grant = self.grants.pop(int(key[0]), None)
            if grant is not None:
                of_user = self.grants_of[grant.user]
                of_user.pop(grant.id, None)
                if not of_user:
                    del self.grants_of[grant.user]
        elif table == "check_mode":
            self.modes.pop(key[0], None)
        elif table == "suspension":
            self.suspensions.pop(key[0], None)
        elif table == "milestone":
            self.milestones.pop(key[0], None)

    def rows(self, table: str) -> list[Row]:
        """All rows of a table, expired ones too."""
        if table in self._listings:
            return list(self._listings[table])
        if table == "sender_right":
            return [row for rights in self.sender_rights.values() for row in rights.values()]
        if table == "user_limit":
            return [row for limits in self.user_limits.values() for row in limits.values()]
        if table == "user_grant":
            return list(self.grants.values())
        if table == "suspension":
            return list(self.suspensions.values())
        if table == "milestone":
            return list(self.milestones.values())
        return list(self.modes.values())

    def limits_of(self, user: str, base: tuple[Limit, ...], now: int) -> tuple[Limit, ...]:
        """``base`` with the account's own limits over it: each replaces the one of its unit and window, or adds one."""
        own = self.user_limits.get(user)
        if not own:
            return base
        merged = {(limit.unit, limit.window): limit for limit in base}
        for key, row in own.items():
            if row.expires_at and now >= row.expires_at:
                continue
            if row.amount < 0:
                merged.pop(key, None)
            else:
                merged[key] = Limit(row.amount, row.unit, row.window)
        return tuple(merged.values())

    def granted(self, user: str, now: int) -> dict[str, int]:
        """Per unit, by how much the account's windows are wider now."""
        grants = self.grants_of.get(user)
        if not grants:
            return {}
        total: dict[str, int] = {}
        for grant in grants.values():
            if not grant.expires_at or now < grant.expires_at:
                total[grant.unit] = total.get(grant.unit, 0) + grant.amount
        return total

    def may_send(self, user: str, sender: str, domain: str, now: int) -> bool:
        """Whether the admin lets ``user`` send as ``sender``, by the address itself or by its domain."""
        rights = self.sender_rights.get(user)
        if not rights:
            return False
        found = (rights.get(sender), rights.get("@" + domain) if domain else None)
        return any(right is not None and (not right.expires_at or now < right.expires_at) for right in found)

    def suspension_of(self, user: str, now: int) -> Suspension | None:
        """The suspension of ``user`` in force at ledger time ``now``."""
        row = self.suspensions.get(user)
        return row if row is not None and (not row.expires_at or now < row.expires_at) else None

    def mode_of(self, name: str, now: int) -> str:
        """The mode that the admin set for the check ``name`` (or for :data:`EVERY_CHECK`); ``""`` when none is."""
        row = self.modes.get(name)
        return row.mode if row is not None and (not row.expires_at or now < row.expires_at) else ""

"""What policyctl asks the database about accounts: whether one is known, which are called alike, what they have used."""

from __future__ import annotations

import difflib
import heapq
import sqlite3
from collections.abc import Iterable, Iterator

from policyd.answer import escape
from policyd.errors import StoreDamaged
from policyd.opinion import CounterKey
from policyd.store.read import Wanted, decisions
from policyd.window import Counter

#: Accounts that are compared when a name is not known.
COMPARED = 5_000
#: How alike local parts, and domains, must be for one to be proposed for the other (difflib's ratio, 0 to 1).
LIKENESS = 0.75

_KNOWN = """
    SELECT EXISTS (SELECT 1 FROM counter WHERE scope = 'user' AND value = :user)
        OR EXISTS (SELECT 1 FROM user_limit WHERE user = :user)
        OR EXISTS (SELECT 1 FROM user_grant WHERE user = :user)
        OR EXISTS (SELECT 1 FROM ban WHERE kind = 'user' AND value = :user)
        OR EXISTS (SELECT 1 FROM sender_right WHERE user = :user)
        OR EXISTS (SELECT 1 FROM account WHERE user = :user)
        OR EXISTS (SELECT 1 FROM suspension WHERE user = :user)
"""


def is_known(connection: sqlite3.Connection, user: str) -> bool:
    """Whether the account was ever counted, steered, or seen in the decisions that are kept."""
    if connection.execute(_KNOWN, {"user": user}).fetchone()[0]:
        return True
    return bool(decisions(connection, Wanted(user=user), 1))


def similar(connection: sqlite3.Connection, user: str) -> list[str]:
    """At most three known accounts whose names resemble ``user``, the nearest first."""
    candidates: list[str] = []
    # With many accounts only those are compared that begin alike; nobody mistypes everything.
    for length in (0, 1, 2, 3, 4, 6, 8, 12):
        candidates = _accounts(connection, user[:length], COMPARED)
        if len(candidates) < COMPARED:
            break
    return alike(user, candidates)


def alike(user: str, candidates: Iterable[str]) -> list[str]:
    """At most three of ``candidates`` that ``user`` may be a mistyped form of, the nearest first.

    Logins of one domain resemble each other by that alone, so local part and domain are each compared by themselves.
    """
    parts = user.partition("@")[::2]
    matchers = [difflib.SequenceMatcher(b=part) for part in parts]
    found = []
    for name in candidates:
        if name == user:
            continue
        likeness = 1.0
        theirs = name.partition("@")[::2]
        for matcher, mine, their in zip(matchers, parts, theirs, strict=True):
            if their != mine:
                matcher.set_seq1(their)
                # The two estimates are cheap, and never below the likeness itself.
                for estimate in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio):
                    likeness = min(likeness, estimate())
                    if likeness < LIKENESS:
                        break
        # Without a domain, or with another one, the same local part is enough.
        if likeness >= LIKENESS or (parts[0] and parts[0] == theirs[0]):
            found.append((-likeness, name))
    return [name for _, name in heapq.nsmallest(3, found)]


def _accounts(connection: sqlite3.Connection, prefix: str, limit: int) -> list[str]:
    """Accounts that were counted or steered, whose names begin with ``prefix``."""
    rows = connection.execute(
        "SELECT value FROM counter WHERE scope = 'user' AND value >= :low AND value < :high "
        "UNION SELECT user FROM user_limit WHERE user >= :low AND user < :high "
        "UNION SELECT user FROM user_grant WHERE user >= :low AND user < :high "
        "UNION SELECT user FROM account WHERE user >= :low AND user < :high LIMIT :limit",
        {"low": prefix, "high": prefix + "\U0010ffff", "limit": limit},
    )
    return [row[0] for row in rows]


def counter(connection: sqlite3.Connection, key: CounterKey) -> Counter:
    """The counter of ``key``; an empty one when nothing was counted.

    :raises StoreDamaged: the row cannot be read.
    """
    row = connection.execute(
        "SELECT cells FROM counter WHERE scope = ? AND value = ? AND unit = ?", tuple(key)
    ).fetchone()
    try:
        return Counter.unpack(row[0]) if row else Counter()
    except ValueError as error:
        raise StoreDamaged(
            f"the counter of {key.scope} {escape(key.value)} ({key.unit}) cannot be read, and begins anew with the next mail: "
            f"{error}; 'policyctl db check' looks for more"
        ) from None


def counters(connection: sqlite3.Connection, scope: str, unit: str) -> Iterator[tuple[str, Counter | None]]:
    """Each value of ``scope`` for which ``unit`` was counted, with its counter; ``None`` when it cannot be read."""
    rows = connection.execute("SELECT value, cells FROM counter WHERE scope = ? AND unit = ?", (scope, unit))
    for value, cells in rows:
        try:
            yield value, Counter.unpack(cells)
        except ValueError:
            yield value, None


def all_counters(connection: sqlite3.Connection) -> Iterator[tuple[CounterKey, bytes]]:
    """Every counter as it is stored."""
    for scope, value, unit, cells in connection.execute("SELECT scope, value, unit, cells FROM counter"):
        yield CounterKey(scope, value, unit), cells

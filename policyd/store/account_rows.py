"""The table of accounts as policyctl reads and changes it. What is changed tells the daemon by a row of the change table.

The daemon writes the same rows: so each change here names the columns that it sets, and no others.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from policyd.accounts import COLUMNS, Account
from policyd.answer import escape
from policyd.errors import StoreDamaged
from policyd.store.admin import Change
from policyd.store.clock import wall
from policyd.store.read import snapshot
from policyd.tiers import Tiers

#: Columns that a change may set, each with its statement.
_SET = {
    "tier": "UPDATE account SET tier = ? WHERE user = ?",
    "tier_by": "UPDATE account SET tier_by = ? WHERE user = ?",
    "tier_since": "UPDATE account SET tier_since = ? WHERE user = ?",
    "probation_until": "UPDATE account SET probation_until = ? WHERE user = ?",
    "first_at": "UPDATE account SET first_at = ? WHERE user = ?",
    "last_at": "UPDATE account SET last_at = ? WHERE user = ?",
    "messages": "UPDATE account SET messages = ? WHERE user = ?",
    "incident_at": "UPDATE account SET incident_at = ? WHERE user = ?",
    "strikes": "UPDATE account SET strikes = ? WHERE user = ?",
    "marks": "UPDATE account SET marks = ? WHERE user = ?",
    "note": "UPDATE account SET note = ? WHERE user = ?",
}
_ROW = f"SELECT {', '.join(COLUMNS)}, note FROM account"  # noqa: S608, names from the code
_INSERT = (
    "INSERT OR IGNORE INTO account (user, tier, tier_by, tier_since, probation_until, first_at, last_at, messages, "
    "incident_at, strikes, note, marks, past) VALUES (?, '', '', ?, 0, 0, 0, 0, 0, '[]', '', '{}', '{}')"
)


class Known(NamedTuple):
    """A row of the table."""

    account: Account
    note: str


class Brief(NamedTuple):
    """What the admin says of an account."""

    tier: str
    tier_by: str
    note: str


class Listed(NamedTuple):
    """What a list shows of an account. Times are ledger time, ms."""

    user: str
    #: The tier that it was put into.
    tier: str
    tier_by: str
    tier_since: int
    probation_until: int
    first_at: int
    last_at: int
    messages: int
    note: str
    #: Whether it is suspended, and until when; 0: until it is released.
    suspended: int
    suspended_until: int


def find(connection: sqlite3.Connection, user: str) -> Known | None:
    """The account's row, ``None`` when there is none.

    :raises StoreDamaged: it cannot be read.
    """
    row = connection.execute(f"{_ROW} WHERE user = ?", (user,)).fetchone()
    return _known(row) if row else None


def brief(connection: sqlite3.Connection, user: str) -> Brief | None:
    """The account's tier and note, ``None`` when there is no row."""
    row = connection.execute("SELECT tier, tier_by, note FROM account WHERE user = ?", (user,)).fetchone()
    return Brief(*row) if row else None


def every(connection: sqlite3.Connection) -> Iterator[Known]:
    """All rows in the order of their logins, as of one moment."""
    with snapshot(connection):
        for row in connection.execute(f"{_ROW} ORDER BY user"):
            yield _known(row)


def _known(row: tuple[Any, ...]) -> Known:
    try:
        return Known(Account.of_row(row[:-1]), row[-1])
    except (ValueError, RecursionError) as error:
        raise StoreDamaged(
            f"what is kept of the account {escape(str(row[0]))} cannot be read: {error}; 'policyctl db check' looks for more"
        ) from None


def account_of(connection: sqlite3.Connection, user: str) -> Account:
    """The account, one without a past when there is no row.

    :raises StoreDamaged: its row cannot be read.
    """
    known = find(connection, user)
    return known.account if known is not None else Account(user)


#: Orders of a list, as SQL.
ORDERS = {
    "user": "user",
    "seen": "last_at DESC, user",
    "messages": "messages DESC, user",
    "since": "tier_since DESC, user",
}
_LIST = """
    SELECT user, tier, tier_by, tier_since, probation_until, first_at, last_at, messages, note, suspended, suspended_until
    FROM (
        SELECT a.user, a.tier, a.tier_by, a.tier_since, a.probation_until, a.first_at, a.last_at, a.messages, a.note,
               s.user IS NOT NULL AS suspended, coalesce(s.expires_at, 0) AS suspended_until
        FROM account AS a LEFT JOIN suspension AS s
          ON s.user = a.user AND (s.expires_at = 0 OR s.expires_at > :now)
    )
    WHERE (:like = '' OR instr(user, :like)) AND last_at >= :seen_since AND suspended >= :suspended
      AND (:tier = '' OR tier_in_force(user, tier, tier_by, probation_until) = :tier)
"""


def listed(
    connection: sqlite3.Connection,
    tiers: Tiers,
    now: int,
    *,
    tier: str = "",
    suspended: bool = False,
    seen_since: int = 0,
    like: str = "",
    order: str = "user",
    limit: int,
) -> list[Listed]:
    """At most ``limit`` accounts, those that fit all that is given, in one of :data:`ORDERS`.

    :param tier: the tier in which they are now, by all that says so.
    """

    def in_force(user: str, stored: str, by: str, probation: int) -> str:
        account = Account(user)
        account.tier, account.tier_by, account.probation_until = stored, by, probation
        return account.tier_of(tiers, now)

    connection.create_function("tier_in_force", 4, in_force, deterministic=True)
    values = {
        "now": now,
        "tier": tier,
        "suspended": int(suspended),
        "seen_since": seen_since,
        "like": like,
        "limit": limit,
    }
    rows = connection.execute(f"{_LIST} ORDER BY {ORDERS[order]} LIMIT :limit", values)
    return [Listed(*row) for row in rows]


def update(change: Change, user: str, values: Mapping[str, object]) -> None:
    """Set these columns of the account, which need not be there yet, and tell the daemon."""
    change.connection.execute(_INSERT, (user, change.now))
    for column, value in values.items():
        change.connection.execute(_SET[column], (value, user))
    key = json.dumps([user], ensure_ascii=False)
    change.connection.execute("INSERT INTO change (tbl, key) VALUES ('account', ?)", (key,))


def put_into_tier(change: Change, user: str, tier: str, by: str, since: int = 0) -> None:
    """Put the account into a tier, or with both empty into the one that the configuration says."""
    values = {"tier": tier, "tier_by": by, "tier_since": since or change.now, "messages": 0}
    update(change, user, values)


#: A new row; when the account came in the meantime, only what the admin says of it is taken.
_TAKE_NEW = """
    INSERT INTO account (user, tier, tier_by, tier_since, probation_until, first_at, last_at, messages, incident_at,
                         strikes, note, marks, past)
    VALUES (:user, :tier, :tier_by, :tier_since, :probation_until, :first_at, :last_at, :messages, :incident_at,
            :strikes, :note, '{}', '{}')
    ON CONFLICT (user) DO UPDATE SET tier = excluded.tier, tier_by = excluded.tier_by,
        tier_since = excluded.tier_since, note = excluded.note
"""
_TAKE_TIER = "UPDATE account SET tier = :tier, tier_by = :tier_by, tier_since = :tier_since, messages = 0 WHERE user = :user"
_TAKE_NOTE = "UPDATE account SET note = :note WHERE user = :user"
_EMPTY: dict[str, Any] = {
    "tier": "",
    "tier_by": "",
    "tier_since": 0,
    "probation_until": 0,
    "first_at": 0,
    "last_at": 0,
    "messages": 0,
    "incident_at": 0,
    "strikes": "[]",
    "note": "",
}


def take(change: Change, entries: Iterable[tuple[str, bool, Mapping[str, Any]]]) -> None:
    """Write accounts in bulk: the login, whether it is new, and its columns; of one that is not, only tier and note."""
    entries = list(entries)
    execute = change.connection.executemany
    execute(_TAKE_NEW, [{**_EMPTY, **columns, "user": user} for user, new, columns in entries if new])
    known = [{**columns, "user": user} for user, new, columns in entries if not new]
    execute(_TAKE_TIER, [columns for columns in known if "tier" in columns])
    execute(_TAKE_NOTE, [columns for columns in known if "note" in columns])
    keys = [(json.dumps([user], ensure_ascii=False),) for user, *_ in entries]
    execute("INSERT INTO change (tbl, key) VALUES ('account', ?)", keys)


class Taken(NamedTuple):
    """An account that an import has written, and how it was before."""

    user: str
    new: bool
    columns: dict[str, Any]
    #: Tier, by whom, since when, messages in it, note; ``None``: there was no such account.
    was: tuple[str, str, int, int, str] | None


def as_it_is(connection: sqlite3.Connection, user: str) -> tuple[str, str, int, int, str] | None:
    """What an import changes of an account, see :class:`Taken`."""
    found: tuple[str, str, int, int, str] | None = connection.execute(
        "SELECT tier, tier_by, tier_since, messages, note FROM account WHERE user = ?", (user,)
    ).fetchone()
    return found


#: An account that has not sent since is as new as before.
_DROP_NEW = """
    DELETE FROM account WHERE user = :user AND tier = :tier AND tier_by = :tier_by AND last_at = :last_at
    AND messages = :messages AND note = :note AND marks = '{}' AND past = '{}'
"""
_BACK_TIER = """
    UPDATE account SET tier = :was_tier, tier_by = :was_by, tier_since = :was_since, messages = messages + :was_messages
    WHERE user = :user AND tier = :tier AND tier_by = :tier_by AND tier_since = :tier_since
"""
_BACK_NOTE = "UPDATE account SET note = :was_note WHERE user = :user AND note = :note"


def take_back(change: Change, taken: Iterable[Taken]) -> None:
    """Undo :func:`take`, but for what somebody else has changed since."""
    dropped, tiers, notes, keys = [], [], [], []
    for user, new, columns, was in taken:
        tier, by, since, messages, note = was or ("", "", change.now, 0, "")
        values = {**(_EMPTY if new else {}), **columns, "user": user}
        values |= {"was_tier": tier, "was_by": by, "was_since": since, "was_note": note}
        # Those of an account that came in between were not set to 0.
        values["was_messages"] = 0 if new else messages
        if was is None:
            dropped.append(values)
        if "tier" in values:
            tiers.append(values)
        if "note" in values:
            notes.append(values)
        keys.append((json.dumps([user], ensure_ascii=False),))
    execute = change.connection.executemany
    execute(_DROP_NEW, dropped)
    execute(_BACK_TIER, tiers)
    execute(_BACK_NOTE, notes)
    execute("INSERT INTO change (tbl, key) VALUES ('account', ?)", keys)


def tell(change: Change, kind: str, subject: str, resolved: bool, facts: Mapping[str, object]) -> None:
    """Write what the alerts are to tell of, in the same transaction."""
    change.connection.execute(
        "INSERT INTO event (at, wall_at, kind, subject, resolved, facts) VALUES (?, ?, ?, ?, ?, ?)",
        (change.now, wall(), kind, subject, int(resolved), json.dumps(facts, ensure_ascii=False)),
    )


def missing(connection: sqlite3.Connection, users: Iterable[str]) -> list[str]:
    """Those of ``users`` that the table does not have."""
    find_one = "SELECT 1 FROM account WHERE user = ?"
    return [user for user in users if connection.execute(find_one, (user,)).fetchone() is None]

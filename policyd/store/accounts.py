"""Accounts and whom they have written to, as batches work on them: read, changed on a copy, laid on a pile, written.

What a batch changes is a layer (:class:`Layer`) over what the tables say. A layer that was written goes into the cache; one
that is taken back is emptied, and what it lay on is seen again. Both tables are in memory only as far as the cache reaches.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from policyd.accounts import COLUMNS, KNOWN_FOR, MEMORY_BEGAN, Account, digest
from policyd.store.statements import MOST, chunked, flat, values
from policyd.units import DAY

log = logging.getLogger("policyd.store")

#: Accounts of the table that are held in memory, and recipients.
CACHED = 4_000
CACHED_RECIPIENTS = 100_000
#: Rows that one step of upkeep looks at.
STEP_ROWS = 2_000
#: A row in which nothing is new is written so long after it was written last, ms of ledger time; a crash loses no more.
PATIENCE = 10_000
#: Upkeep writes what is behind so long after it was written last, so that it is done within that time, ...
BEHIND = 8_000
#: ... and looks for it so often.
SAVE = 1_000
#: With more rows behind, each is written at once.
MOST_UNSAVED = 2_000
#: What stands in the place of a day for a recipient that the account has never written to.
NEVER = -1

#: An account and the digest of a recipient.
Pair = tuple[str, int]

_OWN = [column for column in COLUMNS if column != "user"]


@lru_cache(maxsize=MOST)
def _select(rows: int) -> str:
    return f"SELECT {', '.join(COLUMNS)} FROM account WHERE user IN ({', '.join('?' * rows)})"


@lru_cache(maxsize=MOST)
def _upsert(rows: int) -> str:
    columns = ", ".join((*COLUMNS, "note"))
    marks = ", ".join([f"({', '.join('?' * len(COLUMNS))}, '')"] * rows)
    updates = ", ".join(f"{column} = excluded.{column}" for column in _OWN)
    return f"INSERT INTO account ({columns}) VALUES {marks} ON CONFLICT (user) DO UPDATE SET {updates}"


@lru_cache(maxsize=MOST)
def _select_pairs(rows: int) -> str:
    return (
        f"WITH w (user, recipient) AS (VALUES {values(2, rows)}) "
        "SELECT c.user, c.recipient, c.last_day FROM w CROSS JOIN correspondent AS c "
        "ON c.user = w.user AND c.recipient = w.recipient"
    )


@lru_cache(maxsize=MOST)
def _upsert_pairs(rows: int) -> str:
    return (
        f"INSERT INTO correspondent (user, recipient, last_day) VALUES {values(3, rows)} "
        "ON CONFLICT (user, recipient) DO UPDATE SET last_day = max(last_day, excluded.last_day)"
    )


_BEGIN = (
    "INSERT OR IGNORE INTO milestone VALUES (?, 'recipients are remembered from here on', 'policyd', ?, 0)"
)


class Layer:
    """What a batch, or a pile of them, has changed."""

    __slots__ = ("accounts", "met")

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        #: The day of the last mail, by account and recipient.
        self.met: dict[Pair, int] = {}

    def __bool__(self) -> bool:
        return bool(self.accounts or self.met)

    def take(self, other: Layer) -> None:
        """Lay what ``other`` has changed over this."""
        self.accounts.update(other.accounts)
        self.met.update(other.met)

    def clear(self) -> None:
        """Nothing is changed any more."""
        self.accounts = {}
        self.met = {}


class Accounts:
    """What is known of accounts."""

    def __init__(self) -> None:
        self._cache: dict[str, Account] = {}
        self._days: dict[Pair, int] = {}
        #: Of the batch that is being decided.
        self._fresh = Layer()
        #: Of what is decided and not written yet, newest first. What has been written or taken back is empty.
        self._piles: tuple[Layer, ...] = ()
        #: Of batches that were decided and could not be written.
        self.unwritten = Layer()
        #: Accounts of which the table cannot be read now: what is decided of them is not written.
        self._unreadable: set[str] = set()
        self._cursor: Pair | None = None
        #: Accounts whose row is a little behind: nothing is new but when something was seen last, and how much passed.
        self._unsaved: set[str] = set()
        #: When those that are due are looked for, ledger time.
        self._next_save = 0
        #: Those that the transaction under way writes, and its time.
        self._due: list[str] = []
        self._due_at = 0
        #: Whether the milestone is there from which on recipients are remembered.
        self._began = False

    # --- on the loop too ---------------------------------------------------------------------------------------------

    def knows(self, user: str) -> bool:
        """Whether the database does not have to be asked about ``user``."""
        return self._of(user) is not None

    def held(self, user: str) -> Account | None:
        """The account as the operations before left it, not to be changed; ``None``: the database has to be asked."""
        return self._of(user)

    def get(self, user: str) -> Account:
        """The account as the operations before left it, not to be changed; a new one when there is none."""
        return self._of(user) or Account(user)

    def fresh(self, user: str) -> Account | None:
        """The account as this batch changes it; ``None``: it does not yet."""
        return self._fresh.accounts.get(user)

    def change(self, user: str, known: Account | None) -> Account:
        """The account to be changed: a copy of what is :meth:`held`, which operations after this one see."""
        fresh = self._fresh.accounts[user] = known.copy() if known is not None else Account(user)
        return fresh

    def _of(self, user: str) -> Account | None:
        account = self._fresh.accounts.get(user)
        if account is not None:
            return account
        for pile in self._piles:
            account = pile.accounts.get(user)
            if account is not None:
                return account
        # Last: what is being written goes here before it leaves its pile.
        return self.unwritten.accounts.get(user) or self._cache.get(user)

    def _day(self, pair: Pair) -> int | None:
        day = self._fresh.met.get(pair)
        if day is not None:
            return day
        for pile in self._piles:
            day = pile.met.get(pair)
            if day is not None:
                return day
        day = self.unwritten.met.get(pair)
        return self._days.get(pair) if day is None else day

    def unread(self, user: str, recipients: Iterable[str]) -> list[Pair]:
        """The pairs of ``user`` and ``recipients`` that the database has to be asked about."""
        account = self._of(user)
        if account is not None and not account.first_at:
            # Who has never sent has written to nobody.
            return []
        pairs = [(user, digest(recipient)) for recipient in recipients]
        return [pair for pair in pairs if self._day(pair) is None]

    def strangers(self, user: str, recipients: Sequence[str]) -> list[str]:
        """Those of ``recipients`` that ``user`` has never written to, as far as it is known."""
        return [
            recipient for recipient in recipients if (self._day((user, digest(recipient))) or NEVER) == NEVER
        ]

    def meet(self, user: str, recipients: Sequence[str], day: int) -> None:
        """``user`` has written to ``recipients`` on this day."""
        for recipient in recipients:
            pair = (user, digest(recipient))
            if self._day(pair) != day:
                self._fresh.met[pair] = day

    def decided(self) -> Layer:
        """What the batch has changed, which is decided now; nobody sees it until it is piled, written or kept."""
        layer, self._fresh = self._fresh, Layer()
        return layer

    def pile(self, layer: Layer, onto: Layer) -> None:
        """Lay ``layer`` on a pile that will be written; what is decided from now on sees it."""
        if layer:
            onto.take(layer)
            if not any(pile is onto for pile in self._piles):
                self._piles = (onto, *[pile for pile in self._piles if pile])

    # --- on the writer's thread --------------------------------------------------------------------------------------

    def read(self, connection: sqlite3.Connection, users: Iterable[str], pairs: Iterable[Pair]) -> None:
        """Read these accounts and pairs.

        :raises sqlite3.Error: it is not known; what is not known counts as new.
        """
        missing = sorted(user for user in users if not self.knows(user))
        for chunk in chunked(missing):
            found = {row[0]: row for row in connection.execute(_select(len(chunk)), list(chunk)).fetchall()}
            for user in chunk:
                self._cache[user] = _of_row(found[user]) if user in found else Account(user)
                self._unreadable.discard(user)
        wanted = sorted({pair for pair in pairs if self._day(pair) is None})
        for pairs_chunk in chunked(wanted):
            days = dict.fromkeys(pairs_chunk, NEVER)
            sql = _select_pairs(len(pairs_chunk))
            for user, recipient, day in connection.execute(sql, flat(pairs_chunk)).fetchall():
                days[user, recipient] = day
            self._days.update(days)

    def unreadable(self, users: Iterable[str]) -> None:
        """These cannot be read now."""
        self._unreadable.update(user for user in users if not self.knows(user))

    def write(self, connection: sqlite3.Connection, layer: Layer, now: int) -> None:
        """Write ``layer`` within the caller's transaction, at ledger time ``now``.

        :raises sqlite3.Error: the caller rolls back.
        """
        crowded = len(self._unsaved) > MOST_UNSAVED
        due = [
            user
            for user, account in layer.accounts.items()
            if account.urgent or now - account.saved_at >= PATIENCE or crowded
        ]
        self._write_rows(connection, [layer.accounts[user] for user in due])
        self._due, self._due_at = due, now
        if layer.met and not self._began:
            # From here on it is known whom an account has never written to.
            connection.execute(_BEGIN, (MEMORY_BEGAN, now))
        for pairs in chunked(sorted(layer.met)):
            connection.execute(_upsert_pairs(len(pairs)), flat((*pair, layer.met[pair]) for pair in pairs))

    def _write_rows(self, connection: sqlite3.Connection, accounts: Sequence[Account]) -> None:
        for chunk in chunked(sorted(accounts, key=_user_of)):
            connection.execute(_upsert(len(chunk)), flat(account.row() for account in chunk))

    def written(self, layer: Layer) -> None:
        """The transaction was committed. The loop may be deciding meanwhile: the pile or the cache tells of it, or both."""
        self._unsaved.update(layer.accounts)
        for user in self._due:
            account = layer.accounts[user]
            account.urgent, account.saved_at = False, self._due_at
        self._unsaved.difference_update(self._due)
        self._due = []
        self._cache.update(layer.accounts)
        self._days.update(layer.met)
        self._began = self._began or bool(layer.met)
        layer.clear()

    def keep(self, layer: Layer) -> None:
        """It was decided, and is not on disk: it is written when it is well; what would overwrite what is unknown, is not."""
        for user in self._unreadable & layer.accounts.keys():
            del layer.accounts[user]
        self.unwritten.take(layer)
        layer.clear()
        if len(self.unwritten.met) > CACHED_RECIPIENTS:
            # One that is forgotten counts as new once more.
            for pair in list(self.unwritten.met)[: CACHED_RECIPIENTS // 4]:
                del self.unwritten.met[pair]

    def known(self) -> Layer:
        """All that is in memory, for a new database."""
        layer = Layer()
        layer.accounts = {
            user: account
            for user, account in self._cache.items()
            if account.first_at or account.tier or account.strikes or account.probation_until
        }
        layer.met = {pair: day for pair, day in self._days.items() if day != NEVER}
        layer.take(self.unwritten)
        return layer

    def trim(self) -> None:
        """Let go of what was read first; what is decided and not written stands in its pile."""
        excess = len(self._cache) - CACHED
        if excess > 0:
            for user in list(self._cache)[: excess + CACHED // 8]:
                if user not in self._unsaved and not any(user in pile.accounts for pile in self._piles):
                    del self._cache[user]
        excess = len(self._days) - CACHED_RECIPIENTS
        if excess > 0:
            for pair in list(self._days)[: excess + CACHED_RECIPIENTS // 8]:
                if not any(pair in pile.met for pile in self._piles):
                    del self._days[pair]

    def recover(self) -> None:
        """After a failure that nobody foresaw: what is not in the table was never decided."""
        self._fresh, self._piles = Layer(), ()
        self.forget()

    def forget(self, users: Iterable[str] | None = None) -> None:
        """Somebody else has changed these accounts, or the table: what was read holds no more."""
        if users is None:
            self._cache.clear()
            self._days.clear()
            self._unreadable.clear()
            self._unsaved.clear()
            self._next_save = 0
            self._began = False
            return
        gone = set(users)
        self._unsaved -= gone
        for user in gone:
            self._cache.pop(user, None)
            # What the admin has said of it holds, not what is still to be written.
            self.unwritten.accounts.pop(user, None)
        for pair in [pair for pair in self._days if pair[0] in gone]:
            del self._days[pair]

    def reopened(self) -> None:
        """The database may be another one: what was read does not hold, what it was not told yet it is to be told."""
        behind = Layer()
        behind.accounts = {user: self._cache[user] for user in self._unsaved if user in self._cache}
        self.forget()
        for account in behind.accounts.values():
            account.urgent = True
        behind.take(self.unwritten)
        self.unwritten.take(behind)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def save(
        self, begin: Callable[[], None], connection: sqlite3.Connection, now: int, patience: int = BEHIND
    ) -> bool:
        """Write some of the rows that are behind, in a transaction of their own; whether there were any.

        :param begin: begins it, and takes in what policyctl has changed, which these rows must not overwrite.
        :param patience: only those that were written so long ago, ms of ledger time; 0: all.
        :raises sqlite3.Error: nothing was written.
        """
        if patience and now < self._next_save:
            return False
        self._unsaved &= self._cache.keys()
        users: list[str] = []
        for user in self._unsaved:
            if not patience or now - self._cache[user].saved_at >= patience:
                users.append(user)
                if len(users) == STEP_ROWS:
                    break
        if len(users) < STEP_ROWS:
            self._next_save = now + SAVE
        if not users:
            return False
        begin()
        try:
            # Some may be forgotten since.
            users = [user for user in users if user in self._cache]
            accounts = [self._cache[user] for user in users]
            self._write_rows(connection, accounts)
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for account in accounts:
            account.saved_at = now
        self._unsaved.difference_update(users)
        return True

    def sweep(self, connection: sqlite3.Connection, now: int) -> bool:
        """Forget some recipients that were not written to for :data:`KNOWN_FOR`; whether there are more to look at."""
        after = self._cursor or ("", -1)
        rows = connection.execute(
            "SELECT user, recipient, last_day FROM correspondent WHERE (user, recipient) > (?, ?) "
            "ORDER BY user, recipient LIMIT ?",
            (*after, STEP_ROWS),
        ).fetchall()
        oldest = (now - KNOWN_FOR) // DAY
        old = [(user, recipient) for user, recipient, day in rows if day < oldest]
        if old:
            connection.executemany("DELETE FROM correspondent WHERE user = ? AND recipient = ?", old)
            for pair in old:
                self._days.pop(pair, None)
        self._cursor = rows[-1][:2] if len(rows) == STEP_ROWS else None
        return self._cursor is not None


def _user_of(account: Account) -> str:
    return account.user


def _of_row(row: Sequence[Any]) -> Account:
    account, damaged = Account.as_readable(row)
    if damaged:
        log.error(
            "store-damaged: %s of account %r cannot be read and begins anew; the rest of it holds",
            " and ".join(damaged),
            row[0],
        )
    return account

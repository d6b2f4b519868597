"""What ``policyctl learn`` has read, on disk while it runs: in a temporary database of SQLite's own, which goes with its process.

So memory stays the same however many mails, accounts and recipients a log has; sorting is SQLite's. It lies where
SQLite puts temporary files: ``SQLITE_TMPDIR``, ``TMPDIR``, else /var/tmp; some 300 octets a mail.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from policyd.errors import UserError

#: Mails and pairs that are handed over at once.
PIECE = 2_000

_SCHEMA = """
CREATE TABLE mail (
    at INTEGER NOT NULL, key INTEGER NOT NULL, known INTEGER NOT NULL, user TEXT NOT NULL, login TEXT NOT NULL,
    client TEXT NOT NULL, sender TEXT NOT NULL, size INTEGER NOT NULL, recipients INTEGER NOT NULL,
    external INTEGER NOT NULL, recipient_list TEXT NOT NULL
);
CREATE TABLE met (user TEXT NOT NULL, recipient INTEGER NOT NULL, day INTEGER NOT NULL);
CREATE TABLE account (
    user TEXT NOT NULL, first_at INTEGER NOT NULL, last_at INTEGER NOT NULL, messages INTEGER NOT NULL,
    past TEXT NOT NULL, tier TEXT NOT NULL, tier_by TEXT NOT NULL
);
"""


class Row(NamedTuple):
    """One mail as it is kept."""

    #: Ledger time, ms.
    at: int
    #: The same for every copy of the mail.
    key: int
    #: How many of its recipients are known by name.
    known: int
    #: The account, and the login as it was logged: empty where there was none.
    user: str
    login: str
    client: str
    sender: str
    size: int
    recipients: int
    #: Recipients outside the site's own domains.
    external: int
    #: One a line.
    recipient_list: str


class Totals(NamedTuple):
    """What was gathered. Times are ledger time in ms, 0 when there is nothing."""

    messages: int
    recipients: int
    accounts: int
    first_at: int
    last_at: int


class Summary(NamedTuple):
    """What is learned of one login. Times are ledger time in ms."""

    user: str
    first_at: int
    last_at: int
    messages: int
    #: JSON, as ``past`` of :class:`policyd.accounts.Account`.
    past: str
    #: The tier that it will be in, and by whom, when that is not by the configuration alone.
    tier: str
    tier_by: str


class Gathered:
    """A temporary database; closing it removes it."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -32000", "temp_store = FILE"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)
        self._rows: list[Row] = []
        self._met: list[tuple[str, int, int]] = []

    def close(self) -> None:
        """Remove it."""
        self._connection.close()

    def add(self, row: Row, met: Iterable[int]) -> None:
        """Keep a mail, and the digests of the recipients that it makes known.

        :raises UserError: there is no room on the disk.
        """
        self._rows.append(row)
        day = row.at // 86_400_000
        self._met += [(row.user, recipient, day) for recipient in met]
        if len(self._rows) >= PIECE:
            self._flush()

    def _flush(self) -> None:
        try:
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO mail VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._rows
            )
            self._connection.executemany("INSERT INTO met VALUES (?, ?, ?)", self._met)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(
                f"what was read cannot be kept in a temporary file: {error}; make room where TMPDIR points (/var/tmp), "
                "or set TMPDIR to a larger disk"
            ) from None
        self._rows, self._met = [], []

    def sort(self) -> Totals:
        """Put the mails in order, each once however many logs it stands in, and add them up.

        :raises UserError: there is no room on the disk.
        """
        self._flush()
        execute = self._connection.execute
        try:
            execute("CREATE INDEX mail_key ON mail (key, known)")
            execute(
                "DELETE FROM mail WHERE EXISTS (SELECT 1 FROM mail AS other WHERE other.key = mail.key AND "
                "(other.known > mail.known OR (other.known = mail.known AND other.rowid < mail.rowid)))"
            )
            execute("DROP INDEX mail_key")
            execute("CREATE INDEX mail_at ON mail (at)")
            row = execute(
                "SELECT count(*), coalesce(sum(recipients), 0), count(DISTINCT user), coalesce(min(at), 0), "
                "coalesce(max(at), 0) FROM mail"
            ).fetchone()
        except sqlite3.Error as error:
            raise UserError(
                f"what was read cannot be sorted: {error}; make room where TMPDIR points"
            ) from None
        return Totals(*row)

    def mails(self) -> Iterator[Row]:
        """Every mail, the oldest first."""
        return map(Row._make, self._connection.execute("SELECT * FROM mail ORDER BY at, rowid"))

    def by_account(self) -> Iterator[tuple[str, int, int, int, int]]:
        """Account, ledger time, recipients, external ones and size of every mail: account by account, in order of time."""
        return iter(
            self._connection.execute(
                "SELECT user, at, recipients, external, size FROM mail ORDER BY user, at"
            )
        )

    def summarise(self, summaries: Iterable[Summary]) -> None:
        """Keep what is learned of each login."""
        self._connection.executemany("INSERT INTO account VALUES (?, ?, ?, ?, ?, ?, ?)", summaries)

    def summaries(self) -> Iterator[Summary]:
        """What is learned of each login, in the order in which it was kept."""
        return map(Summary._make, self._connection.execute("SELECT * FROM account ORDER BY rowid"))

    def met(self) -> Iterator[tuple[str, int, int]]:
        """Account, digest of a recipient, and the newest day of ledger time: each pair once, in order."""
        return iter(
            self._connection.execute(
                "SELECT user, recipient, max(day) FROM met GROUP BY user, recipient ORDER BY user, recipient"
            )
        )

"""What was learned from logs, written into the database that the daemon works on: in steps, each one short transaction.

Each step holds by itself and can be repeated: a day is replaced by a later one only, an amount by a larger one, and a tier that a
hand or a promotion gave stays. So an interrupted run does no harm, and the next one adds what it left out. The
milestone, on which detectors rely that need the memory of recipients, is set by the last step.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from policyd.accounts import COLUMNS, DAYS_KEPT, LEARNED, LOGS_LEARNED, Account
from policyd.peaks import merged
from policyd.steering import Milestone
from policyd.store.admin import Change
from policyd.store.gathered import Summary
from policyd.store.statements import chunked

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM account WHERE user = ?"  # noqa: S608, names from the code
_INSERT = (
    f"INSERT INTO account ({', '.join(COLUMNS)}, note) VALUES ({', '.join('?' * len(COLUMNS))}, '') "  # noqa: S608
    "ON CONFLICT (user) DO UPDATE SET tier = excluded.tier, tier_by = excluded.tier_by, "
    "tier_since = excluded.tier_since, first_at = excluded.first_at, last_at = excluded.last_at, "
    "messages = excluded.messages, past = excluded.past"
)
_MEET = (
    "INSERT INTO correspondent (user, recipient, last_day) VALUES (?, ?, ?) ON CONFLICT (user, recipient) "
    "DO UPDATE SET last_day = excluded.last_day WHERE excluded.last_day > last_day"
)
_CHANGED = "INSERT INTO change (tbl, key) VALUES ('account', json_array(?))"


@dataclass
class Written:
    """What the steps so far have changed."""

    #: Accounts that are put into the tier for learned ones, and those of which something else is new.
    tiers: int = 0
    others: int = 0
    #: Accounts that stay in the tier that a hand or a promotion gave, and those that stay out because they were suspended.
    kept: int = 0
    suspended: int = 0
    #: Recipients that are new, or were written to later than was known.
    recipients: int = 0
    milestone: bool = False

    @property
    def anything(self) -> bool:
        """Whether anything is different."""
        return bool(self.tiers or self.others or self.recipients or self.milestone)


def was_suspended(account: Account, suspension: object) -> bool:
    """Whether an account is suspended or was once: then it learns itself into no tier."""
    return bool(suspension or account.strikes or account.probation_until)


def is_placed(account: Account) -> bool:
    """Whether an account is in a tier that learning does not take it out of: a hand or a promotion put it there."""
    return bool(account.tier) and account.tier_by != LEARNED


def read_account(connection: sqlite3.Connection, user: str) -> Account:
    """What is known of a login; a new account when nothing is."""
    found = connection.execute(_SELECT, (user,)).fetchone()
    return Account.of_row(found) if found else Account(user)


def write_accounts(change: Change, summaries: Sequence[Summary], tier: str, written: Written) -> None:
    """Take in what is learned of these logins; ``tier``: of ``[tiers] learned``, empty: none."""
    connection, now = change.connection, change.now
    changed = []
    for summary in summaries:
        account = read_account(connection, summary.user)
        before = account.row()
        first, last = min(summary.first_at, now), min(summary.last_at, now)
        account.first_at = min(account.first_at or first, first)
        account.last_at = max(account.last_at, last)
        for name, days in json.loads(summary.past).items():
            account.past = {**account.past, name: merged(account.past.get(name, ()), days, DAYS_KEPT)}
        if was_suspended(account, change.find("suspension", summary.user)):
            written.suspended += 1
        elif is_placed(account):
            written.kept += 1
        elif tier and account.tier != tier:
            account.tier, account.tier_by = tier, LEARNED
            account.tier_since, account.messages = now, 0
        account.tier_since = account.tier_since or account.first_at
        row = account.row()
        if row != before:
            if (account.tier, account.tier_by) != (before[1], before[2]):
                written.tiers += 1
            else:
                written.others += 1
            changed.append(row)
    connection.executemany(_INSERT, changed)
    connection.executemany(_CHANGED, [row[:1] for row in changed])


def write_recipients(change: Change, pairs: Sequence[tuple[str, int, int]], written: Written) -> None:
    """Remember to whom accounts have written, and on which day of ledger time last."""
    connection, today = change.connection, change.now // 86_400_000
    before = connection.total_changes
    for chunk in chunked(pairs):
        connection.executemany(_MEET, [(user, recipient, min(day, today)) for user, recipient, day in chunk])
    if new := connection.total_changes - before:
        written.recipients += new
        # The daemon drops what it knows of whom they have written to.
        users = dict.fromkeys(pair[0] for pair in pairs)
        connection.executemany(_CHANGED, [(user,) for user in users])


def conclude(change: Change, source: str, detail: str, written: Written) -> None:
    """The last step: what is learned counts from now on; the history, if anything is different.

    :param source: what was read, for people.
    """
    if change.find("milestone", LOGS_LEARNED) is None:
        change.put("milestone", Milestone(LOGS_LEARNED, source, change.author, change.now, 0))
        written.milestone = True
    if written.anything:
        change.record("learn", source, detail)

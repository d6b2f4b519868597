"""The busiest windows of the accounts in a log, by tier: which limits would have fitted; and what each account's past was."""

from __future__ import annotations

import heapq
import json
import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from policyd.accounts import DAYS_KEPT, LEARNED, Account
from policyd.answer import escape
from policyd.cli.common import table
from policyd.marks import PARTS
from policyd.peaks import ORDINARY, Days, Measured, Sent, Spread, windows_of
from policyd.sentence import USUAL
from policyd.store import admin, learned
from policyd.store.gathered import Gathered, Summary
from policyd.units import DAY, HOUR, Limit, format_duration, format_size

if TYPE_CHECKING:
    from policyd.config import Config

#: Windows for which limits are suggested whatever the tiers have.
ALWAYS = [("recipients", HOUR), ("recipients", DAY)]
#: Accounts above a suggested limit that are named.
NAMED = 5

Key = tuple[str, str, int]


class Measure:
    """What the accounts of a log have sent, account by account."""

    def __init__(self, config: Config, connection: sqlite3.Connection, now: int) -> None:
        """
        :param connection: policyd's database, to read which tier an account is in.
        :param now: ledger time, ms.
        """
        self._tiers = config.tiers
        self._connection = connection
        self._now = now
        quotas = [section for section in config.checks if section.use == "quota"]
        by_tier = [q for q in quotas if q.options.per == "user" and not q.options.limits]
        #: Whether mail among the site's own domains is left out, as the quota does it.
        self.external = any(quota.options.count == "external" for quota in by_tier)
        self._windows = {
            name: windows_of(list(tier.limits), ALWAYS) for name, tier in self._tiers.all.items()
        }
        self._usual = [d.section.when for d in config.detects if d.section.when.kind == USUAL]
        self._spreads: dict[Key, Spread] = {}
        self._top: dict[Key, list[tuple[int, str]]] = {}

    def summaries(self, gathered: Gathered) -> Iterator[Summary]:
        """Measure every account; what is learned of each that is a login."""
        for user, mails in groupby(gathered.by_account(), itemgetter(0)):
            yield from self._account(user, (Sent(*mail[1:]) for mail in mails))

    def _account(self, user: str, mails: Iterator[Sent]) -> Iterator[Summary]:
        account, is_login = self._placed(user), not user.startswith("client:")
        tier = account.tier_of(self._tiers, self._now)
        measured = Measured(self._windows.get(tier) or dict.fromkeys(ALWAYS), self.external)
        usual = [
            (sentence, Days(sentence.window, max(1, sentence.window // PARTS), DAYS_KEPT))
            for sentence in self._usual
        ]
        first = last = count = 0
        for sent in mails:
            first, last, count = first or sent.at, sent.at, count + 1
            measured.add(sent)
            for sentence, days in usual:
                days.add(sent.at, sent.recipients if sentence.noun == "recipients" else 1)
        for (unit, window), peak in measured.peaks.items():
            key = (tier, unit, window)
            self._spreads.setdefault(key, Spread()).add(peak.highest)
            top = self._top.setdefault(key, [])
            heapq.heappush(top, (peak.highest, user))
            if len(top) > NAMED:
                heapq.heappop(top)
        if is_login:
            past = {f"{sentence.noun}/{sentence.window}": days.days for sentence, days in usual}
            text = json.dumps(past, separators=(",", ":"))
            yield Summary(user, first, last, count, text, account.tier, account.tier_by)

    def _placed(self, user: str) -> Account:
        """The account as it will be once the log is learned."""
        account = learned.read_account(self._connection, user)
        suspension = admin.find(self._connection, "suspension", (user,), self._now)
        if (
            user.startswith("client:")
            or learned.was_suspended(account, suspension)
            or learned.is_placed(account)
        ):
            return account
        if self._tiers.learned:
            account.tier, account.tier_by = self._tiers.learned, LEARNED
        return account

    def records(self) -> list[dict[str, Any]]:
        """Each tier's limits, how the accounts' busiest windows are spread, and a limit that would have fitted."""
        order = {name: at for at, name in enumerate(self._tiers.all)}
        found = []
        for key in sorted(self._spreads, key=lambda key: (order.get(key[0], -1), key[1] == "bytes", key[2])):
            tier, unit, window = key
            spread, suggested = self._spreads[key], self._spreads[key].suggested
            limits = self._tiers.limits_in(tier)
            now = [limit.amount for limit in limits if (limit.unit, limit.window) == (unit, window)]
            above = [(user, peak) for peak, user in sorted(self._top[key], reverse=True) if peak > suggested]
            found.append(
                {
                    "tier": tier,
                    "unit": unit,
                    "window": format_duration(window),
                    "limit": min(now, default=None),
                    "accounts": spread.accounts,
                    "half": spread.share(50),
                    "most": spread.share(95),
                    "nearly_all": spread.share(ORDINARY),
                    "peak": spread.highest,
                    "suggested": str(Limit(suggested, unit, window)),
                    "above": [{"user": user, "peak": peak} for user, peak in above],
                }
            )
        return found

    def lines(self) -> list[str]:
        """The same for people."""
        records = self.records()
        rows, above = [], []
        for record in records:
            spoken = format_size if record["unit"] == "bytes" else int
            limit = record["limit"]
            what = record["unit"] if record["unit"] != "bytes" else "size"
            rows.append(
                (
                    record["tier"] or "none",
                    f"{what} per {record['window']}",
                    record["accounts"],
                    *(spoken(record[name]) for name in ("half", "most", "nearly_all", "peak")),
                    "none" if limit is None else spoken(limit),
                    record["suggested"],
                )
            )
            for one in record["above"]:
                above.append(f"  {escape(one['user'])}  {spoken(one['peak'])} {what} in {record['window']}")
        head = (
            "tier",
            "busiest window",
            "accounts",
            "half",
            "19 of 20",
            "99 of 100",
            "peak",
            "limit now",
            "suggested",
        )
        lines = table(head, rows).split("\n")
        if above:
            lines += [
                "",
                "beyond what is suggested (a tier of their own, or 'policyctl quota set'):",
                *dict.fromkeys(above),
            ]
        return lines

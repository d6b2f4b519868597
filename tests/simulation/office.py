"""The mail server of the simulation: the shipped policy over a ledger in memory, with a clock that the mails set."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from policyd.accounts import COLUMNS, Account, digest
from policyd.config import Config
from policyd.decision import Earlier, Settled
from policyd.request import Request
from policyd.service import build_engine
from policyd.steering import Milestone
from policyd.units import HOUR, MINUTE
from tests.fakes import FakeLedger
from tests.simulation.month import Mail


@dataclass
class Outcome:
    """What became of the mail of one account."""

    #: Recipients of stolen mail that passed, until the suspension or in all.
    stolen: int = 0
    #: Ledger time of the first suspension, and whether it was the thief's mail that brought it.
    suspended_at: int = 0
    by_thief: bool = False
    why: str = ""
    #: Mails of the owner's that were refused before any theft.
    refused: list[str] = field(default_factory=list)


class MailServer(FakeLedger):
    """Decides each mail as the daemon does: its recipients at RCPT, then the whole of it."""

    def __init__(self, config: Config) -> None:
        super().__init__(build_engine(config))
        self.config = config
        self._mail: list[Earlier] = []
        self._number = 0
        self.outcomes: dict[str, Outcome] = {}
        #: Accounts and digests of recipients that they have written to.
        self.pairs: set[tuple[str, int]] = set()

    def earlier(self, request: Request) -> Earlier | None:
        return None

    def siblings(self, request: Request) -> Sequence[Earlier]:
        return self._mail

    def next_id(self) -> int:
        return self._number

    def _decide(self, mail: Mail, stage: str, recipient: str) -> Settled:
        self._number += 1
        request = self.config.site.request(
            {
                "protocol_state": stage,
                "instance": f"{self._number}",
                "client_address": mail.client,
                "sasl_method": "PLAIN",
                "sasl_username": mail.user,
                "sender": mail.user,
                "recipient": recipient,
                "recipient_count": "0" if stage == "RCPT" else str(len(mail.recipients)),
                "size": "0" if stage == "RCPT" else str(mail.size),
            }
        )
        return super().decide(request)

    def receives(self, mail: Mail) -> Settled:
        """Decide one mail, and note what became of it."""
        self.now = mail.at
        self._mail = []
        self.rows.clear()
        settled: Settled | None = None
        # With one recipient Postfix names it at the end too: half the work.
        for recipient in mail.recipients if len(mail.recipients) > 1 else ():
            settled = self._decide(mail, "RCPT", recipient)
            if settled.verdict == "refuse":
                break
            _, _, earlier = self.rows[-1]
            self._mail.append(earlier)
        else:
            one = mail.recipients[0] if len(mail.recipients) == 1 else ""
            settled = self._decide(mail, "END-OF-MESSAGE", one)
        assert settled is not None
        self._note(mail, settled)
        return settled

    def runs(self, mails: Sequence[Mail]) -> None:
        """Decide all of these; an application tries again each minute, for an hour, what was refused for now."""
        again: list[tuple[int, int, Mail]] = []
        for mail in mails:
            while again and again[0][0] <= mail.at:
                self._retry(again)
            settled = self.receives(mail)
            if settled.answer.verb.startswith("4") and mail.user.startswith("application"):
                heapq.heappush(again, (mail.at + MINUTE, mail.at + HOUR, mail))
        while again:
            self._retry(again)

    def _retry(self, again: list[tuple[int, int, Mail]]) -> None:
        at, until, mail = heapq.heappop(again)
        settled = self.receives(mail._replace(at=at))
        if settled.answer.verb.startswith("4") and at < until:
            heapq.heappush(again, (at + MINUTE, until, mail))

    def _note(self, mail: Mail, settled: Settled) -> None:
        outcome = self.outcomes.setdefault(mail.user, Outcome())
        if mail.theft and not outcome.suspended_at:
            outcome.stolen += len(mail.recipients) if settled.verdict == "pass" else 0
        if settled.verdict == "refuse":
            if settled.reason.startswith("suspended: ") and not outcome.suspended_at:
                outcome.suspended_at, outcome.by_thief = mail.at, bool(mail.theft)
                outcome.why = f"{settled.by}: {settled.reason}"
            if not mail.theft:
                outcome.refused.append(f"{settled.by}: {settled.reason}")

    def knows(self, database: Path) -> None:
        """Begin with what ``policyctl learn`` has put into a database: accounts, and whom each has written to."""
        with closing(sqlite3.connect(database)) as connection:
            for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM account"):
                account = Account.of_row(row)
                self.accounts[account.user] = account
            self.pairs = set(connection.execute("SELECT user, recipient FROM correspondent"))
            for row in connection.execute("SELECT * FROM milestone"):
                self.steering.put("milestone", Milestone(*row))

    def strangers(self, user: str, recipients: Sequence[str]) -> list[str]:
        return [recipient for recipient in recipients if (user, digest(recipient)) not in self.pairs]

    def meet(self, user: str, recipients: Sequence[str], day: int) -> None:
        self.pairs.update((user, digest(recipient)) for recipient in recipients)

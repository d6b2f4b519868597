"""What the present configuration would have done to mail of the past: its engine, its settle, over a temporary database.

Each mail is decided at its own time, as it was at END-OF-MESSAGE, with the recipients that Postfix named at RCPT; the accounts
are in the tiers that they have now, or are learned into. What a log does not tell is left out: checks that ask the DNS or
remember delays, and whatever is no check of policyd's own. Bans, suspensions and grants of today are not those of the past.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from policyd.accounts import MILESTONES
from policyd.decision import HELD, PASSED, REFUSED, Decision, Earlier, Operation
from policyd.errors import UserError
from policyd.findings import ALERT, HOLD, REFUSE, SUSPEND, Case, cases_of_would
from policyd.opinion import OFF
from policyd.request import END_OF_MESSAGE, MX, RCPT, Request
from policyd.settle import settle
from policyd.steering import EVERY_CHECK, Milestone
from policyd.store import admin, migrate
from policyd.store.batch import Notes, Staged
from policyd.store.clock import LedgerClock
from policyd.store.gathered import Row
from policyd.store.ledger import Ledger
from policyd.units import DAY
from policyd.watch import Watch

if TYPE_CHECKING:
    from policyd import steering
    from policyd.config import CheckSection, Config

#: Steering data that belongs to the policy, and not to a day.
POLICY = ("allow", "user_limit", "check_mode", "sender_right")
#: Checks that a log tells nothing for.
NOT_IN_LOGS = frozenset({"dnsbl", "greylist", "spf"})
#: Mails of one transaction of the temporary database.
PIECE = 500
#: So long a detector that compares with what was before only looks on; of a short log, for half of it.
LOOKS_ON = 7 * DAY
#: Stands for a recipient whose delivery the log does not tell of.
UNNAMED = "recipient"


class _Clock(LedgerClock):
    """Stands at the time of the mail that is decided."""

    at = 0

    def now(self) -> int:
        return self.at


class _Past(Ledger):
    """A ledger of mail that nobody waits for: each is decided at once, many are written together, decisions are not kept."""

    #: The recipients of the mail under way, as if they had been asked about before; ``None``: they were.
    recipients: Sequence[Earlier] | None = None

    def __init__(self, connection: sqlite3.Connection, clock: LedgerClock) -> None:
        super().__init__(connection, clock, settle, lambda: 0, self._failed)
        # It is empty: nothing was decided before.
        self.instances.complete = True
        self._staged = Staged()
        self._number = 0

    def _failed(self, operation: Operation, error: Exception) -> None:
        raise UserError(f"a mail of the log cannot be decided: {type(error).__name__}: {error}") from error

    def siblings(self, request: Request) -> Sequence[Earlier]:
        return super().siblings(request) if self.recipients is None else self.recipients

    def judge(self, operation: Operation) -> tuple[Decision, Notes]:
        """The decision, and what it noted."""
        self._read([operation])
        batch, staged = self.decide([operation]), self._staged.batch
        self.memories.pile(batch.facts, staged.facts)
        self.accounts.pile(batch.accounts, staged.accounts)
        staged.notes.suspensions.extend(batch.notes.suspensions)
        self._number += 1
        if self._number % PIECE == 0:
            self._flush()
        (decision,) = batch.decisions
        assert decision is not None, "a failure was told"
        return decision, batch.notes

    def _flush(self) -> None:
        batch = self._staged.batch
        self.connection.execute("BEGIN")
        self._write(*self._prepare((), self.counters.changed()), batch.facts, batch.accounts, batch.notes)
        self.connection.execute("COMMIT")
        self.steering.generation = self.mirror.current_generation()
        self.memories.written(batch.facts)
        self.accounts.written(batch.accounts)
        self._staged = Staged()
        self.trim()


def replayed(config: Config) -> tuple[CheckSection, ...]:
    """The checks that a log can be held against."""
    return tuple(
        section
        for section in config.checks
        if section.direction != MX and section.use not in NOT_IN_LOGS and "." not in section.use
    )


class Replay:
    """A policy, and how it stands after the mails so far. Closing it removes its temporary database."""

    def __init__(
        self, config: Config, steered: Iterable[tuple[str, steering.Row]], first_at: int, last_at: int
    ) -> None:
        """
        :param steered: rows of the tables of :data:`POLICY` in force, each with its table.
        :param first_at: ledger time of the first mail (ms), and of the last.
        """
        from policyd.service import build_engine

        self._config = config
        self._connection = sqlite3.connect("", isolation_level=None)
        for pragma in ("journal_mode = MEMORY", "synchronous = OFF", "cache_size = -32000"):
            self._connection.execute(f"PRAGMA {pragma}")
        migrate.migrate(self._connection, "the temporary database")
        with admin.change(self._connection, "learn") as change:
            for table, row in steered:
                if not (table == "check_mode" and row[0] == EVERY_CHECK):
                    change.put(table, row)
            for name in MILESTONES:
                change.put("milestone", Milestone(name, "", "learn", 0, 0))
        self._clock = _Clock()
        self._clock.at = first_at
        self._ledger = _Past(self._connection, self._clock)
        checks = replayed(config)
        self._engine = build_engine(replace(config, checks=checks))
        self._at_rcpt = any(c.use == "quota" and c.options.count_at == "rcpt" for c in checks)
        #: Until then what compares with the past only looks on.
        self.looks_on_until = first_at + min(LOOKS_ON, (last_at - first_at) // 2)
        self._watch, self._engine.watch = self._engine.watch, _looking_on(self._engine.watch)
        self._site = config.site
        self._number = 0

    def close(self) -> None:
        """Remove the temporary database."""
        self._connection.close()

    def put(self, accounts: Iterable[tuple[str, str, str]]) -> None:
        """Put logins into their tiers before the first mail: login, tier, by whom."""
        self._connection.executemany(
            "INSERT INTO account (user, tier, tier_by, tier_since, probation_until, first_at, last_at, messages, "
            "incident_at, strikes, note, marks, past) VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0, '[]', '', '{}', '{}')",
            accounts,
        )

    def decide(self, mail: Row) -> Iterator[Case]:
        """What becomes of the next mail.

        :raises UserError: it cannot be decided.
        """
        self._clock.at = max(self._clock.at, mail.at)
        if mail.at >= self.looks_on_until:
            self._engine.watch = self._watch
        self._number += 1
        to = mail.recipient_list.split("\n") if mail.recipient_list else []
        attributes = {
            "protocol_state": END_OF_MESSAGE,
            "sender": mail.sender,
            "size": str(mail.size),
            "client_address": mail.client,
            "sasl_method": "PLAIN" if mail.login else "",
            "sasl_username": mail.login,
            "instance": f"{self._number:x}",
        }
        count = mail.recipients
        if self._at_rcpt:
            passed = []
            to += [f"{UNNAMED}{number}" for number in range(count - len(to))]
            for recipient in to:
                asked = attributes | {"protocol_state": RCPT, "recipient": recipient}
                decision, cases = self._settled(asked)
                yield from cases
                if decision.settled.verdict != REFUSED:
                    passed.append(recipient)
            to, count = passed, len(passed)
        else:
            self._ledger.recipients = [Earlier(0, 0, "", RCPT, each, PASSED, "DUNNO", "", "") for each in to]
        if count:
            alone = to[0] if count == 1 and to else ""
            _, cases = self._settled(attributes | {"recipient": alone, "recipient_count": str(count)})
            yield from cases

    def _settled(self, attributes: dict[str, str]) -> tuple[Decision, list[Case]]:
        request = self._site.request(attributes)
        consulting = self._engine.consult(request, self._clock.at, self._ledger.steering)
        try:
            consulting.send(None)
        except StopIteration as done:
            operation = Operation(request, done.value, 0, _nobody)
        else:
            consulting.close()
            raise UserError(
                "a check of the configuration waits for something, so it cannot be held against a log"
            )
        decision, notes = self._ledger.judge(operation)
        return decision, list(_cases(decision, notes))


def _cases(decision: Decision, notes: Notes) -> Iterator[Case]:
    settled, at = decision.settled, decision.at
    user = decision.request.account
    if settled.verdict == REFUSED:
        what = SUSPEND if notes.suspensions else REFUSE
        yield Case(settled.by, what, False, user, at, settled.reason.removeprefix("suspended: "))
    elif settled.verdict == HELD:
        yield Case(settled.by, HOLD, False, user, at, settled.reason)
    if settled.would:
        yield from cases_of_would(settled.would, user, at)
    for _, _, kind, subject, _, text in notes.events:
        if kind == "detect":
            facts = json.loads(text)
            yield Case(facts["detector"], ALERT, False, subject, at, facts["reason"])


def _looking_on(watch: Watch | None) -> Watch | None:
    """The watch while it is too early for what compares with what was before."""
    if watch is None:
        return None
    detects = [
        each._replace(mode=OFF) if each.detector is not None and each.detector.remembers else each
        for each in watch.detects
    ]
    return Watch(detects, watch.suspending, watch.tiers)


def _nobody(operation: Operation, decision: Decision | None) -> None:
    """Nobody waits for the answer."""

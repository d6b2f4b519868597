"""``policyctl why``: can this account send now; if not, what stands in the way, until when, and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from policyd.answer import escape, shell_word
from policyd.cli.accounts import (
    release_command,
    suspension_in_force,
    suspension_record,
    suspension_text,
)
from policyd.cli.common import (
    NOT_RUNNING,
    UNKNOWN_RUNNING,
    Session,
    Times,
    account_of,
    json_option,
    pass_session,
)
from policyd.cli.when import iso, stamp
from policyd.match import parse_address
from policyd.opinion import SHADOW
from policyd.request import END_OF_MESSAGE, RCPT
from policyd.steering import client_network

if TYPE_CHECKING:
    import sqlite3

    from policyd.cli.offline import Offline, Usage
    from policyd.steering import Entry, Suspension
    from policyd.store.read import Logged, Wanted


class Subject(NamedTuple):
    """Who is asked about: an account, or a client by its address."""

    name: str
    is_client: bool

    def wanted(self, action: str = "") -> Wanted:
        """Its decisions."""
        from policyd.store.read import Wanted

        if self.is_client:
            return Wanted(client=self.name, action=action)
        return Wanted(user=self.name, action=action)


def _subject(session: Session, text: str) -> Subject:
    bare = text.strip().strip("[]")
    address = parse_address(bare)
    if address is not None:
        return Subject(str(address), True)
    if client_network(bare) is not None and "/" in bare:
        raise click.UsageError(
            f"{text!r} is a network; write one address of it, or 'policyctl ban show client {escape(bare)}'",
            click.get_current_context(),
        )
    return Subject(account_of(session, text), False)


@click.command()
@click.argument("user", metavar="USER|ADDRESS")
@json_option
@pass_session
def why(session: Session, user: str) -> None:
    """Can this account send now? If not: which rule, the numbers, when it can, and the command that helps.

    Decides a small message as the daemon would, sent from where and as whom the account's last one was. Of a client's ADDRESS:
    the same for mail as its last one; blocklists and SPF are asked now, and from here.
    """
    from policyd.cli.offline import Offline
    from policyd.cli.quota_show import must_be_known
    from policyd.store import locks

    subject = _subject(session, user)
    with session.reading() as connection:
        if not subject.is_client:
            must_be_known(connection, session, subject.name)
        offline = Offline(session.config, connection, session.warn)
        times = Times(offline.now, Times.of(connection).ahead)
        found = Findings(session, offline, subject, times, locks.daemon_running(session.database))
        found.look(connection)
    if session.json:
        session.data(found.record())
    else:
        for text_line in found.lines():
            click.echo(text_line)


class Findings:
    """What is found out about one account or client."""

    def __init__(
        self, session: Session, offline: Offline, subject: Subject, times: Times, running: bool | None
    ) -> None:
        self._session = session
        self._offline = offline
        self.subject = subject
        self.times = times
        self.running = running
        self.last: Logged | None = None
        self.last_refusal: Logged | None = None
        self.decision: Logged | None = None
        self.usages: list[Usage] = []
        self.bans: list[Entry] = []
        #: Bans without effect, each with what stands before it.
        self.masked: list[tuple[Entry, str]] = []
        self.suspension: Suspension | None = None
        #: The sender of the account's last mail, where it is all that is refused.
        self.not_its_own = ""
        #: It is only delayed: its server tries again.
        self.greylisted = False
        self.remarks: list[str] = []
        rescued = session.rescued
        #: Whether every check that the daemon may have was asked here.
        self.complete = offline.complete and (
            rescued is None or (rescued.knows_checks and not rescued.left_out)
        )

    def look(self, connection: sqlite3.Connection) -> None:
        """Ask everything that is to be told."""
        from policyd.cli.examples import from_client
        from policyd.cli.offline import logged
        from policyd.store import read

        offline = self._offline
        if self.subject.is_client:
            request, self.last = from_client(offline.config.site, connection, self.subject.name)
        else:
            request, self.last = offline.typical(self.subject.name)
        # First of all: a counter that cannot be read ends it here, in one line.
        self.usages = offline.usage(request)
        # An account without any room is refused at RCPT already; what only that stage is asked about counts, too.
        for stage in (RCPT, END_OF_MESSAGE):
            self.decision = logged(offline.decide(request._replace(stage=stage)))
            if self.decision.verdict != "pass":
                self._look_as_itself(stage)
                self.greylisted = self._is_by("greylist")
                break
        self.bans, self.masked = offline.bans(request)
        row = (
            None
            if self.subject.is_client
            else suspension_in_force(connection, self.subject.name, offline.now)
        )
        # Where an allow comes before it, or the check 'bans' does not enforce, it is a remark.
        self.suspension = row if self.decision is not None and self.decision.verdict == "refuse" else None
        if row is not None and self.suspension is None:
            self.remarks.append(
                f"{suspension_text(row, self.times)}; but no check that enforces refuses it for that"
            )
        refusals = read.decisions(connection, self.subject.wanted("refuse"), 1)
        self.last_refusal = refusals[0] if refusals else None
        self._remark()

    def _is_by(self, use: str) -> bool:
        """Whether a check of this kind decided."""
        by = self.decision.by if self.decision is not None else ""
        return any(check.name == by and check.use == use for check in self._session.config.checks)

    def _look_as_itself(self, stage: str) -> None:
        """Where it is the sender that is not the login's: whether the account can send as itself."""
        assert self.decision is not None
        if not self._is_by("sender_login"):
            return
        self.not_its_own = self.decision.sender or "<>"
        name = self.subject.name
        if "@" in name:
            request, _ = self._offline.typical(name, stage, name)
            if self._offline.decide(request).settled.verdict == "pass":
                self.remarks.append(f"as {escape(name)} it can send now")

    def _remark(self) -> None:
        from policyd.units import DAY

        now = self.times.now
        if self.running is None:
            self.remarks.append(UNKNOWN_RUNNING)
        elif not self.running:
            self.remarks.append(NOT_RUNNING)
        if self.last is None:
            self.remarks.append(
                "no mail from this client is in the decisions that are kept"
                if self.subject.is_client
                else f"no mail of this account is in the decisions that are kept; {_WHERE_TO_LOOK}"
            )
        elif self.last.at < now - DAY and not self.subject.is_client:
            self.remarks.append(
                f"Postfix has not asked about it since {stamp(self.last.wall_at)}; {_WHERE_TO_LOOK}"
            )
        for mode in self._offline.steering.modes.values():
            if not mode.expires_at or now < mode.expires_at:
                until = f" until {self.times.until(mode.expires_at)}" if mode.expires_at else ""
                by = f", by {escape(mode.author)}" if mode.author else ""
                reason = f": {escape(mode.reason)}" if mode.reason else ""
                if mode.name == "*":
                    self.remarks.append(f"paused{until}{by}{reason}; nothing but bans refuses")
                else:
                    self.remarks.append(f"check {escape(mode.name)} is set to {mode.mode}{until}{by}{reason}")
        for ban, allowed in self.masked:
            self.remarks.append(
                f"the ban of {ban.kind} {escape(ban.value) or '<>'} has no effect on this mail: {allowed} comes before it"
            )
        shadowed = [
            escape(rule.name)
            for rule in self._offline.engine.rules
            if rule.mode == SHADOW == self._offline.mode(rule)
        ]
        if shadowed:
            self.remarks.append(f"only in shadow, by the configuration: {', '.join(shadowed)}")

    @property
    def can_send(self) -> bool:
        """Whether a small message would pass."""
        return self.decision is not None and self.decision.verdict == "pass"

    @property
    def full(self) -> list[Usage]:
        """The enforced limits without room."""
        return [usage for usage in self.usages if usage.full and usage.mode == "enforce"]

    def helps(self) -> list[str]:
        """The commands that help, most fitting first."""
        assert self.decision is not None
        if self.can_send:
            return []
        commands = []
        if self.suspension is not None:
            commands.append(release_command(self.subject.name))
        if self.bans:
            commands += [f"policyctl unban {ban.kind} {shell_word(ban.value or '<>')}" for ban in self.bans]
        name = shell_word(self.subject.name)
        if self.not_its_own:
            commands.append(f"policyctl sender allow {name} {shell_word(self.not_its_own)}")
        for usage in self.full:
            if usage.scope == "user":
                commands.append(
                    f"policyctl quota grant {name} {max(usage.limit.amount, 10)} {usage.limit.unit} --for 1d"
                )
        if self.subject.is_client and not self.bans:
            grey = "greylist " if self.greylisted else ""
            commands.append(f"policyctl {grey}allow client {name} --for 1d")
        if self.full and not commands:
            commands.append(f"policyctl check shadow {shell_word(self.decision.by)} --for 1h")
        if self.suspension is not None and self.suspension.ref:
            commands.append(f"policyctl explain {escape(self.suspension.ref)}")
        if not commands and self.decision.by:
            commands.append(f"policyctl check shadow {shell_word(self.decision.by)} --for 1h")
        return list(dict.fromkeys(commands))

    def can_send_at(self) -> int:
        """The ledger time from which it can send without help (ms); 0: now, or not by itself."""
        ends = [ban.expires_at for ban in self.bans]
        if self.suspension is not None:
            ends.append(self.suspension.expires_at)
        if self.can_send or not all(ends) or not (ends or self.full):
            return 0
        if any(not usage.fits_at for usage in self.full):
            return 0
        return max(ends + [usage.fits_at for usage in self.full])

    def record(self) -> dict[str, Any]:
        """For programs."""
        from policyd.cli.quota_show import usage_record

        assert self.decision is not None
        at = self.can_send_at()
        refusal = self.last_refusal
        return {
            "user": None if self.subject.is_client else self.subject.name,
            "client": self.subject.name if self.subject.is_client else None,
            # Of a file with errors only a refusal is certain.
            "can_send": None if self.can_send and not self.complete else self.can_send,
            # As whom: that of its last mail.
            "sender": self.decision.sender,
            "answer": self.decision.action,
            "check": self.decision.by,
            "reason": self.decision.reason,
            "can_send_at": self.times.iso(at),
            "bans": [
                {
                    "kind": ban.kind,
                    "value": ban.value,
                    "reason": ban.reason,
                    "author": ban.author,
                    "expires_at": self.times.iso(ban.expires_at),
                }
                for ban in self.bans
            ],
            "suspension": suspension_record(self.suspension, self.times)
            if self.suspension is not None
            else None,
            "limits": [usage_record(usage, self.times) for usage in self.usages],
            "would": self.decision.would,
            "last_seen": iso(self.last.wall_at) if self.last is not None else None,
            "last_refusal": {
                "time": iso(refusal.wall_at),
                "ref": refusal.ref,
                "action": refusal.action,
                "check": refusal.by,
            }
            if refusal is not None
            else None,
            "helps": self.helps(),
            "remarks": self.remarks,
            "daemon_running": self.running,
        }

    def lines(self) -> list[str]:
        """For people."""
        from policyd.cli.quota_show import usage_table

        assert self.decision is not None
        name, row = escape(self.subject.name), self.decision
        if self.subject.is_client:
            name = f"client {name}"
        if self.can_send:
            by = f": {escape(row.reason, 300)}" if row.reason and row.by else ""
            lines = [click.style(f"{name} can send now{by}", fg="green", bold=True)]
            if not self.complete:
                file = escape(self._session.config_path, 1000)
                text = f"{name}: nothing refuses it that can be read of {file}; a check with errors may"
                lines = [click.style(text, fg="yellow", bold=True)]
        else:
            verdict = "would be put on hold" if row.verdict == "hold" else "cannot send now"
            if self.greylisted:
                verdict = "is delayed now"
            if self.not_its_own:
                verdict = f"cannot send as {escape(self.not_its_own, 100)}, as it did last"
            lines = [
                click.style(
                    f"{name} {verdict}: {escape(row.reason, 300) or escape(row.action, 300)}",
                    fg="red",
                    bold=True,
                )
            ]
            lines.append(f"  by check {escape(row.by)}, which answers: {escape(row.action, 2000)}")
            if self.suspension is not None:
                lines.append(f"  {suspension_text(self.suspension, self.times)}")
            lines += [f"  {_ban_text(ban, self.times)}" for ban in self.bans]
            at = self.can_send_at()
            if self.greylisted:
                lines.append("  such mail passes when its server tries again after that time")
            else:
                lines.append(
                    f"  it can send again from {self.times.until(at)}"
                    if at
                    else "  this does not end by itself"
                )
            lines += [f"  helps: {command}" for command in self.helps()]
        if row.would:
            lines.append(f"  in shadow: {escape(row.would, 900)}")
        if self.usages:
            lines += ["", usage_table(self.usages, self.times)]
        lines.append("")
        if self.last is not None:
            place = f" from {escape(self.last.client)}" if self.last.client else ""
            lines.append(f"last seen {stamp(self.last.wall_at)}{place}: {escape(self.last.action, 500)}")
        refusal = self.last_refusal
        if refusal is not None:
            explain = f"; policyctl explain {escape(refusal.ref)}" if refusal.ref else ""
            lines.append(
                f"last refused {stamp(refusal.wall_at)} by {escape(refusal.by)}: {escape(refusal.action, 2000)}{explain}"
            )
        else:
            lines.append("no refusal is in the decisions that are kept")
        lines += [f"note: {remark}" for remark in self.remarks]
        return lines


_WHERE_TO_LOOK = (
    "see Postfix's log for the login (journalctl -t postfix/submission/smtpd, /var/log/mail.log), 'policyctl status' for the "
    "stages that arrive, and 'postconf -n' and 'postconf -M' for check_policy_service in that service's restrictions"
)


def _ban_text(ban: Entry, times: Times) -> str:
    what = f"ban of {ban.kind} {escape(ban.value) or '<>'}"
    until = f"until {times.until(ban.expires_at)}" if ban.expires_at else "until it is lifted"
    by = f", by {escape(ban.author)}" if ban.author else ""
    return f"{what} since {times.text(ban.created_at)}, {until}{by}" + (
        f": {escape(ban.reason)}" if ban.reason else ""
    )

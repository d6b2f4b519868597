"""``policyctl learn``: takes in what Postfix's logs of the past tell of accounts, and holds the present policy against them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from policyd.accounts import digest
from policyd.answer import escape
from policyd.cli.common import Session, Terms, Times, json_option, pass_session, steering_options
from policyd.cli.steps import in_steps
from policyd.errors import StoreError, UserError
from policyd.findings import Findings
from policyd.match import client_key, domain_of
from policyd.request import parsed_address
from policyd.store import admin, learned
from policyd.store.gathered import Gathered, Row, Totals
from policyd.store.learned import Written
from policyd.units import DAY, MINUTE

if TYPE_CHECKING:
    from policyd.maillog.trail import Mail, Trail
    from policyd.request import Site

#: Ledger time of the past is the logged time, but for steps of the wall clock of more than half of this, ms.
DRIFT = 10 * MINUTE
#: From so long a log on it shows what is ordinary, ms.
ORDINARY = 7 * DAY


@click.command()
@click.argument("files", metavar="[FILE...]", nargs=-1)
@click.option("--journal", is_flag=True, help="Read this machine's journal.")
@steering_options(lasts=False)
@json_option
@pass_session
def learn(session: Session, files: tuple[str, ...], journal: bool, terms: Terms) -> None:
    """Learn from Postfix's logs which accounts there are, how much they send, and to whom.

    FILEs come in any order, as they are or packed with gzip, bzip2 or xz; - is stdin. Each login found goes into the tier of
    [tiers] learned, unless it was put into another one, or was suspended. The same log again changes nothing.

    Then it says which limits would have fitted, and what the present policy would have refused, suspended and alerted.

    \b
    policyctl learn --dry-run /var/log/mail.log*
    """
    from policyd.cli.learned_report import Told
    from policyd.cli.measure import Measure
    from policyd.cli.replay import POLICY

    if not (files or journal):
        raise click.UsageError(
            "name Postfix's logs (/var/log/mail.log*), or --journal", click.get_current_context()
        )
    config = session.sound_config
    with session.reading() as connection:
        times = Times.of(connection)
    # What two clocks drift apart must not move the past: the same log would tell something else tomorrow.
    times = times._replace(ahead=round(times.ahead / DRIFT) * DRIFT)
    with contextlib.closing(Gathered()) as gathered:
        # Outside of session.reading(): there root is the owner of the database, who may not read logs.
        read = _read(session, files, journal, gathered, times.ahead)
        totals = gathered.sort()
        if not totals.messages:
            raise UserError(
                f"{read.lines} lines, and not one mail that an account sent: learn needs Postfix's lines 'client=..., "
                "sasl_username=...' and 'from=<...>, size=..., nrcpt=... (queue active)' of the same mail"
            )
        findings = Findings()
        with session.reading() as connection:
            measure = Measure(config, connection, times.now)
            gathered.summarise(measure.summaries(gathered))
            steered = [(name, row) for name in POLICY for row in admin.rows(connection, name, times.now)]
        looked_on = _replay(session, gathered, totals, steered, findings)
        written = _write(session, terms, gathered, totals, _named(files, journal))
    if totals.last_at - totals.first_at < ORDINARY:
        session.note("mail of less than a week says little of what is ordinary; give older logs too")
    told = Told(session, terms, times, read, totals, written, looked_on)
    if session.json:
        session.data(told.record(measure, findings))
        return
    for line in told.lines(measure, findings):
        click.echo(line)


def _named(files: Sequence[str], journal: bool) -> str:
    """What was read, for the history."""
    names = [*dict.fromkeys(files), *(["the journal"] if journal else [])]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{escape(names[0])}{more}"


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(session: Session, files: Sequence[str], journal: bool, gathered: Gathered, ahead: int) -> Trail:
    """Read all logs into ``gathered``; the trail says what they held."""
    from policyd.maillog import sources
    from policyd.maillog.stamps import Stamps
    from policyd.maillog.trail import Trail

    site = session.sound_config.site
    trail = Trail(site.networks)

    def keep(mails: Iterable[Mail]) -> None:
        for mail in mails:
            _keep(mail, site, gathered, ahead)

    logs = sources.in_order(list(files))
    with _progress(sum(log.size for log in logs), "reading") as advance:
        for log in logs:
            stamps, before = Stamps(log.ends), 0
            for lines, position in sources.blocks(log):
                keep(trail.feed(lines, stamps))
                advance(position - before)
                before = position
    if journal:
        with sources.journal() as pieces:
            stamps = Stamps(time.time())
            for lines in pieces:
                keep(trail.feed(lines, stamps))
    keep(trail.finish())
    return trail


def _keep(mail: Mail, site: Site, gathered: Gathered, ahead: int) -> None:
    user = site.login(mail.user) if mail.user else ""
    login = mail.user if user else ""
    keys = [parsed_address(recipient)[0] for recipient in mail.to]
    sender_domain = parsed_address(mail.sender)[1]
    inside = 0
    if not mail.sender or sender_domain in site.domains:
        inside = sum(domain_of(key) in site.domains for key in keys)
    gathered.add(
        Row(
            max(1, mail.at - ahead),
            digest(mail.key.decode("latin-1")),
            len(keys),
            user or "client:" + client_key(mail.client),
            login,
            mail.client,
            mail.sender,
            mail.size,
            mail.recipients,
            max(0, mail.recipients - inside),
            "\n".join(mail.to),
        ),
        map(digest, keys) if user else (),
    )


@contextlib.contextmanager
def _progress(length: int, label: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal; elsewhere nothing."""
    if not (length and sys.stderr.isatty()):
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update


# --- judging ---------------------------------------------------------------------------------------------------------


def _replay(
    session: Session,
    gathered: Gathered,
    totals: Totals,
    steered: Iterable[tuple[str, Any]],
    findings: Findings,
) -> int:
    """Hold the present policy against what was gathered; until when what compares with the past only looked on."""
    from policyd.cli.replay import Replay

    replay = Replay(session.sound_config, steered, totals.first_at, totals.last_at)
    with contextlib.closing(replay), _progress(totals.messages, "judging") as advance:
        replay.put((each.user, each.tier, each.tier_by) for each in gathered.summaries() if each.tier)
        done = 0
        for mail in gathered.mails():
            for case in replay.decide(mail):
                findings.add(case)
            done += 1
            if done % 1000 == 0:
                advance(1000)
        advance(done % 1000)
    return replay.looks_on_until


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(session: Session, terms: Terms, gathered: Gathered, totals: Totals, source: str) -> Written:
    written, tier = Written(), session.sound_config.tiers.learned
    try:
        in_steps(
            session,
            terms,
            gathered.met(),
            lambda change, rows: learned.write_recipients(change, rows, written),
        )
        in_steps(
            session,
            terms,
            gathered.summaries(),
            lambda change, rows: learned.write_accounts(change, rows, tier, written),
        )
        detail = f"{totals.messages} messages of {totals.accounts} accounts"
        with (
            session.changing() as connection,
            admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
        ):
            learned.conclude(change, source, detail, written)
    except StoreError as error:
        raise type(error)(
            f"{error}. Only a part was written; run it again for the rest, it does no harm"
        ) from None
    return written

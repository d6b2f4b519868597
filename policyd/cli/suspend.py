"""``policyctl suspend`` and ``release``: a login that may not send, and what has to be true before it may again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from policyd.accounts import LEARNED, PROMOTED
from policyd.answer import escape, shell_word
from policyd.cli.accounts import suspension_text
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    author,
    canonical_user,
    json_option,
    known_user,
    pass_session,
    printable,
    steering_options,
    usage_errors,
)
from policyd.cli.entries import warn_without
from policyd.errors import NotFound, UserError
from policyd.steering import Suspension
from policyd.suspending import PROBATION

if TYPE_CHECKING:
    import sqlite3

    from policyd.accounts import Account
    from policyd.store.admin import Change
    from policyd.suspending import Suspending


@click.command()
@click.argument("user")
@click.option("--force", is_flag=True, help="Also a login that was never seen.")
@steering_options()
@json_option
@pass_session
def suspend(session: Session, user: str, force: bool, terms: Terms) -> None:
    """Suspend a login by hand, from the next request on, as a detector would: with a strike, and probation afterwards.

    \b
    policyctl suspend alice@example.org --reason 'complaint of example.net, ticket 4711'

    Without --for or --until it holds until 'policyctl release USER'. One that is suspended is suspended anew, without another
    strike.
    """
    from policyd.store import account_rows, admin, dump

    user = canonical_user(session, user)
    suspending = session.config.suspending
    if suspending.spares(user):
        raise UserError(
            f"{escape(user)} is in never of [suspend]; take it out of {session.config_path} first, or "
            f"'policyctl ban user {shell_word(user)}'"
        )
    with session.changing() as connection:
        known_user(connection, user, force)
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            times, expires = Times.of(connection), change.expires(terms.lasts)
            account = account_rows.account_of(connection, user)
            before: Suspension | None = change.find("suspension", user)
            step = before.step if before is not None else suspending.step(account.strikes, change.now)[0]
            row = Suspension(user, "", terms.reason, "{}", step, "", terms.author, change.now, expires)
            change.put("suspension", row)
            _strike(change, account, before is None, expires, suspending)
            until = f"until {times.until(expires)}" if expires else "until it is released"
            change.record("suspend", user, until)
            facts = {
                "by": terms.author,
                "how": "by hand",
                "reason": terms.reason,
                "step": step,
                "lasts": expires - change.now if expires else 0,
            }
            account_rows.tell(change, "suspend", user, False, facts)
            instead = f" (before: {suspension_text(before, times)})" if before is not None else ""
    session.done(
        {"dry_run": terms.dry_run, "set": [dump.record("suspension", row, times.ahead)]},
        f"{terms.prefix}{escape(user)} is suspended, {until}{instead}",
    )
    warn_without(session, "bans", "ban")


def _strike(change: Change, account: Account, more: bool, expires: int, suspending: Suspending) -> None:
    """What a suspension leaves in its account, as a detector's does."""
    import json

    from policyd.store import account_rows

    strikes = suspending.remembered(account.strikes, change.now)
    values: dict[str, object] = {
        "strikes": json.dumps([*strikes, change.now] if more else [*strikes], separators=(",", ":")),
        "incident_at": change.now,
        "probation_until": expires + PROBATION if expires else 0,
        "marks": "{}",
        "tier_since": change.now,
        "messages": 0,
    }
    if account.tier_by in (PROMOTED, LEARNED):
        # A tier that came by itself has to be earned again.
        values |= {"tier": "", "tier_by": ""}
    account_rows.update(change, account.user, values)


@click.command()
@click.argument("user")
@click.option("--note", metavar="TEXT", required=True, help="What was found and done; kept with the change.")
@click.option(
    "--password-changed/--password-unchanged",
    "changed",
    default=None,
    help="The answer, for scripts. Without one it is asked.",
)
@click.option("--forgive", is_flag=True, help="It was a false alarm: take the last strike back, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@json_option
@pass_session
def release(
    session: Session, user: str, note: str, changed: bool | None, forgive: bool, dry_run: bool
) -> None:
    """End a suspension: the login may send from the next request on, for 48 hours in the default tier.

    \b
    policyctl release alice@example.org --note 'phished; new password, two devices cleaned'
    policyctl release bob@example.org --note 'a trade fair with 300 guests' --password-unchanged --forgive

    Asks whether the password was changed: who stole it has it still otherwise. Not on a terminal, an option must say it.
    """
    from policyd.store import admin

    user = canonical_user(session, user)
    with usage_errors():
        note = printable(note, "note")
        if not note:
            raise ValueError("--note: say what was found and done")
    with session.reading() as connection:
        times = Times.of(connection)
        row: Suspension | None = admin.find(connection, "suspension", (user,), times.now)
        if row is None:
            raise NotFound(_not_suspended(session, connection, user, times))
    if changed is None:
        changed = _asked(f"{escape(user)} is {suspension_text(row, times)}")
    terms = Terms(author(), note, 0, 0, dry_run)
    with session.changing() as connection, admin.change(connection, terms.author, note, dry_run) as change:
        times = Times.of(connection)
        if change.drop("suspension", user) is None:
            raise NotFound(_not_suspended(session, connection, user, times))
        strikes = _write(change, user, changed, forgive)
    session.done(
        {
            "dry_run": dry_run,
            "released": user,
            "password_changed": changed,
            "forgiven": forgive,
            "strikes": strikes,
            "probation_until": times.iso(change.now + PROBATION),
        },
        f"{terms.prefix}{escape(user)} may send again, until {times.until(change.now + PROBATION)} in the default tier; "
        f"{_strikes(strikes)}",
    )
    if not changed and not forgive:
        session.note("the password is the old one: whoever stole it can go on")
    session.note(f"'policyctl queue {shell_word(user)}' shows what of it waits in Postfix's queue")


def _somebody_types() -> bool:
    return sys.stdin.isatty()


def _asked(about: str) -> bool:
    """Whether the password was changed, by whoever types.

    :raises click.UsageError: nobody can be asked.
    :raises click.Abort: it was not, and it is not to be released.
    """
    if not _somebody_types():
        raise click.UsageError(
            "was the password changed? Nobody can be asked here: say --password-changed or --password-unchanged",
            click.get_current_context(),
        )
    click.echo(about, err=True)
    if click.confirm("Was its password changed?", default=None, err=True):
        return True
    click.confirm("Whoever stole it can go on sending. Release it all the same?", abort=True, err=True)
    return False


def _write(change: Change, user: str, changed: bool, forgive: bool) -> int:
    """Put the account on probation, and tell of it; how many strikes it has."""
    import json

    from policyd.store import account_rows

    strikes = list(account_rows.account_of(change.connection, user).strikes)
    if forgive:
        del strikes[-1:]
    account_rows.update(
        change,
        user,
        {
            "probation_until": change.now + PROBATION,
            "strikes": json.dumps(strikes, separators=(",", ":")),
            # What led to the suspension is dealt with; it must not lead to the next one.
            "marks": "{}",
        },
    )
    password = "changed" if changed else "unchanged"
    forgiven = ", strike forgiven" if forgive else ""
    change.record("release", user, f"password {password}{forgiven}; 48 h in the default tier")
    facts = {
        "by": change.author,
        "how": "released",
        "note": change.reason,
        "password": password,
        "forgiven": forgive,
    }
    account_rows.tell(change, "suspend", user, True, facts)
    return len(strikes)


def _strikes(number: int) -> str:
    return "no strike" if not number else f"{number} strike{'s' if number > 1 else ''}"


def _not_suspended(session: Session, connection: sqlite3.Connection, user: str, times: Times) -> str:
    from policyd.store import admin

    if admin.find(connection, "ban", ("user", user), times.now) is not None:
        return (
            f"{escape(user)} is banned, not suspended; 'policyctl unban user {shell_word(user)}' lifts that"
        )
    known_user(connection, user, False, "; 'policyctl bans suspended' lists who is suspended")
    return f"{escape(user)} is not suspended; 'policyctl bans suspended' lists who is"

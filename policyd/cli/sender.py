"""``policyctl sender``: as whom an account may send, beyond its own address."""

from __future__ import annotations

import click

from policyd.answer import escape
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    canonical_user,
    did_you_mean,
    json_option,
    known_user,
    pass_session,
    steering_options,
    usage_errors,
    values_of,
)
from policyd.errors import NotFound
from policyd.steering import SenderRight, canonical_sender


@click.command()
@click.argument("user")
@click.argument("senders", nargs=-1, required=True, metavar="ADDRESS|@DOMAIN...")
@click.option("--force", is_flag=True, help="Also for a login that was never seen.")
@steering_options()
@json_option
@pass_session
def allow_sender(session: Session, user: str, senders: tuple[str, ...], force: bool, terms: Terms) -> None:
    """Let USER send as ADDRESS, or as every address of exactly DOMAIN; '<>' is the null sender.

    \b
    policyctl sender allow alice@example.org sales@example.org
    policyctl sender allow news@example.org @lists.example.org --reason 'newsletters, ticket 4711'

    Without --for or --until it holds until 'policyctl sender rm USER ADDRESS'. '-' reads a list from stdin.
    """
    from policyd.store import admin, dump

    user = canonical_user(session, user)
    wanted = _canonical(senders)
    records, lines = [], []
    with session.changing() as connection:
        known_user(connection, user, force)
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            times = Times.of(connection)
            for sender in wanted:
                expires = change.expires(terms.lasts)
                right = SenderRight(user, sender, terms.reason, terms.author, change.now, expires)
                before = change.put("sender_right", right)
                until = f"until {times.until(expires)}"
                change.record("sender allow", user, f"may send as {sender or '<>'}, {until}")
                records.append(dump.record("sender_right", right, times.ahead))
                instead = f" (before: until {times.until(before.expires_at)})" if before else ""
                lines.append(f"{terms.prefix}{escape(user)} may send as {_shown(sender)}, {until}{instead}")
    session.done({"dry_run": terms.dry_run, "set": records}, *lines)
    _warn_without_check(session)


@click.command()
@click.argument("user")
@click.argument("senders", nargs=-1, metavar="[ADDRESS|@DOMAIN...]")
@steering_options(lasts=False)
@json_option
@pass_session
def remove_sender(session: Session, user: str, senders: tuple[str, ...], terms: Terms) -> None:
    """Take back what USER may send as: the ADDRESSES and DOMAINS named, or all."""
    from policyd.store import admin, dump

    user = canonical_user(session, user)
    records, lines = [], []
    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        times = Times.of(connection)
        there = {
            right.sender: right
            for right in admin.rows(connection, "sender_right", change.now)
            if right.user == user
        }
        for sender in _canonical(senders) if senders else list(there) or [None]:
            if sender is None or sender not in there:
                raise NotFound(_missing(user, sender, list(there)))
            right = change.drop("sender_right", user, sender)
            change.record("sender rm", user, f"no longer as {sender or '<>'}")
            records.append(dump.record("sender_right", right, times.ahead))
            lines.append(f"{terms.prefix}{escape(user)} may no longer send as {_shown(sender)}")
    session.done({"dry_run": terms.dry_run, "removed": records}, *lines)


@click.command()
@click.argument("user", required=False)
@json_option
@pass_session
def list_senders(session: Session, user: str | None) -> None:
    """List what accounts may send as by hand, of USER or all; what the check allows by itself is not listed."""
    account = canonical_user(session, user) if user else ""
    _print(session, *_read(session, account))


@click.command()
@click.argument("user")
@json_option
@pass_session
def show_sender(session: Session, user: str) -> None:
    """Show what USER may send as by hand, with who set it and why."""
    account = canonical_user(session, user)
    times, rights = _read(session, account)
    if not rights:
        raise NotFound(_missing(account, None, []))
    _print(session, times, rights)


def _read(session: Session, account: str) -> tuple[Times, list[SenderRight]]:
    """The rights in force, of one account or, for "", of all."""
    from policyd.store import admin

    with session.reading() as connection:
        times = Times.of(connection)
        rights: list[SenderRight] = admin.rows(connection, "sender_right", times.now)
    return times, [right for right in rights if not account or right.user == account]


def _print(session: Session, times: Times, rights: list[SenderRight]) -> None:
    from policyd.store import dump

    session.show(
        [dump.record("sender_right", right, times.ahead) for right in rights],
        ("user", "sender", "until", "author", "set", "reason"),
        [
            (
                right.user,
                right.sender or "<>",
                times.until(right.expires_at),
                right.author,
                times.text(right.created_at),
                right.reason,
            )
            for right in rights
        ],
        "nobody may send as somebody else by hand",
    )


def _canonical(senders: tuple[str, ...]) -> list[str]:
    with usage_errors():
        return list(dict.fromkeys(canonical_sender(value) for value in values_of(senders)))


def _shown(sender: str) -> str:
    return escape(sender) or "<>"


def _missing(user: str, sender: str | None, there: list[str]) -> str:
    if sender is None:
        return f"{escape(user)} was not allowed any sender; 'policyctl sender list' shows who was"
    near = did_you_mean(sender, there, 0.85) or f"; 'policyctl sender list {escape(user)}' shows what was"
    return f"{escape(user)} was not allowed to send as {_shown(sender)}{near}"


def _warn_without_check(session: Session) -> None:
    if not any(check.use == "sender_login" for check in session.config.checks):
        session.note(
            f"{session.config_path} has no check 'use = \"sender_login\"': every login may send as anybody until it has one"
        )

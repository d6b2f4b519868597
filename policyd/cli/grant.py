"""``policyctl grant``: one-off widenings of an account's limits that end by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from policyd.answer import escape
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    canonical_user,
    json_option,
    known_user,
    pass_session,
    steering_options,
    usage_errors,
)
from policyd.cli.quota_set import warn_without_user_quota
from policyd.errors import NotFound
from policyd.steering import Grant
from policyd.units import format_size, parse_limit

if TYPE_CHECKING:
    import sqlite3


@click.command()
@click.argument("user")
@click.argument("amount")
@click.argument("unit", required=False)
@click.option("--force", is_flag=True, help="Also for a login that was never seen.")
@steering_options(required=True)
@json_option
@pass_session
def add_grant(session: Session, user: str, amount: str, unit: str | None, force: bool, terms: Terms) -> None:
    """Widen every window of USER's limits in one UNIT (messages, recipients, bytes) by AMOUNT, for some time.

    \b
    policyctl grant alice@example.org 5000 recipients --until 'tomorrow 08:00' --reason 'invitation, ticket 4711'
    policyctl grant alice@example.org 500MB --for 24h

    Also: grant list [USER], grant show NUMBER, grant rm NUMBER|USER.
    """
    from policyd.store import admin, dump

    user = canonical_user(session, user)
    given = amount if unit is None else f"{amount} {unit}"
    with usage_errors():
        try:
            limit = parse_limit(f"{given} per 1h")
        except ValueError as error:
            raise ValueError(
                f"{given!r} cannot be granted; write 5000 recipients, 50 messages or 500MB"
            ) from error
        if not limit.amount:
            raise ValueError("a grant of 0 widens nothing; 'policyctl grant rm' takes a grant back")
    with session.changing() as connection:
        known_user(connection, user, force)
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            times, expires = Times.of(connection), change.expires(terms.lasts)
            grant = Grant(
                change.next_grant(),
                user,
                limit.unit,
                limit.amount,
                terms.reason,
                terms.author,
                change.now,
                expires,
            )
            change.put("user_grant", grant)
            text = (
                f"{amount_text(grant.unit, grant.amount)} more in every window, until {times.until(expires)}"
            )
            change.record("grant", user, f"grant {grant.id}: {text}")
    session.done(
        {"dry_run": terms.dry_run, "set": [dump.record("user_grant", grant, times.ahead)]},
        f"{terms.prefix}{escape(user)}: {text} (grant {grant.id})",
    )
    warn_without_user_quota(session)


@click.command()
@click.argument("grants", nargs=-1, required=True, metavar="NUMBER|USER...")
@steering_options(lasts=False)
@json_option
@pass_session
def remove_grant(session: Session, grants: tuple[str, ...], terms: Terms) -> None:
    """Take grants back, by their NUMBER or all of a USER."""
    from policyd.store import admin, dump

    records, lines = [], []
    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        times = Times.of(connection)
        rows = admin.rows(connection, "user_grant", change.now)
        for grant in _chosen(session, rows, grants):
            change.drop("user_grant", grant.id)
            change.record(
                "grant rm", grant.user, f"grant {grant.id}: was {amount_text(grant.unit, grant.amount)}"
            )
            records.append(dump.record("user_grant", grant, times.ahead))
            lines.append(
                f"{terms.prefix}{escape(grant.user)}: grant {grant.id} of {amount_text(grant.unit, grant.amount)} is taken back"
            )
    session.done({"dry_run": terms.dry_run, "removed": records}, *lines)


@click.command()
@click.argument("user", required=False)
@json_option
@pass_session
def list_grants(session: Session, user: str | None) -> None:
    """List the grants in force, of USER or all."""
    account = canonical_user(session, user) if user else ""
    with session.reading() as connection:
        times, rows = _read(connection)
    _print(session, times, [grant for grant in rows if not account or grant.user == account])


@click.command()
@click.argument("grants", nargs=-1, required=True, metavar="NUMBER|USER...")
@json_option
@pass_session
def show_grant(session: Session, grants: tuple[str, ...]) -> None:
    """Show grants, by their NUMBER or all of a USER."""
    with session.reading() as connection:
        times, rows = _read(connection)
    _print(session, times, _chosen(session, rows, grants))


def _read(connection: sqlite3.Connection) -> tuple[Times, list[Grant]]:
    from policyd.store import admin

    times = Times.of(connection)
    return times, admin.rows(connection, "user_grant", times.now)


def _chosen(session: Session, rows: list[Grant], names: tuple[str, ...]) -> list[Grant]:
    chosen: dict[int, Grant] = {}
    for name in names:
        if name.isascii() and name.isdigit():
            found = [grant for grant in rows if str(grant.id) == name]
            missing = f"there is no grant {name} in force"
        else:
            user = canonical_user(session, name)
            found = [grant for grant in rows if grant.user == user]
            missing = f"{escape(user)} has no grant in force"
        if not found:
            raise NotFound(f"{missing}; 'policyctl grant list' shows them")
        chosen |= {grant.id: grant for grant in found}
    return list(chosen.values())


def amount_text(unit: str, amount: int) -> str:
    """An amount with its unit: ``500MB``, ``20 messages``."""
    return format_size(amount) if unit == "bytes" else f"{amount} {unit}"


def _print(session: Session, times: Times, rows: list[Grant]) -> None:
    from policyd.store import dump

    session.show(
        [dump.record("user_grant", grant, times.ahead) for grant in rows],
        ("number", "user", "amount", "unit", "until", "author", "set", "reason"),
        [
            (
                grant.id,
                grant.user,
                format_size(grant.amount) if grant.unit == "bytes" else grant.amount,
                grant.unit,
                times.until(grant.expires_at),
                grant.author,
                times.text(grant.created_at),
                grant.reason,
            )
            for grant in rows
        ],
        "no grant is in force",
    )
